"""Which batches have ended since the last look, each told once, however late it ends and whatever restarts."""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

import msgspec

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import NotFoundError, OpenAIBatchesError
from airflow_provider_openai_batches.api.listing import PAGE_SIZE
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.api.retry import UNKNOWN_BATCH_GRACE_S
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.polling import backoff_s, read_settings
from airflow_provider_openai_batches.sighting import DaemonThread, look
from airflow_provider_openai_batches.telemetry import polled

log = logging.getLogger(__name__)

LISTED_LATE_S = 3600
"""How much later than a younger batch one may turn up in the listing, be it that the clocks of the servers differ.

Each look lists the batches of that time, and a cursor keeps the ids of those that ended. At 10,000 batches a day that
is 5 calls and 24 kB, at the 2,000 an hour that OpenAI lets a project create 21 calls and 110 kB, and never more.
"""

_FORGOTTEN_AFTER_S = 30 * 86_400
_LONGEST_PAUSE_S = 3600.0
_WAIT_FOR_READERS_S = 0.1
_CONNECTION_GOOD_FOR_S = 300.0
"""A survey never ends: where a connection moves to another project, an old key that stays good would serve for ever."""


class Survey(msgspec.Struct, frozen=True):
    """Batches as they were found at one look.

    :param batches: all that the listing has from ``reach`` on, and those older ones that were asked for, by id
    :param reach: no batch that was created since then is missing; unix time
    :param is_first: whether it also has all batches that may not be over yet
    :param now: when it was made, by our clock; unix time
    :param gone: batches that were asked for and that the service does not know, for minutes already
    """

    batches: Mapping[str, Batch]
    reach: float
    is_first: bool
    now: float
    gone: Collection[str] = ()


class Cursor(msgspec.Struct, frozen=True):
    """What was seen so far, as small as it can be and still tell no batch twice and leave none out.

    :param since: when the newest batch was created, but never ahead of our clock: one that is years ahead, by whichever
        clock, would make all that come after it look old
    :param open: batches that were not over yet. They may end in any order, long after younger ones
    :param done: those that were over, by id with their time of creation, as far as a look at new ones shows them again
    """

    since: int = 0
    open: frozenset[str] = frozenset()
    done: dict[str, int] = {}

    def reach(self, now: float) -> float:
        """Return from which time of creation on a batch may be new.

        A little ahead of the clock ``since`` stays as it is, since ``done`` knows nothing older; far ahead, the clock
        has gone back since then.
        """
        return (self.since if self.since <= now + LISTED_LATE_S else int(now)) - LISTED_LATE_S

    def is_served_by(self, survey: Survey) -> bool:
        """Whether the survey goes back far enough to leave out nothing."""
        return survey.reach <= self.reach(survey.now)

    def after(self, survey: Survey, matches: Callable[[Batch], bool]) -> tuple[Cursor, list[Batch]]:
        """Return the cursor to go on with, and the batches that have ended since, the oldest first.

        :param survey: one that serves this cursor
        :param matches: which batches count at all; the same for a batch whenever it is asked
        """
        still_open, done, ended = set(self.open.difference(survey.gone)), dict(self.done), list[Batch]()
        newest = max((batch.created_at or 0 for batch in survey.batches.values()), default=0)
        reach = self.reach(survey.now)
        since = max(int(reach) + LISTED_LATE_S, min(newest, int(survey.now)))
        for batch in sorted(survey.batches.values(), key=lambda batch: (batch.created_at or 0, batch.id)):
            created_at = batch.created_at or 0
            is_new = created_at >= reach and batch.id not in self.done
            if not (is_new or batch.id in self.open) or not matches(batch):
                continue
            if batch.is_terminal:
                still_open.discard(batch.id)
                done[batch.id] = created_at
                ended.append(batch)
            elif created_at >= since - _FORGOTTEN_AFTER_S:
                still_open.add(batch.id)
            else:
                still_open.discard(batch.id)
        recent = {batch_id: created for batch_id, created in done.items() if created >= since - LISTED_LATE_S}
        return Cursor(since, frozenset(still_open), recent), ended

    def to_json(self) -> dict[str, object]:
        """Return plain types, the ids as one text: a thousand open batches take 40 kB."""
        return {"since": self.since, "open": " ".join(sorted(self.open)), "done": self.done}

    @classmethod
    def from_json(cls, value: object) -> Cursor:
        """Read what :meth:`to_json` wrote.

        :raises msgspec.ValidationError: it is something else
        """
        kept = msgspec.convert(value, _Kept)
        return cls(kept.since, frozenset(kept.open.split()), kept.done)


class _Kept(msgspec.Struct):
    since: int
    open: str
    done: dict[str, int]


Readers = Callable[[], Collection[Cursor | None]]
"""The cursors of all who read a stream of surveys; None for one who begins."""


async def surveys(conn_id: str, poll_interval: float, readers: Readers) -> AsyncGenerator[Survey]:
    """Look again and again, for ever: what the service or the connection lacks is waited for.

    :param conn_id: Airflow connection
    :param poll_interval: seconds between looks
    :param readers: asked before each look, how far back it has to go and which older batches it has to find
    """
    loop = asyncio.get_running_loop()
    thread, stopped = DaemonThread(f"openai-batches-survey-{conn_id}"), threading.Event()
    surveyor: _Surveyor | None = None
    failures, read_again_at = 0, 0.0
    try:
        while True:
            cursors = list(readers())
            if not cursors:
                await asyncio.sleep(_WAIT_FOR_READERS_S)
                continue
            pause = poll_interval
            try:
                # After a failure the connection is read again: its key may have been the trouble.
                if surveyor is None or failures or loop.time() >= read_again_at:
                    known = None if surveyor is None else surveyor.client.settings
                    settings = await _settings(conn_id, thread, known)
                    read_again_at = loop.time() + _CONNECTION_GOOD_FOR_S
                    if surveyor is None or settings != known:
                        if surveyor is not None:
                            log.info("Connection %s has changed: looking goes on with the new one.", conn_id)
                            thread.submit(surveyor.client.close)
                        surveyor = _Surveyor(BatchClient(settings, attempts=1), stopped)
                try:
                    survey = await loop.run_in_executor(thread, surveyor.look, cursors)
                finally:
                    polled(conn_id, *surveyor.tally())
            except OpenAIBatchesError as error:
                failures += 1
                if failures == 1:
                    log.warning("Looking for ended batches on %s fails, trying again: %s", conn_id, error)
                pause = max(backoff_s(poll_interval, failures), min(error.retry_after_s or 0.0, _LONGEST_PAUSE_S))
            else:
                if failures:
                    log.info("Looking for ended batches on %s works again.", conn_id)
                failures = 0
                yield survey
            await asyncio.sleep(pause)
    finally:
        stopped.set()
        if surveyor is not None:
            thread.submit(surveyor.client.close)
        thread.shutdown()


async def _settings(conn_id: str, executor: Executor, known: ClientSettings | None) -> ClientSettings:
    """Read the connection, or go on with what is known of it: that may still be good."""
    try:
        return await read_settings(conn_id, executor)
    except OpenAIBatchesError:
        if known is None:
            raise
        return known


@dataclass
class _Surveyor:
    """Makes the calls. Blocking.

    :param client: makes one attempt per call
    :param stopped: set when nobody waits for the answer any more
    :param unknown: batches the service does not know, by id with the time they were first asked for in vain
    :param warned: whether nothing that is new by its clock would be told, which was said
    :param calls: HTTP requests made since the last tally
    :param failures: what went wrong with some of them
    """

    client: BatchClient
    stopped: threading.Event
    unknown: dict[str, float] = field(default_factory=dict)
    warned: bool = False
    calls: int = 0
    failures: list[OpenAIBatchesError] = field(default_factory=list)

    def tally(self) -> tuple[int, list[OpenAIBatchesError]]:
        """Return the calls made since this was asked last, and the errors of those that failed."""
        counted = self.calls, self.failures
        self.calls, self.failures = 0, []
        return counted

    def look(self, cursors: Collection[Cursor | None]) -> Survey:
        """Find what all these cursors want.

        :raises OpenAIBatchesError: the service did not answer
        """
        known = [cursor for cursor in cursors if cursor is not None]
        is_first = len(known) < len(cursors)
        wall = time.time()
        reaches = [cursor.reach(wall) for cursor in known]
        try:
            batches, reach, newest = self._listed(min(reaches, default=math.inf), wall, is_first=is_first)
        except OpenAIBatchesError as error:
            self.failures.append(error)
            raise
        self._warn_if_deaf(newest, max(reaches, default=-math.inf))
        older = sorted({batch_id for cursor in known for batch_id in cursor.open} - batches.keys())
        sighting = look(self.client, older, self.stopped)
        self.calls += sighting.calls
        self.failures += sighting.failures
        if sighting.outage is not None and not sighting.batches and not batches:
            raise sighting.outage
        now = time.monotonic()
        missing = [batch_id for batch_id, error in sighting.errors.items() if isinstance(error, NotFoundError)]
        self.unknown = {batch_id: self.unknown.get(batch_id, now) for batch_id in missing}
        gone = [batch_id for batch_id, first in self.unknown.items() if now - first >= UNKNOWN_BATCH_GRACE_S]
        if gone:
            log.warning("The service does not know batches it listed before: %s", ", ".join(gone))
        return Survey({**batches, **sighting.batches}, reach, is_first, wall, gone)

    def _warn_if_deaf(self, newest: int, reach: float) -> None:
        is_deaf = 0 < newest < reach
        if is_deaf and not self.warned:
            log.warning(
                "The newest batch that the service lists is of %s, long before others that it listed earlier: its "
                "clock has gone back, or the connection leads elsewhere now. The end of a new batch is not told if "
                "the service says that it was created before %s.",
                _shown(newest),
                _shown(reach),
            )
        self.warned = is_deaf

    def _listed(self, since: float, now: float, *, is_first: bool) -> tuple[dict[str, Batch], float, int]:
        """Return the batches from a moment on, that moment, and when the newest of all was created, if any was."""
        batches: dict[str, Batch] = {}
        newest = 0
        self.calls += 1
        for seen, batch in enumerate(self.client.list_batches()):
            if seen and seen % PAGE_SIZE == 0:
                self.calls += 1
            # One without a time cannot be told from an old one.
            if batch.created_at is None:
                continue
            newest = max(newest, batch.created_at)
            reach = min(since, min(newest, now) - self.client.settings.dialect.longest_life_s) if is_first else since
            if batch.created_at < reach or self.stopped.is_set():
                return batches, reach, newest
            batches[batch.id] = batch
        return batches, -math.inf, newest


def _shown(moment: float) -> str:
    return f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%d %H:%M} UTC"
