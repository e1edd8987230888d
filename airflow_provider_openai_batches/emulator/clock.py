"""The emulator's own time: it can run faster than real time, stand still, or be moved by hand."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import time
from collections.abc import Callable, Iterator

_DUE_TOLERANCE_S = 1e-6  # several small advances must reach the same moment as one large one


class VirtualClock:
    """Virtual time for the tasks of one event loop.

    There are two readings. ``elapsed`` schedules work: it is the virtual time this data directory has been served for,
    so it stands still while the emulator is down. ``now`` is what the API shows: it is never behind the real clock at
    start, so a client that compares timestamps with its own is not misled after a restart.

    Every task that lives on the clock runs inside :meth:`working`. The clock counts how many of them are busy, which
    lets :meth:`advance` wait until all that was due has happened.

    :param elapsed: virtual seconds already served, from the last run
    :param now: the last unix time shown; a later real time wins
    :param speed: virtual seconds per real second; 0 stands still until advanced
    :param per_look: virtual seconds by which every :meth:`look` moves it ahead
    :param moved: called when the clock has been moved by hand
    """

    def __init__(
        self,
        *,
        elapsed: float = 0.0,
        now: float = 0.0,
        speed: float = 1.0,
        per_look: float = 0.0,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self.per_look = per_look
        self._speed = speed
        self._moved = moved
        self._base = elapsed
        self._real_base = time.monotonic()
        self._epoch = max(now, time.time()) - elapsed
        self._sleepers: dict[int, tuple[float, asyncio.Future[None]]] = {}
        self._alarms: list[tuple[float, int]] = []  # a heap; an entry whose sleeper has gone is skipped
        self._timer: asyncio.TimerHandle | None = None
        self._busy = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._one_advance = asyncio.Lock()

    def elapsed(self) -> float:
        """Virtual seconds served so far."""
        return self._base + (time.monotonic() - self._real_base) * self._speed

    def now(self) -> int:
        """Unix seconds to show in the API's objects."""
        return int(self._epoch + self.elapsed())

    def reading(self) -> tuple[float, float]:
        """What a later clock needs to go on from here: ``elapsed`` and the unix time shown."""
        elapsed = self.elapsed()
        return elapsed, self._epoch + elapsed

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Mark the body as work that :meth:`advance` has to wait for."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Mark the body, within :meth:`working`, as waiting for something that does not live on this clock."""
        self._end()
        try:
            yield
        finally:
            self._begin()

    async def sleep_until(self, due: float, *, key: int) -> None:
        """Sleep, within :meth:`working`, until ``elapsed`` reaches ``due`` or somebody wakes ``key``.

        :param due: an ``elapsed`` reading; ``math.inf`` sleeps until woken
        :param key: names the sleeper; of those due at the same moment, the lowest wakes first
        """
        if due <= self.elapsed():
            return
        future = asyncio.get_running_loop().create_future()
        self._sleepers[key] = (due, future)
        heapq.heappush(self._alarms, (due, key))
        self._end()
        self._arm()
        try:
            await future
        except asyncio.CancelledError:
            if not future.done() or future.cancelled():
                self._begin()  # nobody woke us, so nobody has counted us as busy
            raise
        finally:
            self._sleepers.pop(key, None)

    def wake(self, key: int) -> None:
        """End the sleep of ``key`` now; nothing happens if it does not sleep."""
        sleeper = self._sleepers.pop(key, None)
        if sleeper is not None and not sleeper[1].done():
            # Counted as busy from here, not from the task's next step: advance() must not slip in between.
            self._begin()
            sleeper[1].set_result(None)

    async def advance(self, seconds: float) -> None:
        """Move ahead, stopping at every moment at which something is due, and wait until it has happened."""
        async with self._one_advance:
            target = self.elapsed() + seconds
            await self._settle()
            while (due := self._next_due()) <= target + _DUE_TOLERANCE_S:
                self._jump_to(due)
                self.wake(self._alarms[0][1])
                await self._settle()  # after each, so that what is due together happens in a known order
            self._jump_to(target)
            self._moved()
            self._arm()

    async def look(self) -> None:
        """Somebody looks at a batch: let the time pass that passes between looks."""
        if self.per_look > 0:
            await self.advance(self.per_look)

    def stop(self) -> None:
        """Drop the timer; sleepers are left to whoever cancels them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._busy += 1
        self._quiet.clear()

    def _end(self) -> None:
        self._busy -= 1
        if self._busy == 0:
            self._quiet.set()

    async def _settle(self) -> None:
        while self._busy:
            await self._quiet.wait()

    def _next_due(self) -> float:
        while self._alarms:
            due, key = self._alarms[0]
            sleeper = self._sleepers.get(key)
            if sleeper is not None and sleeper[0] == due:
                return due
            heapq.heappop(self._alarms)
        return math.inf

    def _jump_to(self, elapsed: float) -> None:
        self._base += max(0.0, elapsed - self.elapsed())

    def _arm(self) -> None:
        self.stop()
        due = self._next_due()
        if self._speed > 0 and due < math.inf:
            delay = max(0.0, (due - self.elapsed()) / self._speed)
            self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def _fire(self) -> None:
        elapsed = self.elapsed() + _DUE_TOLERANCE_S
        while self._next_due() <= elapsed:
            self.wake(self._alarms[0][1])
        self._arm()
