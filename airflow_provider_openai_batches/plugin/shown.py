"""Batches as the page gets them: plain JSON, in which nothing is markup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from fastapi.responses import JSONResponse

from airflow_provider_openai_batches.api.models import Batch, BatchStatus, Usage
from airflow_provider_openai_batches.api.progress import time_left_s
from airflow_provider_openai_batches.jobs.classify import RetryLimits, classify
from airflow_provider_openai_batches.jobs.lines import integer, parse_line
from airflow_provider_openai_batches.jobs.pricing import Price, cost
from airflow_provider_openai_batches.jobs.purchase import JOB_KEY, ROUND_KEY, SHARD_KEY
from airflow_provider_openai_batches.jobs.queue import MODEL_KEY
from airflow_provider_openai_batches.links import base_path
from airflow_provider_openai_batches.plugin.access import Scope, maker
from airflow_provider_openai_batches.plugin.account import Account
from airflow_provider_openai_batches.plugin.database import TaskPlace

_NEARS_ITS_END_S = 2 * 3600.0
_LONGEST_TEXT = 2_000
_ENDS = ("completed_at", "failed_at", "expired_at", "cancelled_at")
_STEPS = ("created_at", "in_progress_at", "finalizing_at", "cancelling_at", *_ENDS)
_STILL_WORKING = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


class Json(JSONResponse):
    """JSON of plain values, without a walk through them in Python first."""

    def render(self, content: Any) -> bytes:
        """Encode; infinities become null."""
        return msgspec.json.encode(content)


def shown(batch: Batch, scope: Scope, account: Account, now: float) -> dict[str, Any]:
    """Describe a batch that the caller may see.

    :param now: unix time
    """
    place = maker(batch)
    left_s = time_left_s(batch, now)
    return {
        "id": batch.id,
        "status": batch.status,
        "endpoint": batch.endpoint,
        "model": model_of(batch),
        "made_by": _made_by(place, scope),
        "job": _job(batch),
        "counts": msgspec.structs.asdict(batch.request_counts),
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "finalizing_at": batch.finalizing_at,
        "ended_at": next((at for name in _ENDS if (at := getattr(batch, name))), None) if batch.is_terminal else None,
        "expires_at": batch.expires_at,
        "eta_s": left_s,
        "at_risk": _is_at_risk(batch, left_s, now),
        "usage": shown_usage(batch.usage),
        "cost_usd": batch_cost(batch, account.prices),
        "metadata": {
            key: value
            for key, value in batch.metadata.items()
            if not key.startswith("airflow_") and key != "idempotency_token"
        },
        "dashboard_url": account.dashboard_url(batch.id),
        "can_act": scope.may_act(batch),
    }


def model_of(batch: Batch) -> str | None:
    """Return a batch's model; from our metadata where the service tells only at the end."""
    return batch.model or batch.metadata.get(MODEL_KEY)


def batch_cost(batch: Batch, prices: Mapping[str, Price]) -> float | None:
    """Return what a batch cost in USD so far; None if its model, tokens or price are not known."""
    model = model_of(batch)
    return cost({model: batch.usage}, prices) if batch.usage and model and prices else None


def shown_usage(usage: Usage | None) -> dict[str, int] | None:
    """Describe tokens; None if there are none to tell of."""
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "cached_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


def task_url(place: TaskPlace) -> str:
    """Return the path of a task instance in Airflow's UI."""
    parts = ("dags", place.dag_id, "runs", place.run_id, "tasks", place.task_id)
    mapped = ("mapped", str(place.map_index)) if place.map_index >= 0 else ()
    return f"{base_path()}/{'/'.join(quote(part, safe='') for part in (*parts, *mapped))}"


def timeline(batch: Batch) -> list[dict[str, Any]]:
    """List what happened to a batch, in the order in which it did."""
    times = [(name.removesuffix("_at"), getattr(batch, name)) for name in _STEPS]
    # Sorting keeps the order of what happened within one second.
    return sorted(({"event": event, "at": at} for event, at in times if at), key=lambda step: step["at"])


def preview(content: bytes, batch: Batch, rows: int, *, is_whole: bool) -> dict[str, Any]:
    """Show the first rows of a result file.

    :param content: its beginning
    :param rows: at most this many
    :param is_whole: whether that is all of it; else its last line is cut off
    """
    lines = content.split(b"\n")
    left_over = lines.pop()
    if left_over and is_whole:
        lines.append(left_over)
    return {
        "rows": [_row(line, batch) for line in lines[:rows]],
        "truncated": len(lines) > rows or not is_whole,
    }


def _row(raw: bytes, batch: Batch) -> dict[str, Any]:
    line = parse_line(raw)
    if line is None:
        return {"custom_id": None, "status_code": None, "text": "", "error": "The line is not readable as JSON."}
    outcome = classify(
        line,
        batch_status=batch.status,
        attempts=1,
        limits=RetryLimits(),
        endpoint=batch.endpoint or "",
        request=lambda: b"{}",
    )
    error = outcome.error
    return {
        "custom_id": line.key,
        "status_code": line.http_status,
        "text": _text(outcome.output),
        "error": None if error is None else ": ".join(filter(None, (error.code, error.message)))[:_LONGEST_TEXT],
    }


def _text(output: Any) -> str:
    """An output as text: a model's own as it wrote it, anything else as JSON."""
    if output is None:
        return ""
    value = msgspec.json.encode(output)
    if value.startswith(b'"'):
        return str(msgspec.json.decode(value))[:_LONGEST_TEXT]
    return value.decode(errors="replace")[:_LONGEST_TEXT]


def _made_by(place: TaskPlace | None, scope: Scope) -> dict[str, Any] | None:
    if place is None:
        return None
    return {**place._asdict(), "url": task_url(place) if scope.knows(place) else None}


def _job(batch: Batch) -> dict[str, Any] | None:
    said = batch.metadata
    if JOB_KEY not in said:
        return None
    return {"job_id": said[JOB_KEY], "shard": integer(said.get(SHARD_KEY)), "round": integer(said.get(ROUND_KEY))}


def _is_at_risk(batch: Batch, left_s: float | None, now: float) -> bool:
    """Whether a batch may expire: its day is nearly over, or will be at its rate so far."""
    if batch.status not in _STILL_WORKING or batch.expires_at is None:
        return False
    return now + max(_NEARS_ITS_END_S, left_s or 0.0) > batch.expires_at
