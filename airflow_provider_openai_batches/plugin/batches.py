"""Routes of the page: connections, batches, and what can be done to a batch."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import (
    AuthenticationError,
    NotFoundError,
    OpenAIBatchesError,
    WrongPathError,
)
from airflow_provider_openai_batches.api.listing import PAGE_SIZE
from airflow_provider_openai_batches.api.models import Batch, File, parse_status
from airflow_provider_openai_batches.hooks.openai_batches import DEFAULT_CONN_ID
from airflow_provider_openai_batches.plugin import database
from airflow_provider_openai_batches.plugin.access import CallerDep, Scope, ScopeDep, acting, from_our_page, maker
from airflow_provider_openai_batches.plugin.account import Account, account, connections
from airflow_provider_openai_batches.plugin.cursors import LONGEST_CURSOR
from airflow_provider_openai_batches.plugin.errors import PageError
from airflow_provider_openai_batches.plugin.shown import Json, model_of, preview, shown, timeline

router = APIRouter()

_PAGES_PER_REQUEST = 5
_SCAN_WITHIN_S = 8.0
_PREVIEW_BYTES = 262_144

_BATCH_ID = re.compile(r"[\x21-\x7e]{1,200}")


def _batch_id(batch_id: Annotated[str, Path()]) -> str:
    # What could not be an id is one that nobody has: people type them, and links break.
    if not _BATCH_ID.fullmatch(batch_id) or batch_id in (".", ".."):
        raise _unseen("with this id")
    return batch_id


BatchId = Annotated[str, Depends(_batch_id)]


@router.get("/api/connections")
def list_connections(caller: CallerDep) -> Json:
    """The connections whose batches the caller may see."""
    readable = {
        conn_id: conn_type
        for conn_id, conn_type in sorted(connections().items())
        if caller.may_read_connection(conn_id)
    }
    default = DEFAULT_CONN_ID if DEFAULT_CONN_ID in readable else next(iter(readable), None)
    return Json(
        {
            "connections": [{"conn_id": conn_id, "conn_type": readable[conn_id]} for conn_id in readable],
            "default": default,
        }
    )


@router.get("/api/batches")
def list_batches(
    scope: ScopeDep,
    cursor: Annotated[str | None, Query(pattern=r"^[\x21-\x7e]+$", max_length=LONGEST_CURSOR)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 25,
    dag_id: Annotated[str | None, Query(max_length=250)] = None,
    status: Annotated[list[str] | None, Query(max_length=20)] = None,
    text: Annotated[str | None, Query(max_length=500)] = None,
) -> Json:
    """Some batches, newest first. A filter looks through a few pages of the listing; the cursor goes on from there.

    ``scanned`` counts those looked at that the caller may see, and the cursor does not show where it stands: how many
    other batches there are, and which, is not the caller's business. ``status`` and ``text`` that are empty, and a list
    of statuses that has nothing in it, let all pass.
    """
    home, now = account(scope.conn_id), time.time()
    filters = _Filters(dag_id, status, text)
    found: list[Batch] = []
    scanned, last = 0, home.cursors.open(cursor) if cursor else None
    for _ in range(_PAGES_PER_REQUEST):
        page = home.page(last)
        visible = {batch.id for batch in scope.admit(page)}
        for batch in page:
            if len(found) == limit:
                break
            last = batch.id
            if batch.id in visible:
                scanned += 1
                if filters.match(batch):
                    found.append(batch)
        else:
            if len(page) < PAGE_SIZE:
                last = None
                break
            if time.time() - now < _SCAN_WITHIN_S and len(found) < limit:
                continue
        break
    return Json(
        {
            "batches": [shown(batch, scope, home, now) for batch in found],
            "next_cursor": last and home.cursors.seal(last),
            "scanned": scanned,
        }
    )


@router.get("/api/batches/{batch_id}")
def show_batch(scope: ScopeDep, batch_id: BatchId) -> Json:
    """One batch with its errors, files and history."""
    home = account(scope.conn_id)
    batch = _seen(scope, home, batch_id)
    kinds = _files(batch)
    files = home.files(tuple(file_id for _, file_id in kinds)) if kinds else []
    return Json(
        {
            **shown(batch, scope, home, time.time()),
            "errors": [
                {"code": error.code, "message": error.message, "line": error.line, "param": error.param}
                for error in batch.errors[:_ERRORS_SHOWN]
            ],
            "files": [_shown_file(*each, file) for each, file in zip(kinds, files, strict=True)],
            "timeline": timeline(batch),
        }
    )


@router.get("/api/batches/{batch_id}/preview")
def preview_batch(scope: ScopeDep, batch_id: BatchId, rows: Annotated[int, Query(ge=1, le=50)] = 5) -> Json:
    """The first rows of a batch's results, or of its errors if that is all there is."""
    home = account(scope.conn_id)
    batch = _seen(scope, home, batch_id)
    file_id = batch.output_file_id or batch.error_file_id
    if file_id is None:
        return Json({"rows": [], "truncated": False})
    with home.client() as client:
        content = client.read_beginning(file_id, _PREVIEW_BYTES)
    return Json(preview(content, batch, rows, is_whole=len(content) < _PREVIEW_BYTES))


@router.post("/api/batches/{batch_id}/cancel", dependencies=[Depends(from_our_page)])
def cancel_batch(scope: ScopeDep, batch_id: BatchId) -> Json:
    """Cancel a batch. One that is over stays as it is."""
    home = account(scope.conn_id)
    batch = _seen(scope, home, batch_id)
    with acting("openai_batch_cancel", scope, batch) as entry:
        try:
            with home.client() as client:
                batch = client.cancel_batch(batch.id)
        finally:
            home.changed()
        entry["status"] = batch.status
    return Json(shown(batch, scope, home, time.time()))


@router.post("/api/batches/{batch_id}/delete-files", dependencies=[Depends(from_our_page)])
def delete_files(scope: ScopeDep, batch_id: BatchId) -> Json:
    """Delete the files of a batch that is over, as far as nobody needs them any more."""
    home = account(scope.conn_id)
    batch = _seen(scope, home, batch_id)
    with acting("openai_batch_delete_files", scope, batch) as entry:
        if not batch.is_terminal:
            raise PageError(409, "not_over", f"The batch is {batch.status}. Cancel it, or wait until it is over.")
        deleted: list[str] = []
        kept: list[dict[str, str]] = []
        entry |= {"deleted": deleted, "kept": kept}
        with home.client() as client:
            reasons = _needed(scope, client, batch)
            for _, file_id in _files(batch):
                if file_id in reasons:
                    kept.append({"id": file_id, "reason": reasons[file_id]})
                    continue
                try:
                    client.delete_file(file_id)
                except AuthenticationError:
                    raise
                except OpenAIBatchesError as error:
                    kept.append({"id": file_id, "reason": str(error)})
                else:
                    deleted.append(file_id)
        home.changed()
    return Json({"deleted": deleted, "kept": kept})


_ERRORS_SHOWN = 1_000
_FILE_KINDS = (("input", "input_file_id"), ("output", "output_file_id"), ("errors", "error_file_id"))


class _Filters:
    """What the user is looking for."""

    def __init__(self, dag_id: str | None, statuses: list[str] | None, text: str | None) -> None:
        self._dag_id = dag_id or None
        self._statuses = {parse_status(status) for status in statuses or () if status}
        self._text = (text or "").strip().casefold()

    def match(self, batch: Batch) -> bool:
        place = maker(batch)
        if self._dag_id is not None and (place is None or place.dag_id != self._dag_id):
            return False
        if self._statuses and batch.status not in self._statuses:
            return False
        # The texts of our metadata are shown too: DAG, run, task, job.
        texts = (batch.id, batch.endpoint, model_of(batch), *batch.metadata.values())
        return not self._text or any(self._text in text.casefold() for text in texts if text)


def _seen(scope: Scope, home: Account, batch_id: str) -> Batch:
    """Return a batch that the caller may see. One that they may not is not there, like one that is not."""
    try:
        batch = home.batch(batch_id)
    except WrongPathError:
        raise
    except NotFoundError:
        raise _unseen(batch_id) from None
    if not scope.admit([batch]):
        raise _unseen(batch_id)
    return batch


def _unseen(which: str) -> PageError:
    return PageError(404, "not_found", f"There is no batch {which}, or you may not see the DAG that made it.")


def _files(batch: Batch) -> list[tuple[str, str]]:
    return [(kind, file_id) for kind, name in _FILE_KINDS if (file_id := getattr(batch, name))]


def _shown_file(kind: str, file_id: str, found: File | OpenAIBatchesError) -> dict[str, Any]:
    file = found if isinstance(found, File) else None
    deleted = isinstance(found, NotFoundError) and not isinstance(found, WrongPathError)
    return {
        "id": file_id,
        "kind": kind,
        "filename": file and file.filename,
        "bytes": file and file.bytes,
        "expires_at": file and file.expires_at,
        "deleted": deleted,
        # The batch is shown all the same.
        "problem": None if file or deleted else str(found),
    }


def _needed(scope: Scope, client: BatchClient, batch: Batch) -> dict[str, str]:
    """Say of files why they must stay: what is paid for is not thrown away before it is read."""
    place = maker(batch)
    if place is not None and scope.knows(place) and not database.run_is_over(place):
        reason = (
            "The DAG run that made the batch goes on, and may not have read it yet. Delete it when the run is over."
        )
        return {file_id: reason for _, file_id in _files(batch)}
    input_id, until = batch.input_file_id, time.time() + _SCAN_WITHIN_S
    if not input_id:
        return {}
    for other in client.batches_since(time.time() - client.settings.dialect.longest_life_s):
        if other.input_file_id == input_id and not other.is_terminal:
            which = f"Batch {other.id}" if scope.admit([other]) else "Another batch"
            return {input_id: f"{which} still reads it."}
        if time.time() > until:
            return {input_id: "There are too many batches to see in time whether one still reads it."}
    return {}
