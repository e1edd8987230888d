"""One look at many batches, in few calls. Blocking: it runs in the poller's thread, which is here too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

import msgspec

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import (
    AuthenticationError,
    NotFoundError,
    OpenAIBatchesError,
    RateLimitError,
)
from airflow_provider_openai_batches.api.listing import PAGE_SIZE
from airflow_provider_openai_batches.api.models import Batch, BatchStatus

P = ParamSpec("P")
T = TypeVar("T")

_FAILURES_OF_AN_OUTAGE = 3
"""Calls that fail in a row before the service is taken to be down, rather than each batch to have its own trouble."""


@dataclass
class Sighting:
    """What one poll found out. Where nothing is said of a batch, it was not asked for, because of the outage.

    :param batches: the batches it saw, under the ids that were asked for
    :param errors: the trouble of single batches
    :param outage: the trouble of the service as a whole
    :param answered: whether the service answered anything, be it that it knows no such batch
    :param calls: HTTP requests made
    :param failures: the errors of all calls that failed, also of those that another one made up for
    """

    batches: dict[str, Batch] = field(default_factory=dict)
    errors: dict[str, OpenAIBatchesError] = field(default_factory=dict)
    outage: OpenAIBatchesError | None = None
    answered: bool = False
    calls: int = 0
    failures: list[OpenAIBatchesError] = field(default_factory=list)


Tell = Callable[[Mapping[str, Batch]], None]


def look(client: BatchClient, wanted: Iterable[str], stopped: threading.Event, tell: Tell | None = None) -> Sighting:
    """Find out how the wanted batches are, in few calls.

    Pages of the listing, newest first, as long as they are cheaper than asking for the missing ones one by one, or
    promise to be; then those one by one. That is at most twice the calls of someone who knows where each batch is. A
    batch's error is its own; when the service itself fails, the rest is not asked.

    :param client: makes one attempt per call: the poller's next round is the retry
    :param wanted: batch ids; where they are asked one by one, in this order
    :param stopped: set when nobody waits for the answer any more
    :param tell: called with batches of the sighting, by the id that was asked for, as soon as they are seen: a look at
        thousands takes many calls, and whoever waits for the first need not wait for the last. Default: nobody is told
    """
    round_ = _Round(client, wanted, stopped, tell)
    if client.settings.dialect.lists_are_current and len(round_.missing) > 1 and not round_.walk_listing():
        # One call tells whether it is the service or the listing. If the listing only stumbled, it is still cheaper.
        round_.retrieve(list(round_.missing)[:1])
        if round_.sighting.answered and len(round_.missing) > 1:
            round_.walk_listing()
    unsure = [batch.id for batch in round_.sighting.batches.values() if round_.needs_confirmation(batch)]
    round_.retrieve([*round_.missing, *unsure])
    if round_.failed_alone:
        round_.probe()
    return round_.result()


class _Round:
    """The calls of one poll.

    :param client: makes them
    :param wanted: batch ids
    :param stopped: set when no further call is wanted
    :param tell: is called with what is seen, page by page
    """

    def __init__(self, client: BatchClient, wanted: Iterable[str], stopped: threading.Event, tell: Tell | None) -> None:
        self.sighting = Sighting()
        self.missing = dict.fromkeys(wanted)
        self._client = client
        self._stopped = stopped
        self._tell = tell
        self._retrieved: set[str] = set()
        self._failures: list[OpenAIBatchesError] = []

    def walk_listing(self) -> bool:
        """Take wanted batches from the listing, page by page; return False if it failed."""
        if self._is_over():
            return True
        sighting = self.sighting
        sighting.calls += 1
        walked = 1
        page: dict[str, Batch] = {}
        try:
            for seen, batch in enumerate(self._client.list_batches()):
                if seen and seen % PAGE_SIZE == 0:
                    sighting.calls += 1
                    walked += 1
                if batch.id in self.missing:
                    del self.missing[batch.id]
                    sighting.batches[batch.id] = page[batch.id] = batch
                if not self.missing:
                    break
                if seen % PAGE_SIZE == PAGE_SIZE - 1:
                    self._told(page)
                    # A page that names two has been cheaper than asking for them, and so may the next be.
                    if self._stopped.is_set() or (walked >= len(self.missing) and len(page) < 2):
                        page = {}
                        break
                    page = {}
        except OpenAIBatchesError as error:
            self._failed(error)
            return False
        self._told(page)
        self._answered()
        return True

    def retrieve(self, batch_ids: Sequence[str]) -> None:
        """Ask for batches one by one, until the service itself turns out to be the trouble."""
        for batch_id in batch_ids:
            if self._is_over():
                break
            self.missing.pop(batch_id, None)
            # What the listing said does not count until it is confirmed.
            self.sighting.batches.pop(batch_id, None)
            self.sighting.calls += 1
            try:
                batch = self._client.retrieve_batch(batch_id)
            except OpenAIBatchesError as error:
                self.sighting.errors[batch_id] = error
                if isinstance(error, NotFoundError):
                    self.sighting.failures.append(error)
                    self._answered()
                else:
                    self._failed(error)
            else:
                # A gateway with ids of its own may answer with the id behind it, which it would not know if asked.
                self.sighting.batches[batch_id] = msgspec.structs.replace(batch, id=batch_id)
                self._retrieved.add(batch_id)
                self._told({batch_id: self.sighting.batches[batch_id]})
                self._answered()

    @property
    def failed_alone(self) -> bool:
        """Whether all there was is one call that failed: the batch's trouble or the service's."""
        return len(self._failures) == self.sighting.calls == 1 and not self._is_over()

    def probe(self) -> None:
        """Find out whether the service answers at all."""
        self.sighting.calls += 1
        try:
            next(self._client.list_batches(limit=1), None)
        except OpenAIBatchesError as error:
            self._failed(error)
        else:
            self._answered()

    def needs_confirmation(self, batch: Batch) -> bool:
        """Whether a listed batch is over but lacks what its own object may have: listings lag and omit."""
        if batch.id in self._retrieved or not batch.is_terminal:
            return False
        if batch.status == BatchStatus.FAILED:
            return not batch.errors
        return not batch.output_file_id or (batch.request_counts.failed > 0 and not batch.error_file_id)

    def result(self) -> Sighting:
        """Return what was found out, without what should have been confirmed and was not."""
        sighting = self.sighting
        sighting.batches = {
            batch_id: batch for batch_id, batch in sighting.batches.items() if not self.needs_confirmation(batch)
        }
        if self._failures and not sighting.answered:
            sighting.outage = self._failures[-1]
        return sighting

    def _told(self, batches: Mapping[str, Batch]) -> None:
        sure = {batch_id: batch for batch_id, batch in batches.items() if not self.needs_confirmation(batch)}
        if sure and self._tell is not None:
            self._tell(sure)

    def _answered(self) -> None:
        self.sighting.answered = True
        self._failures.clear()

    def _failed(self, error: OpenAIBatchesError) -> None:
        self._failures.append(error)
        self.sighting.failures.append(error)
        concerns_all = isinstance(error, (AuthenticationError, RateLimitError)) or error.retry_after_s is not None
        if concerns_all or len(self._failures) >= _FAILURES_OF_AN_OUTAGE:
            self.sighting.outage = error

    def _is_over(self) -> bool:
        return self._stopped.is_set() or self.sighting.outage is not None


class DaemonThread(Executor):
    """Makes calls one after the other in one thread.

    The interpreter waits at its end for the threads of a ThreadPoolExecutor: a service that hangs would keep a
    triggerer alive that was told to stop. It does not wait for this one.

    :param name: of the thread
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call."""
        future: Future[T] = Future()
        self._calls.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """End the thread after the calls that are queued; never waits for that."""
        self._calls.put(None)

    def _run(self) -> None:
        while (queued := self._calls.get()) is not None:
            future, call = queued
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the result
                future.set_exception(error)
            else:
                future.set_result(result)
            # While the thread waits for the next call, nothing of this one may be kept alive.
            del queued, future, call
