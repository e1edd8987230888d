"""A process that lives in an emulator's time: its sleeps move that clock instead of passing.

``time.time``, ``time.monotonic`` and ``time.sleep`` are replaced, so this has to be installed before anything keeps a
reference to them. Event loops come from :class:`VirtualLoop`. While a thread works, time stands still.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import time
import urllib.request
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_LATE_S = 0.001


class DoesNotEndError(BaseException):
    """More time has passed than any wait should take. Not an Exception: nobody is to handle it."""


class EmulatorTime:
    """The time of an emulator, and of this process once it is installed.

    :param base_url: of the emulator
    :param now: unix time it shows
    :param most_s: seconds after which a wait is given up
    """

    def __init__(self, base_url: str, now: float, most_s: float) -> None:
        self._control = base_url.removesuffix("/v1") + "/emulator/"
        self._began = now
        self._most_s = most_s
        self.passed = 0.0

    @property
    def now(self) -> float:
        """Unix time."""
        return self._began + self.passed

    def sleep(self, seconds: float) -> None:
        """Let time pass, here and at the service.

        :raises DoesNotEndError: too much has passed
        """
        if self.passed >= self._most_s:
            raise DoesNotEndError
        # A real pause is a little longer, too. One of nothing at all would be repeated for ever.
        seconds = max(seconds, 0.0) + _LATE_S
        self.passed += seconds
        self.tell("POST", "advance", {"seconds": seconds})

    def tell(self, method: str, what: str, body: Any = None) -> None:
        """Make one of the emulator's own calls."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._control + what, data=content, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()


current: EmulatorTime | None = None


def install() -> None:
    """Let this process live in the time that :data:`current` is set to."""
    real = time.time, time.monotonic, time.sleep

    time.time = lambda: real[0]() if current is None else current.now
    # A small number: an event loop's timers differ by nanoseconds, which a unix time cannot tell apart.
    time.monotonic = lambda: real[1]() if current is None else current.passed
    time.sleep = lambda seconds: real[2](seconds) if current is None else current.sleep(float(seconds))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the emulator's time, as ``asyncio.run`` does in real time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait for the next timer, but moves the clock to it."""

    def __init__(self) -> None:
        self.busy = 0
        super().__init__(_Jumping(self))

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Count what threads are at work on."""
        self.busy += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._is_done)
        return future

    def _is_done(self, _: object) -> None:
        self.busy -= 1


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0 or current is None:
            return super().select(timeout)
        if self._loop.busy:
            return super().select(None)  # The thread wakes the loop when it is done.
        ready = super().select(0)
        if not ready:
            current.sleep(timeout)
        return ready
