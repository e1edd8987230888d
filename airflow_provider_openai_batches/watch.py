"""Who waits for which batches, and what is new for them."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import Batch

_LAST_LOOKS_EVERY_S = 0.5
"""Last looks wait for the next full half second, so that a thousand triggers that run out together share one."""


@dataclass(frozen=True)
class Outage:
    """The service has not answered for a while; the wait goes on.

    :param error: the latest error
    :param since: unix time of the first one; the same for all batches of a waiter
    """

    error: OpenAIBatchesError
    since: float


News = dict[str, Batch] | Outage
Trouble = Outage | OpenAIBatchesError


class Watch:
    """One waiter's view: batches as they change. Only the latest news of each batch is kept.

    :param batch_ids: what is watched
    :param poll_interval: seconds between looks
    :param deadline: loop time from which one more look is wanted, the last; None if the waiter has all the time
    :param due: loop time of the first look
    :param log_thread: where lines are logged
    """

    def __init__(
        self,
        batch_ids: Iterable[str],
        poll_interval: float,
        deadline: float | None,
        due: float,
        log_thread: Executor,
    ) -> None:
        self.batch_ids = frozenset(batch_ids)
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.due = due
        self._looks_are_over = False
        self._seen: dict[str, Batch] = {}
        self._trouble: dict[str, Trouble] = {}
        self._arrived = asyncio.Event()
        self._log_thread = log_thread

    async def next(self) -> News:
        """Return all that was seen since the last call, by batch id; if nothing was, the outage that hides it.

        :raises OpenAIBatchesError: a batch cannot be followed any more
        :raises TimeoutError: the last look is over and all it found is read
        """
        while not self._seen and not self._trouble:
            if self._looks_are_over:
                raise TimeoutError
            self._arrived.clear()
            await self._arrived.wait()
        if self._seen:
            seen, self._seen = self._seen, {}
            return seen
        troubles, self._trouble = list(self._trouble.values()), {}
        for trouble in troubles:
            if isinstance(trouble, OpenAIBatchesError):
                raise trouble
        return min((trouble for trouble in troubles if isinstance(trouble, Outage)), key=lambda outage: outage.since)

    async def log(self, write: Callable[[], None]) -> None:
        """Write a log line without holding up the event loop.

        A line goes to the triggerer's supervisor, which reads none while it writes events to the database: with
        thousands of waiters, that takes seconds. What is seen meanwhile is kept.

        :param write: logs it
        """
        context = contextvars.copy_context()  # The triggerer tells by it whose line it is.
        await asyncio.get_running_loop().run_in_executor(self._log_thread, context.run, write)

    def deliver(self, batch_id: str, news: Batch | Trouble) -> None:
        """Hand over news; replaces what the waiter has not read yet about the same batch."""
        if isinstance(news, Batch):
            self._trouble.pop(batch_id, None)
            self._seen[batch_id] = news
        else:
            self._trouble[batch_id] = news
        self._arrived.set()

    def schedule(self, due: float, looked_at: float) -> None:
        """Note that a look is over, and when the next one is due: at the deadline at the latest.

        :param due: loop time of the next look by the interval alone
        :param looked_at: loop time at which the look began
        """
        self.due = due
        if self.deadline is not None and looked_at >= self.deadline:
            self._looks_are_over = True
            self._arrived.set()
        elif self.deadline is not None:
            self.due = min(due, last_look_at(self.deadline))


def last_look_at(deadline: float) -> float:
    """When the last look for a deadline begins, not before it; both in loop time."""
    return math.ceil(deadline / _LAST_LOOKS_EVERY_S) * _LAST_LOOKS_EVERY_S
