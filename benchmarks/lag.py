"""How late an event loop is and how long an unrelated ``asyncio.to_thread`` takes in it, garbage collection apart.

Python's collector stops the loop and every thread for as long as it looks through all objects of the process. How often
it does, and for how long, is the process's: so each sample says how much of it passed in there.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import NamedTuple

TICK_S = 0.02
_THREAD_EVERY_S = 0.1


class Sample(NamedTuple):
    """One look at the loop.

    :param of: ``loop`` or ``to_thread``
    :param at: unix time
    :param late_s: seconds it took longer than with nothing else to do
    :param collecting_s: seconds of these in which the garbage collector ran
    """

    of: str
    at: float
    late_s: float
    collecting_s: float


class Lag(NamedTuple):
    """What samples come to, in milliseconds. ``own`` is without the garbage collector."""

    loop_p99: float
    loop_worst: float
    loop_own_worst: float
    thread_worst: float
    thread_own_worst: float
    collector_worst: float

    @classmethod
    def of(cls, samples: Collection[Sample]) -> Lag:
        """Sum up; 0 for what there is no sample of."""
        loop, thread = ([each for each in samples if each.of == name] for name in ("loop", "to_thread"))
        late = sorted(each.late_s for each in loop) or [0.0]
        return cls(
            late[int(0.99 * len(late))] * 1e3,
            late[-1] * 1e3,
            _worst_ms(each.late_s - each.collecting_s for each in loop),
            _worst_ms(each.late_s for each in thread),
            _worst_ms(each.late_s - each.collecting_s for each in thread),
            _worst_ms(each.collecting_s for each in samples),
        )


def _worst_ms(seconds: Iterable[float]) -> float:
    return max(seconds, default=0.0) * 1e3


@contextlib.asynccontextmanager
async def sampled(note: Callable[[Sample], object]) -> AsyncIterator[None]:
    """Take samples of this loop until the block is left.

    :param note: what to do with each
    """
    collector = _Collector()
    gc.callbacks.append(collector)
    tasks = [asyncio.create_task(work) for work in (_tick(collector, note), _use_thread(collector, note))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        gc.callbacks.remove(collector)


class _Collector:
    """Adds up the seconds in which the garbage collector runs."""

    def __init__(self) -> None:
        self._done_s, self._began = 0.0, 0.0

    def __call__(self, phase: str, _: dict[str, int]) -> None:
        now = time.perf_counter()
        self._done_s, self._began = (self._done_s, now) if phase == "start" else (self.seconds, 0.0)

    @property
    def seconds(self) -> float:
        """So far. A thread that waited for a collection may go on before the collector has said that it is over."""
        return self._done_s + (time.perf_counter() - self._began if self._began else 0.0)


async def _tick(collector: _Collector, note: Callable[[Sample], object]) -> None:
    while True:
        began, collected = time.perf_counter(), collector.seconds
        await asyncio.sleep(TICK_S)
        late = max(0.0, time.perf_counter() - began - TICK_S)
        note(Sample("loop", time.time(), late, min(late, collector.seconds - collected)))


async def _use_thread(collector: _Collector, note: Callable[[Sample], object]) -> None:
    """Do what any other trigger may: a short thing that blocks, off the loop."""
    while True:
        began, collected = time.perf_counter(), collector.seconds
        await asyncio.to_thread(time.sleep, 0)
        took = time.perf_counter() - began
        note(Sample("to_thread", time.time(), took, min(took, collector.seconds - collected)))
        await asyncio.sleep(_THREAD_EVERY_S)
