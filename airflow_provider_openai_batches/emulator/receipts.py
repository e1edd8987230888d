"""What was bought: every request of every batch that ran, and whether it was answered. For tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from airflow_provider_openai_batches.emulator.store import Store, StoredBatch
from airflow_provider_openai_batches.emulator.validation import parse_line


@dataclasses.dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request of a batch that passed validation.

    :param custom_id: as it was sent
    :param body: as it was sent
    :param batch_id: its batch
    :param metadata: its batch's, such as ``airflow_task_id``
    :param billed: whether it has been answered, which costs money; False until its batch has ended
    """

    custom_id: str
    body: dict[str, Any]
    batch_id: str
    metadata: Mapping[str, str]
    billed: bool


def received_requests(store: Store) -> list[ReceivedRequest]:
    """Read the requests of all batches that ran, oldest batch first, in the order of their files.

    :param store: one that keeps requests
    """
    return [request for batch in reversed(store.batches()) if batch.in_progress_at for request in _of(store, batch)]


def _of(store: Store, batch: StoredBatch) -> list[ReceivedRequest]:
    note = store.notes_path(batch.id, ".billed")
    # While a batch winds up its notes are written, but nothing of it can be fetched yet.
    billed = set(map(int, note.read_text().split())) if batch.is_terminal and note.exists() else set()
    with store.notes_path(batch.id, ".input").open("rb") as lines:
        return [
            ReceivedRequest(line["custom_id"], line["body"], batch.id, batch.metadata or {}, number in billed)
            for number, line in enumerate(map(parse_line, lines))
        ]
