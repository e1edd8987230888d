"""A job in the hands of one attempt: what all steps of it work with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.direct import DirectClient
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.jobs.directory import JobDirectory
from airflow_provider_openai_batches.jobs.ledger import Ledger
from airflow_provider_openai_batches.jobs.ownership import save_ledger
from airflow_provider_openai_batches.jobs.requests import Request

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.plan import JobSettings

MOST_AT_ONCE = 8
"""Rows that are sent without a batch at the same time: enough for some hundreds, and few against any rate limit."""


def _asker(settings: ClientSettings, sleep: Callable[[float], None]) -> DirectClient:
    return DirectClient(settings, sleep=sleep)


@dataclass
class Job:
    """A job in the hands of one attempt.

    :param directory: where everything it knows is kept
    :param ledger: its record
    :param settings: what the operator was told
    :param client: for everything but creating
    :param creator: for creating: makes one attempt per call, since repeating is :func:`buy`'s decision
    :param read_requests: reads the source, once per plan
    :param clock: unix time
    :param monotonic: seconds that no one can turn back, to tell how long this process was held up
    :param landed: told of each batch that is over and dealt with, and of its model; once per batch
    :param patience: scales all pauses; 1 but for tests
    :param asker: makes a client for one thread, to send rows without a batch, from its settings and its way to sleep
    :param most_at_once: rows that are sent so at the same time
    :param halted: set when the task is being ended: no more rows are sent so
    """

    directory: JobDirectory
    ledger: Ledger
    settings: JobSettings
    client: BatchClient
    creator: BatchClient
    read_requests: Callable[[], Iterator[Request]]
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    landed: Callable[[Batch, str], None] = lambda batch, model: None
    patience: float = 1.0
    asker: Callable[[ClientSettings, Callable[[float], None]], DirectClient] = _asker
    most_at_once: int = MOST_AT_ONCE
    halted: threading.Event = field(default_factory=threading.Event)
    # What one step has seen: batches that are over, tokens queued per model by all DAGs, and models without room.
    seen: dict[str, Batch] = field(default_factory=dict)
    queued: dict[str, int] | None = None
    full: set[str] = field(default_factory=set)

    def now(self) -> float:
        """Unix time."""
        return self.clock()

    def save(self) -> None:
        """Write the ledger."""
        save_ledger(self.directory, self.ledger)
