"""Metrics through Airflow's own Stats: StatsD, Datadog or OpenTelemetry, whichever Airflow is told to use.

Everything that is counted is in :data:`METRICS`, and explained in docs/telemetry.md. No tag has more values than a team
has DAGs, connections and models: no batch, run or row is ever named.
"""

from __future__ import annotations

import datetime
import functools
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_openai_batches.api.models import Batch, BatchStatus
from airflow_provider_openai_batches.compat import let_metrics_out

log = logging.getLogger(__name__)

_PLACE = ("dag_id", "conn_id", "endpoint", "model")
_LONGEST_TAG = 100
_NO_TAG = re.compile(r"[^A-Za-z0-9_./-]")
"""StatsD's own signs, such as the colon in the name of a fine-tuned model, would cut a line in the middle."""


class Metric(NamedTuple):
    """One metric: its name, ``counter`` or ``timer`` (milliseconds), its tags, and what it means."""

    name: str
    kind: Literal["counter", "timer"]
    tags: tuple[str, ...]
    meaning: str


CREATED = Metric("openai_batches.created", "counter", _PLACE, "Batches created.")
ENDED = Metric(
    "openai_batches.ended",
    "counter",
    (*_PLACE, "status"),
    "Batches that reached their end and were dealt with, by status: `completed`, `failed`, `expired`, `cancelled`.",
)
QUEUE_WAIT = Metric(
    "openai_batches.queue_wait", "timer", _PLACE, "From a batch's creation to its first request: validation and queue."
)
ROWS = Metric(
    "openai_batches.rows",
    "counter",
    (*_PLACE, "outcome"),
    "Rows by outcome: `succeeded`, `failed`, `expired`, `cancelled`, `invalid_output`, `missing`; `kept` are the "
    "answers of an earlier run that were not bought again, `cached` those of the answer cache.",
)
REUSED = Metric(
    "openai_batches.reused",
    "counter",
    (*_PLACE, "source"),
    "Rows that were not bought, by the source of their answer: `kept` (an earlier run), `cache` (the answer cache), "
    "`duplicates` (a row of the same job that asks the same).",
)
TOKENS = Metric(
    "openai_batches.tokens",
    "counter",
    (*_PLACE, "kind"),
    "Tokens by kind: `input` and `output`; `cached_input` and `reasoning` are parts of these.",
)
COST = Metric(
    "openai_batches.cost_microusd",
    "counter",
    _PLACE,
    "Cost in millionths of a US dollar; only where `prices` are known.",
)
POLL_CALLS = Metric(
    "openai_batches.poll_calls",
    "counter",
    ("conn_id",),
    "Calls to the service while tasks wait, or assets are watched.",
)
POLL_ERRORS = Metric(
    "openai_batches.poll_errors",
    "counter",
    ("conn_id", "error"),
    "Calls of these that failed, by the error's class, such as `RateLimitError`.",
)

METRICS = (CREATED, ENDED, QUEUE_WAIT, ROWS, REUSED, TOKENS, COST, POLL_CALLS, POLL_ERRORS)
"""All there are."""


def polled(conn_id: str, calls: int, failures: Iterable[Exception]) -> None:
    """Count the calls of one look at the batches of a connection.

    :param calls: how many were made, whatever came of them
    :param failures: the errors of those that failed, one for each
    """
    with _harmless():
        let_metrics_out()
    _count(POLL_CALLS, calls, conn_id=conn_id)
    for error, failed in Counter(type(failure).__name__ for failure in failures).items():
        _count(POLL_ERRORS, failed, conn_id=conn_id, error=error)


@dataclass(frozen=True)
class Meter:
    """Counts what one task does.

    :param dag_id: its DAG
    :param conn_id: its connection
    :param endpoint: where its requests go
    """

    dag_id: str
    conn_id: str
    endpoint: str | None

    def created(self, batches: int, model: str | None) -> None:
        """Count batches that were bought."""
        _count(CREATED, batches, **self._place(model))

    def ended(self, batch: Batch, model: str | None) -> None:
        """Count a batch that is over and dealt with: call it once per batch."""
        place = self._place(model or batch.model)
        _count(ENDED, 1, status=batch.status if batch.status in set(BatchStatus) else "other", **place)
        if batch.created_at and batch.in_progress_at and batch.in_progress_at >= batch.created_at:
            waited = datetime.timedelta(seconds=batch.in_progress_at - batch.created_at)
            with _harmless():
                Stats.timing(QUEUE_WAIT.name, waited, tags=_tags(QUEUE_WAIT, place))

    def answered(
        self,
        rows: Mapping[str, int],
        usage: Mapping[str, int] | None,
        cost_usd: float | None,
        model: str | None,
    ) -> None:
        """Count what was bought.

        :param rows: how many, by outcome
        :param usage: tokens, under the names of :class:`Usage`
        :param cost_usd: None if no price is known
        """
        place = self._place(model)
        for outcome, count in rows.items():
            _count(ROWS, count, outcome=outcome, **place)
        for kind, field in _KINDS.items():
            _count(TOKENS, (usage or {}).get(field, 0), kind=kind, **place)
        # As a whole number, since not every collector keeps fractions of a counter.
        _count(COST, round((cost_usd or 0.0) * 1_000_000), **place)

    def job_ended(self, manifest: Mapping[str, Any], model: str | None) -> None:
        """Count what a job came to: call it once per manifest."""
        reused = manifest["reused"]
        kept, cached = reused["kept"], reused["cache"]
        rows = {**manifest["by_status"], "kept": kept, "cached": cached}
        rows["succeeded"] = rows.get("succeeded", 0) - kept - cached
        self.answered(rows, manifest["usage"], manifest["cost"], model)
        for source in ("kept", "cache", "duplicates"):
            _count(REUSED, reused[source], source=source, **self._place(model))

    def _place(self, model: str | None) -> dict[str, str | None]:
        return {"dag_id": self.dag_id, "conn_id": self.conn_id, "endpoint": self.endpoint, "model": model}


_KINDS = {
    "input": "input_tokens",
    "cached_input": "cached_tokens",
    "output": "output_tokens",
    "reasoning": "reasoning_tokens",
}


def _count(metric: Metric, amount: int, **tags: str | None) -> None:
    if amount > 0:
        with _harmless():
            Stats.incr(metric.name, amount, tags=_tags(metric, tags))


@contextmanager
def _harmless() -> Iterator[None]:
    """Let paid work go on, and waiting, whatever is wrong with the settings of metrics."""
    try:
        yield
    except Exception:  # noqa: BLE001 - each backend has errors of its own
        _say_once("Nothing can be counted, since metrics cannot be sent.")


@functools.cache
def _say_once(message: str) -> None:
    log.exception(message)


def _tags(metric: Metric, values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: _NO_TAG.sub("_", values[name] or "unknown")[:_LONGEST_TAG] for name in metric.tags}
