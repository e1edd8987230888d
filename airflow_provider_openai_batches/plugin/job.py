"""The tab on a task instance: its job, from what the task left behind and the job's own ledger."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from airflow.providers.common.compat.sdk import AirflowNotFoundException, ObjectStoragePath
from fastapi import APIRouter

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import TERMINAL_STATUSES, Batch, RequestCounts, Usage
from airflow_provider_openai_batches.jobs.directory import open_directory
from airflow_provider_openai_batches.jobs.ledger import Ledger, LedgerError, Owner, Round, Shard
from airflow_provider_openai_batches.jobs.ownership import load_ledger
from airflow_provider_openai_batches.jobs.pricing import Price
from airflow_provider_openai_batches.operators.opening import STORE_KEY
from airflow_provider_openai_batches.plugin import database
from airflow_provider_openai_batches.plugin.access import Caller, CallerDep, PlaceDep, Scope, is_conn_id
from airflow_provider_openai_batches.plugin.account import account
from airflow_provider_openai_batches.plugin.database import TaskPlace
from airflow_provider_openai_batches.plugin.errors import PageError
from airflow_provider_openai_batches.plugin.readers import read_in_time
from airflow_provider_openai_batches.plugin.shown import Json, batch_cost, model_of, shown_usage

log = logging.getLogger(__name__)

router = APIRouter()

_PAGES = 3
_SHARDS_SHOWN = 500
_NOT_YOURS = "The job's ledger is behind a connection that you may not read. Airflow's own records are shown."


@router.get("/api/job")
def show_job(place: PlaceDep, caller: CallerDep) -> Json:
    """The job of a task instance: its shards and rounds, rows by status, tokens and cost so far."""
    traces = _Traces(place)
    ledger, note = _ledger(traces, caller)
    # A ledger without one is of a job that goes on, whatever an earlier attempt has returned.
    manifest = _manifest(ledger.manifest) if ledger is not None else traces.manifest
    if ledger is not None:
        shards = ledger.shards
    else:
        shards = _shards_of(traces.batch_ids or (manifest.batch_ids if manifest else []))
    if ledger is None and manifest is None and not shards:
        return Json(_nothing(note))
    view: dict[str, Any] = {
        "found": True,
        "conn_id": traces.conn_id,
        "output_path": manifest.output_path if manifest else traces.output_path,
        "shards": _shown(shards, _Live()),
        "finished": manifest is not None,
        "note": note,
    }
    if manifest is not None:
        return Json({**view, **_from_manifest(manifest)})
    live = _Live()
    if traces.conn_id is not None and caller.may_read_connection(traces.conn_id):
        scope = Scope(caller, traces.conn_id)
        live.look(scope, [each.batch_id for each in _rounds(shards) if each.batch_id])
    return Json({**view, "shards": _shown(shards, live), **_so_far(ledger, shards, live)})


class _Traces:
    """What a task instance left in Airflow's database."""

    def __init__(self, place: TaskPlace) -> None:
        self.place = place
        xcoms = database.xcoms(place, ("return_value", "batch_ids", "batch_id"))
        stored = database.stored_state(place, STORE_KEY)
        fields = database.rendered_fields(place)
        self.manifest = _manifest(xcoms.get("return_value"))
        ids = xcoms.get("batch_ids") or [xcoms.get("batch_id")]
        self.batch_ids = [each for each in ids if isinstance(each, str)] if isinstance(ids, list) else []
        conn_id = fields.get("conn_id")
        self.conn_id = conn_id if isinstance(conn_id, str) and is_conn_id(conn_id) else None
        # Not the manifest's: whoever may write an XCom must not choose what the API server reads.
        paths = [stored.get("output_path") if isinstance(stored, Mapping) else None]
        # Before Airflow 3.3 nothing else tells where a job is that goes on. Other operators have such a field too.
        if self.batch_ids or "OpenAIBatch" in (database.operator_of(place) or ""):
            paths.append(fields.get("output_path"))
        self.output_path = next((each for each in paths if isinstance(each, str) and each), None)


class _Direct(msgspec.Struct):
    """What was bought without a batch."""

    requests: int = 0
    cost: float | None = None


class _Reused(msgspec.Struct, frozen=True):
    """Rows that were not bought. Manifests of earlier versions do not tell of them."""

    kept: int = 0
    cache: int = 0
    duplicates: int = 0
    cost: float | None = None


class _Manifest(msgspec.Struct):
    """What the tab shows of a finished job."""

    job_id: str
    output_path: str
    requests: int
    by_status: dict[str, int]
    batch_ids: list[str]
    usage: Usage
    cost: float | None
    estimated_cost: float | None
    direct: _Direct = msgspec.field(default_factory=_Direct)
    reused: _Reused | None = None


def _manifest(value: object) -> _Manifest | None:
    """Read a manifest; None for anything else that a task may return."""
    try:
        return msgspec.convert(value, _Manifest)
    except msgspec.ValidationError:
        return None


def _ledger(traces: _Traces, caller: Caller) -> tuple[Ledger | None, str | None]:
    """Return the job's ledger, or why there is none to be seen."""
    location = traces.output_path
    if location is None:
        return None, None
    try:
        # Airflow says whose credentials it reads with. To make the path may take a while: it opens the connection.
        path = read_in_time(("path", location), lambda: ObjectStoragePath(location))
        if path.conn_id is not None and not _may_read_through(caller, path.conn_id):
            return None, _NOT_YOURS
        # The key has the task, too: what one task may read of a path, another may not.
        ledger = read_in_time(
            (location, traces.place), lambda: load_ledger(open_directory(path), Owner(*_owner(traces.place)))
        )
    except LedgerError as error:
        # Not its text: it may name a task of a DAG that the user may not see.
        log.warning("A job's tab does without its ledger: %s", error)
        reason = "it is damaged, of a newer version, or another task's; the API server's log says which"
    except Exception as error:  # noqa: BLE001 - each kind of storage has errors of its own
        log.info("The ledger in %s cannot be read: %s", location, type(error).__name__)
        reason = f"it cannot be read from the API server ({type(error).__name__})"
    else:
        if ledger is not None:
            return ledger, None
        reason = "it is not there, or the API server does not see the path"
    return None, f"The job's ledger in {location}: {reason}. What is shown is what the task left in Airflow."


def _may_read_through(caller: Caller, conn_id: str) -> bool:
    return is_conn_id(conn_id) and caller.may_read_connection(conn_id)


def _owner(place: TaskPlace) -> tuple[str, str, str, int]:
    return place.dag_id, place.task_id, place.run_id, place.map_index


class _Live:
    """How batches are now, as far as it is known."""

    def __init__(self) -> None:
        self.batches: dict[str, Batch] = {}
        self.prices: Mapping[str, Price] = {}

    def look(self, scope: Scope, batch_ids: Iterable[str]) -> None:
        """Look for batches among the newest ones. While the service is down, the ledger has to do.

        :param scope: what the caller sees: whoever may write an XCom can put the id of any batch there
        """
        wanted = set(batch_ids)
        try:
            home, after = account(scope.conn_id), None
            self.prices = home.prices
            for _ in range(_PAGES):
                page = home.page(after)
                self.batches |= {batch.id: batch for batch in scope.admit(each for each in page if each.id in wanted)}
                if not page or len(self.batches) == len(wanted):
                    break
                after = page[-1].id
        except (OpenAIBatchesError, PageError, AirflowNotFoundException) as error:
            log.info("The batches of a job are shown as its ledger has them: %s", error)

    def of(self, round_: Round) -> Batch | None:
        """Return the batch of a round."""
        return self.batches.get(round_.batch_id or "")


def _from_manifest(manifest: _Manifest) -> dict[str, Any]:
    return {
        "requests": manifest.requests,
        "by_status": manifest.by_status,
        "cost": manifest.cost,
        "estimated_cost": manifest.estimated_cost,
        "usage": shown_usage(manifest.usage),
        "direct": msgspec.to_builtins(manifest.direct),
        "reused": manifest.reused,
    }


def _so_far(ledger: Ledger | None, shards: list[Shard], live: _Live) -> dict[str, Any]:
    """Add up a job that goes on. A row that its shard's next round does not send again has got its final answer."""
    rows: Counter[str] = Counter()
    reused = None
    if ledger is not None:
        # A duplicate is pending as long as what it waits for.
        rows += Counter(succeeded=ledger.answered_rows, pending=ledger.duplicate_rows)
        reused = _Reused(ledger.kept_rows, ledger.cached_rows, ledger.duplicate_rows)
    for shard in shards:
        batch = None if shard.finished else live.of(shard.round)
        counts = _known(batch)
        total = shard.requests or counts.total
        in_question = 0 if shard.finished else shard.round.requests or total
        answered = total - in_question + counts.completed
        rows += Counter(answered=answered, failed=counts.failed, pending=max(total - answered - counts.failed, 0))
    usage, spent = _spent(shards, live)
    return {
        "requests": ledger.rows if ledger is not None else rows.total(),
        "by_status": dict(rows),
        "cost": spent,
        "estimated_cost": ledger.estimated_cost if ledger is not None else None,
        "usage": shown_usage(usage),
        "direct": None,
        "reused": reused,
    }


def _spent(shards: list[Shard], live: _Live) -> tuple[Usage | None, float | None]:
    """Add up tokens and cost of the batches that are over; None if one of them cannot be seen.

    What a round without a batch came to is known when the job is done.
    """
    over = [live.of(each) for each in _rounds(shards) if each.landed or each.status in TERMINAL_STATUSES]
    over += [batch for batch in live.batches.values() if batch.is_terminal and batch not in over]
    seen = [batch for batch in over if batch is not None and batch.usage is not None]
    if not over or len(seen) < len(over):
        return None, None
    costs = [batch_cost(batch, live.prices) for batch in seen]
    known = [each for each in costs if each is not None]
    usage = sum((batch.usage for batch in seen if batch.usage is not None), start=Usage())
    return usage, sum(known) if len(known) == len(costs) else None


def _shards_of(batch_ids: list[str]) -> list[Shard]:
    """Describe batches of which no ledger tells as shards with one round each."""
    return [
        Shard(number, "", 0, 0, [Round(number=1, requests=0, bytes=0, tokens=0, batch_id=batch_id)])
        for number, batch_id in enumerate(batch_ids)
    ]


def _rounds(shards: list[Shard]) -> Iterator[Round]:
    return (each for shard in shards for each in shard.rounds)


def _shown(shards: list[Shard], live: _Live) -> list[dict[str, Any]]:
    return [
        {
            "index": shard.index,
            "requests": shard.requests or _known(live.of(shard.round)).total,
            "model": shard.model or next(filter(None, map(model_of, filter(None, map(live.of, shard.rounds)))), None),
            "rounds": [_shown_round(each, live.of(each)) for each in shard.rounds],
        }
        for shard in shards[:_SHARDS_SHOWN]
    ]


def _shown_round(round_: Round, batch: Batch | None) -> dict[str, Any]:
    return {
        "number": round_.number,
        "batch_id": round_.batch_id,
        "status": batch.status if batch is not None else round_.status or ("sending" if round_.direct else None),
        "requests": round_.requests or _known(batch).total,
        "landed": round_.landed,
        "direct": round_.direct,
    }


def _known(batch: Batch | None) -> RequestCounts:
    return RequestCounts() if batch is None else batch.request_counts


def _nothing(note: str | None) -> dict[str, Any]:
    return {
        "found": False,
        "conn_id": None,
        "output_path": None,
        "requests": 0,
        "by_status": {},
        "cost": None,
        "estimated_cost": None,
        "usage": None,
        "direct": None,
        "reused": None,
        "shards": [],
        "finished": False,
        "note": note,
    }
