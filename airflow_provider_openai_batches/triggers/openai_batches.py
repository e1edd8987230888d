"""Waiting for batches in the triggerer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.api.progress import QUIET_S, describe, describe_all
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.compat import ENDED_TASK_STATES, task_state
from airflow_provider_openai_batches.hooks.connection import client_settings
from airflow_provider_openai_batches.polling import BatchPoller
from airflow_provider_openai_batches.watch import Outage

_NO_ANSWER = "No answer for %.0f minutes, still waiting: %s"
_BATCHES_WITH_LINES_OF_THEIR_OWN = 10
_LAST_LOOK_WITHIN_S = 60.0
"""Generous, since the last look may have to wait for a slow one that is under way; a service that hangs ends here."""


class OpenAIBatchTrigger(BaseTrigger):
    """Fires when batches reach a status. All triggers of a connection share one poll loop.

    The event is ``{"status", "batches": {id: batch}, "message"}`` with status ``reached``, ``timeout`` or ``error``
    and every batch as last seen, without the fields that it leaves empty, or None if it was not seen at all.

    :param conn_id: Airflow connection
    :param batch_ids: the batches to watch
    :param poll_interval: seconds between looks
    :param deadline: unix time at which the batches are looked at for the last time, and the wait ends with a
        ``timeout`` event if that does not end it otherwise; None for no end. Absolute, so that a triggerer that
        restarts does not start it over; one that starts after it looks once
    :param until: ``all`` or ``any`` of the batches
    :param target_statuses: statuses that count; a batch that is over always counts, for it will not change again.
        Default: the terminal ones
    :param cancel_on_kill: cancel the batches if a user ends the task while it is deferred (Airflow 3.3)
    """

    _cancelling: ClassVar[set[asyncio.Task[None]]] = set()
    """Cancels under way: the event loop itself would let them be collected."""

    def __init__(
        self,
        *,
        conn_id: str,
        batch_ids: Sequence[str],
        poll_interval: float = 60,
        deadline: float | None = None,
        until: Literal["all", "any"] = "all",
        target_statuses: Collection[str] | None = None,
        cancel_on_kill: bool = False,
    ) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.batch_ids = list(batch_ids)
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.until = until
        self.target_statuses = sorted(map(str, target_statuses)) if target_statuses is not None else None
        self.cancel_on_kill = cancel_on_kill

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer rebuilds this trigger from; no secret is among it."""
        return (
            f"{type(self).__module__}.{type(self).__name__}",
            {
                "conn_id": self.conn_id,
                "batch_ids": self.batch_ids,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "until": self.until,
                "target_statuses": self.target_statuses,
                "cancel_on_kill": self.cancel_on_kill,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, log what changes, and yield one event."""
        tally = Tally(self.batch_ids, self.until, self.target_statuses)
        status, message = "reached", ""
        left_s = None if self.deadline is None else self.deadline - time.time()
        try:
            # The batches may have ended since the last poll, or while no triggerer was up: the deadline has its look.
            async with asyncio.timeout(None if left_s is None else max(left_s, 0.0) + _LAST_LOOK_WITHIN_S):
                await self._wait(tally, left_s)
        except TimeoutError:
            status, message = "timeout", "The deadline passed before the batches were over."
        except OpenAIBatchesError as error:
            status, message = "error", str(error)
        seen = ((batch_id, tally.seen.get(batch_id)) for batch_id in self.batch_ids)
        batches = {batch_id: batch and _without_empty(batch.to_dict()) for batch_id, batch in seen}
        yield TriggerEvent({"status": status, "batches": batches, "message": message})

    async def _wait(self, tally: Tally, left_s: float | None) -> None:
        chronicle = Chronicle(self.batch_ids)
        told_since: float | None = None
        deadline = None if left_s is None else asyncio.get_running_loop().time() + left_s
        async with BatchPoller.watch(
            self.conn_id, self.batch_ids, poll_interval=self.poll_interval, deadline=deadline
        ) as watch:
            while not tally.is_reached:
                news = await watch.next()
                if isinstance(news, Outage):
                    # The outage of a connection is news of each of its batches, but worth one line.
                    if news.since != told_since:
                        told_since = news.since
                        minutes = (time.time() - news.since) / 60
                        await watch.log(partial(self.log.warning, _NO_ANSWER, minutes, news.error))
                    continue
                tally.add(news)
                lines = chronicle.lines(news)
                # What ends the wait is in the event, which Airflow logs: a second line of each of thousands of triggers
                # would make the others' events late.
                if lines and not tally.is_reached:
                    await watch.log(partial(self._say, lines))

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.log.info(line)

    async def on_kill(self) -> None:
        """Cancel the batches, but only if the task really ended.

        Airflow also calls this when a trigger moves to another triggerer. A cleared task is not ended either: its
        next attempt goes on with the batch.
        """
        if not self.cancel_on_kill:
            return
        # The triggerer cancels a trigger anew every second until it is gone, this method included. Cancelling has to
        # survive that, or the batches go on, and cost, without a task.
        work = asyncio.create_task(self._cancel_if_ended())
        self._cancelling.add(work)
        work.add_done_callback(self._cancelling.discard)
        await asyncio.shield(work)

    async def _cancel_if_ended(self) -> None:
        if await task_state(self) in ENDED_TASK_STATES:
            conn = await get_async_connection(self.conn_id)
            settings = client_settings(conn, await get_async_extra_dejson(conn))
            await asyncio.to_thread(self._cancel, settings)

    def _cancel(self, settings: ClientSettings) -> None:
        with BatchClient(settings, attempts=2) as client:
            for batch_id in self.batch_ids:
                try:
                    batch = client.cancel_batch(batch_id)
                except OpenAIBatchesError as error:
                    self.log.error("Batch %s could not be cancelled and goes on: %s", batch_id, error)
                else:
                    self.log.info("The task was ended by a user: batch %s is %s.", batch_id, batch.status)


def _without_empty(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten what Airflow logs, encodes and stores of each event, one after the other, while the others wait."""
    return {name: value for name, value in batch.items() if value not in (None, [], {})}


class Tally:
    """What a wait has seen, and whether that ends it.

    :param batch_ids: batches that are waited for; with none there is nothing to wait for
    :param until: ``all`` or ``any``
    :param target_statuses: statuses that count beside the terminal ones
    """

    def __init__(
        self, batch_ids: Iterable[str], until: Literal["all", "any"], target_statuses: Collection[str] | None
    ) -> None:
        self.seen: dict[str, Batch] = {}
        self._open = set(batch_ids)
        self._total = len(self._open)
        self._until = until
        self._target_statuses = target_statuses or ()

    def add(self, sightings: Mapping[str, Batch]) -> None:
        """Take in batches by id. Costs as much as there is news, however many batches are waited for."""
        self.seen.update(sightings)
        for batch_id, batch in sightings.items():
            if batch.is_terminal or any(map(batch.has_been, self._target_statuses)):
                self._open.discard(batch_id)
            else:
                self._open.add(batch_id)

    @property
    def is_reached(self) -> bool:
        """Whether the wait is over."""
        return not self._open or (self._until == "any" and len(self._open) < self._total)


class Chronicle:
    """Turns the sightings of a wait into log lines, with counts, rate and time left.

    A new status is told at once: by a line for each of a few batches; of many, only if no other has it yet, or none any
    more. What else changes is told in one line, five minutes after the last at the earliest.

    :param batch_ids: the batches that are waited for
    """

    def __init__(self, batch_ids: Iterable[str]) -> None:
        self._waited_for = len(set(batch_ids))
        self._seen: dict[str, Batch] = {}
        self._statuses: Counter[str] = Counter()
        self._is_told = True
        self._told_at = 0.0

    def lines(self, sightings: Mapping[str, Batch], now: float | None = None) -> list[str]:
        """Return what to log about these batches.

        :param sightings: what was seen, by batch id
        :param now: unix time; default: the clock
        """
        now = time.time() if now is None else now
        known = set(self._statuses)
        moved = [batch for batch in sightings.values() if self._take(batch)]
        if moved and self._waited_for <= _BATCHES_WITH_LINES_OF_THEIR_OWN:
            lines = [describe(batch, now) for batch in moved]
        elif set(self._statuses) != known or (not self._is_told and now - self._told_at >= QUIET_S):
            lines = [self._summary(now)]
        else:
            return []
        self._is_told, self._told_at = True, now
        return lines

    def _take(self, batch: Batch) -> bool:
        """Take in a sighting; return whether the batch has another status than before."""
        before = self._seen.get(batch.id)
        self._seen[batch.id] = batch
        if before is not None and before.status == batch.status:
            self._is_told = self._is_told and before.request_counts == batch.request_counts
            return False
        self._is_told = False
        self._statuses[batch.status] += 1
        if before is not None:
            self._statuses[before.status] -= 1
            if not self._statuses[before.status]:
                del self._statuses[before.status]
        return True

    def _summary(self, now: float) -> str:
        if self._waited_for == 1:
            [batch] = self._seen.values()
            return describe(batch, now)
        return describe_all(self._seen.values(), self._waited_for, now)
