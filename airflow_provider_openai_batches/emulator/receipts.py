"""What was bought: every request of every batch that ran, and of none, and whether it was answered. For tests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from airflow_provider_openai_batches.emulator.store import Store, StoredBatch
from airflow_provider_openai_batches.emulator.validation import parse_line
from airflow_provider_openai_batches.emulator.wire import dump


@dataclasses.dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request of a batch that passed validation, or one that came to the model's own endpoint.

    :param custom_id: as it was sent; for one without a batch, what ``X-Client-Request-Id`` has after its first colon
    :param body: as it was sent
    :param batch_id: its batch; None if it came without one
    :param metadata: its batch's, such as ``airflow_task_id``
    :param billed: whether it has been answered, which costs money; False until its batch has ended
    """

    custom_id: str
    body: dict[str, Any]
    batch_id: str | None
    metadata: Mapping[str, str]
    billed: bool


def received_requests(store: Store) -> list[ReceivedRequest]:
    """Read the requests of all batches that ran, oldest batch first, in the order of their files; then those of none.

    :param store: one that keeps requests
    """
    in_batches = [each for batch in reversed(store.batches()) if batch.in_progress_at for each in _of(store, batch)]
    if not store.direct_path.exists():
        return in_batches
    with store.direct_path.open("rb") as lines:
        return in_batches + [_direct(json.loads(line)) for line in lines]


def keep_direct_request(store: Store, url: str, body: Mapping[str, Any], client_id: str, *, billed: bool) -> None:
    """Take note of a request that came without a batch.

    :param store: one that keeps requests
    :param url: its path
    :param client_id: its header ``X-Client-Request-Id``
    :param billed: whether it was answered
    """
    with store.direct_path.open("ab") as lines:
        lines.write(dump({"url": url, "body": body, "client_id": client_id, "billed": billed}) + b"\n")


def _direct(kept: dict[str, Any]) -> ReceivedRequest:
    custom_id = unquote(kept["client_id"].partition(":")[2])
    return ReceivedRequest(custom_id, kept["body"], None, {}, kept["billed"])


def _of(store: Store, batch: StoredBatch) -> list[ReceivedRequest]:
    note = store.notes_path(batch.id, ".billed")
    # While a batch winds up its notes are written, but nothing of it can be fetched yet.
    billed = set(map(int, note.read_text().split())) if batch.is_terminal and note.exists() else set()
    with store.notes_path(batch.id, ".input").open("rb") as lines:
        return [
            ReceivedRequest(line["custom_id"], line["body"], batch.id, batch.metadata or {}, number in billed)
            for number, line in enumerate(map(parse_line, lines))
        ]
