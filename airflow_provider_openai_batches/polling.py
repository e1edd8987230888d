"""One poll loop per connection and event loop, shared by every trigger that waits.

A listing of 100 batches costs one call, so a thousand waiting tasks cost ten calls an interval instead of a thousand,
one client instead of a thousand, and one look at the Airflow connection. HTTP runs in the loop's own thread: neither
the event loop nor its default executor ever waits for the service.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import (
    InvalidInputError,
    NotFoundError,
    OpenAIBatchesError,
    PermissionDeniedError,
)
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.api.retry import Patience
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.hooks.connection import client_settings
from airflow_provider_openai_batches.sighting import DaemonThread, Sighting, look
from airflow_provider_openai_batches.telemetry import polled
from airflow_provider_openai_batches.watch import Outage, Trouble, Watch, last_look_at

log = logging.getLogger(__name__)

OUTAGE_WORTH_TELLING_S = 300.0
_SHORTEST_INTERVAL_S = 0.05
_LONGEST_BACKOFF_S = 300.0
_LONGEST_RETRY_AFTER_S = 3600.0
"""A proxy that asks for a pause of days gets a call an hour: that burdens nobody, and batches end meanwhile."""

_TOLD_AT_ONCE = 20
"""A waiter that is told something writes a log line and fires its event: ten thousand of them in one go would hold the
event loop for seconds. After this many, all else in the loop has its turn."""

_FIRST_REPORT_S = 60.0
_REPORT_EVERY_S = 300.0


# --- who waits for what ---------------------------------------------------------------------------------------------


@dataclass
class Track:
    """What the poller remembers of one batch.

    :param watches: who waits for it
    :param last: the latest sighting
    :param failed_at: loop time of the latest call that failed for this batch; 0 if the latest one did not
    :param patience: with the looks in a row that did not see it
    :param outage: what the waiters were told of those
    """

    watches: set[Watch] = field(default_factory=set)
    last: Batch | None = None
    failed_at: float = 0.0
    patience: Patience = field(default_factory=Patience)
    outage: Outage | None = None

    def deliver(self, batch_id: str, news: Batch | Trouble) -> None:
        """Hand news of this batch to all who watch it."""
        for watch in self.watches:
            watch.deliver(batch_id, news)

    def recovered(self) -> None:
        """Forget the trouble: the batch was seen."""
        self.failed_at, self.outage = 0.0, None
        self.patience.recovered()

    def saw(self, batch_id: str, batch: Batch) -> None:
        """Take in a sighting, and hand it to all who watch if anything has changed."""
        self.recovered()
        if batch != self.last:
            self.last = batch
            self.deliver(batch_id, batch)

    def judge(self, error: OpenAIBatchesError, now: float, clock: float) -> Trouble | None:
        """Decide what the waiters are told about a look that failed, if anything.

        :param error: what it ended with
        :param now: loop time
        :param clock: unix time when the loop's was 0
        """
        if not self.patience.outlasts(error, now):
            return error
        since = self.patience.outage_since
        if since is None or now - since < OUTAGE_WORTH_TELLING_S or self.outage is not None:
            return None
        self.outage = Outage(error, since=clock + since)
        return self.outage


def backoff_s(interval: float, failed_polls: int) -> float:
    """Seconds between looks: the interval, and longer the longer an outage lasts.

    :param interval: seconds a waiter asked for; never less
    :param failed_polls: polls in a row without an answer
    """
    # The exponent has a limit: an outage of a week must not end in an OverflowError.
    return max(interval, min(interval * 1.5 ** min(failed_polls, 30), _LONGEST_BACKOFF_S))


async def read_settings(conn_id: str, executor: Executor) -> ClientSettings:
    """Read a connection in the triggerer.

    :param conn_id: Airflow connection
    :param executor: for what blocks
    :raises OpenAIBatchesError: it cannot be read or used
    """
    try:
        try:
            conn = await get_async_connection(conn_id)
        except AirflowNotFoundException:
            # In `dag.test()` only the synchronous way reaches the metadata database.
            loop = asyncio.get_running_loop()
            conn = await loop.run_in_executor(executor, BaseHook.get_connection, conn_id)
        return client_settings(conn, await get_async_extra_dejson(conn))
    except OpenAIBatchesError:
        raise
    except Exception as error:
        # A secrets backend can raise anything; none of it may end the waits of a whole connection at once.
        raise InvalidInputError("conn_id", f"connection {conn_id} cannot be read: {error}") from error


# --- the loop -------------------------------------------------------------------------------------------------------


class BatchPoller:
    """Watches batches of one connection for all waiters of one event loop. Use :meth:`watch`."""

    _live: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, BatchPoller]]] = WeakKeyDictionary()

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self._loop = asyncio.get_running_loop()
        self._tracks: dict[str, Track] = {}
        self._watches: set[Watch] = set()
        self._next_poll: float | None = None
        self._not_before = 0.0
        self._joined = asyncio.Event()
        self._client: BatchClient | None = None
        self._connection_doubted = False
        self._thread = DaemonThread(f"openai-batches-{conn_id}")
        self._log_thread = DaemonThread(f"task log of openai-batches-{conn_id}")
        self._stopped = threading.Event()
        self._failed_polls = 0
        self._calls = 0
        self._calls_since = self._loop.time()
        self._report_after_s = _FIRST_REPORT_S
        # An empty context: log lines and spans of the loop must not carry the ids of the trigger that came first.
        self._task = asyncio.create_task(self._run(), name=f"poll {conn_id}", context=contextvars.Context())

    @classmethod
    @asynccontextmanager
    async def watch(
        cls, conn_id: str, batch_ids: Iterable[str], *, poll_interval: float, deadline: float | None = None
    ) -> AsyncIterator[Watch]:
        """Watch batches until the block is left; the last one to leave closes the poll loop.

        :param conn_id: Airflow connection
        :param batch_ids: the batches
        :param poll_interval: seconds between looks; a change is noticed within one
        :param deadline: loop time at which the batches are looked at for the last time, whenever the next look would
            have been; at once if it has passed. Default: looks go on
        """
        pollers = cls._live.setdefault(asyncio.get_running_loop(), {})
        poller = pollers.get(conn_id)
        if poller is None or poller._task.done():
            poller = pollers[conn_id] = cls(conn_id)
        watch = poller._join(batch_ids, max(poll_interval, _SHORTEST_INTERVAL_S), deadline)
        try:
            yield watch
        finally:
            poller._leave(watch)
            if not poller._watches:
                # One that broke down has a successor in its place already.
                if pollers.get(conn_id) is poller:
                    del pollers[conn_id]
                poller._close()

    def _join(self, batch_ids: Iterable[str], poll_interval: float, deadline: float | None) -> Watch:
        now = self._loop.time()
        # Whoever comes later joins the next poll: a triggerer that loads 1,000 triggers must not start 1,000 polls.
        due = now if self._next_poll is None else min(self._next_poll, now + poll_interval)
        if deadline is not None:
            due = min(due, last_look_at(max(now, deadline)))
        watch = Watch(batch_ids, poll_interval, deadline, due, self._log_thread)
        self._watches.add(watch)
        for batch_id in watch.batch_ids:
            track = self._tracks.setdefault(batch_id, Track())
            track.watches.add(watch)
            for known in (track.last, track.outage):
                if known is not None:
                    watch.deliver(batch_id, known)
        if self._next_poll is None or due < self._next_poll:
            self._joined.set()
        return watch

    def _leave(self, watch: Watch) -> None:
        self._watches.discard(watch)
        for batch_id in watch.batch_ids:
            track = self._tracks[batch_id]
            track.watches.discard(watch)
            if not track.watches:
                del self._tracks[batch_id]

    def _close(self) -> None:
        self._task.cancel()
        self._stopped.set()
        if self._client is not None:
            self._thread.submit(self._client.close)
        self._thread.shutdown()
        self._log_thread.shutdown()

    async def _run(self) -> None:
        try:
            while True:
                await self._until_due()
                started = self._loop.time()
                due = [watch for watch in self._watches if watch.due <= started + 0.1 * watch.poll_interval]
                # Whoever joins while this poll is under way belongs to the next.
                self._next_poll = started + min((watch.poll_interval for watch in due), default=0.0)
                wanted = {batch_id for watch in due for batch_id in self._unfinished(watch)}
                sighting = await self._poll(wanted) if wanted else Sighting()
                await self._settle(wanted, sighting)
                self._schedule(due, sighting, started)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # A defect of ours. Nobody may be left waiting for a loop that is gone.
            log.exception("Polling batches on %s broke down.", self.conn_id)
            failure = OpenAIBatchesError(
                f"Polling batches on {self.conn_id} broke down: {type(error).__name__}: {error}"
            )
            failure.__cause__ = error
            for watch in self._watches:
                watch.deliver("", failure)
            if not isinstance(error, Exception):
                raise

    def _unfinished(self, watch: Watch) -> Iterator[str]:
        for batch_id in watch.batch_ids:
            last = self._tracks[batch_id].last
            if last is None or not last.is_terminal:
                yield batch_id

    async def _until_due(self) -> None:
        while True:
            self._joined.clear()
            if not self._watches:
                self._next_poll = None
                await self._joined.wait()
                continue
            self._next_poll = max(min(watch.due for watch in self._watches), self._not_before)
            delay = self._next_poll - self._loop.time()
            if delay <= 0:
                return
            try:
                async with asyncio.timeout(delay):
                    await self._joined.wait()
            except TimeoutError:
                return

    async def _poll(self, wanted: set[str]) -> Sighting:
        try:
            client = await self._connected()
        except OpenAIBatchesError as error:
            return Sighting(outage=error)
        # Those that failed last come last, so that they cannot keep the others from being asked.
        asked = sorted(wanted & self._tracks.keys(), key=lambda batch_id: self._tracks[batch_id].failed_at)
        sighting = await self._look(client, asked)
        # Key, permissions or host may have been changed in the connection. The old key may still be good: then only
        # the batches bought since are not found.
        self._connection_doubted = sighting.outage is not None or any(
            isinstance(error, (NotFoundError, PermissionDeniedError)) for error in sighting.errors.values()
        )
        return sighting

    async def _look(self, client: BatchClient, asked: Sequence[str]) -> Sighting:
        """Look at batches; while later ones are asked for, hand out what was seen of the earlier."""
        pages: asyncio.Queue[Mapping[str, Batch]] = asyncio.Queue()

        def tell(page: Mapping[str, Batch]) -> None:
            # A loop that is closed has nobody left to tell.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(pages.put_nowait, page)

        def counted_look() -> Sighting:
            # In the thread: what it tells may end the last wait, and the loop with it, before the look is over.
            sighting = look(client, asked, self._stopped, tell)
            polled(self.conn_id, sighting.calls, sighting.failures)
            return sighting

        looking = self._loop.run_in_executor(self._thread, counted_look)
        looking.add_done_callback(lambda _: pages.put_nowait({}))
        try:
            while page := await pages.get():
                async for batch_id, track in self._in_portions(page):
                    track.saw(batch_id, page[batch_id])
            return await looking
        finally:
            looking.cancel()

    async def _in_portions(self, batch_ids: Iterable[str]) -> AsyncIterator[tuple[str, Track]]:
        """Give the batches that somebody watches, and the loop its time in between."""
        for number, batch_id in enumerate(batch_ids, start=1):
            if number % _TOLD_AT_ONCE == 0:
                await asyncio.sleep(0)
            track = self._tracks.get(batch_id)
            if track is not None:
                yield batch_id, track

    async def _connected(self) -> BatchClient:
        if self._client is not None and not self._connection_doubted:
            return self._client
        try:
            settings = await read_settings(self.conn_id, self._thread)
        except OpenAIBatchesError:
            # What takes the service away may take the secrets backend with it. The client we have may still be good.
            if self._client is None:
                raise
            return self._client
        if self._client is None or self._client.settings != settings:
            if self._client is not None:
                log.info("Connection %s has changed: polling goes on with the new one.", self.conn_id)
                self._thread.submit(self._client.close)
            self._client = BatchClient(settings, attempts=1)
        return self._client

    async def _settle(self, wanted: Iterable[str], sighting: Sighting) -> None:
        now = self._loop.time()
        clock = time.time() - now
        async for batch_id, track in self._in_portions(wanted):
            batch = sighting.batches.get(batch_id)
            if batch is not None:
                track.saw(batch_id, batch)
                continue
            error = sighting.errors.get(batch_id)
            if error is not None:
                if track.patience.outage_since is None and sighting.outage is None:
                    log.warning("Looking at batch %s fails, trying again until it works: %s", batch_id, error)
                track.failed_at = now
            trouble = error or sighting.outage
            if trouble is not None and (news := track.judge(trouble, now, clock)) is not None:
                track.deliver(batch_id, news)

    def _schedule(self, due: Iterable[Watch], sighting: Sighting, started: float) -> None:
        now = self._loop.time()
        self._report(sighting, now)
        if sighting.outage is not None:
            self._failed_polls += 1
            self._not_before = now + min(sighting.outage.retry_after_s or 0.0, _LONGEST_RETRY_AFTER_S)
        elif sighting.answered:
            self._failed_polls = 0
        # One factor for all, so that waiters of one interval stay in one poll. Below 1, so that none waits longer, also
        # where a poll takes a little longer than the last to come to its page.
        jitter = random.uniform(0.9, 0.98)  # noqa: S311
        for watch in due:
            interval = backoff_s(watch.poll_interval, self._failed_polls if sighting.outage else 0)
            # A poll that takes longer than the interval is followed by a pause as long as the excess.
            due_at = max(started + interval * jitter, now + min(now - started - interval, _LONGEST_BACKOFF_S))
            watch.schedule(due_at, looked_at=started)

    def _report(self, sighting: Sighting, now: float) -> None:
        if sighting.outage is not None and not self._failed_polls:
            log.warning(
                "Looking at batches on %s fails, trying again until it works: %s", self.conn_id, sighting.outage
            )
        elif sighting.outage is None and sighting.answered and self._failed_polls:
            log.info("Looking at batches on %s works again.", self.conn_id)
        self._calls += sighting.calls
        passed_s = now - self._calls_since
        if passed_s >= self._report_after_s:
            log.info(
                "%d waiters share one poll loop on %s: %d batches, %.1f calls a minute.",
                len(self._watches),
                self.conn_id,
                len(self._tracks),
                self._calls * 60 / passed_s,
            )
            self._calls, self._calls_since, self._report_after_s = 0, now, _REPORT_EVERY_S
