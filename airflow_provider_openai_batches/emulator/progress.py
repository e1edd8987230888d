"""How far a running batch is: what its ``request_counts`` show."""

from __future__ import annotations

import array
import bisect
import dataclasses
import math
from typing import Protocol

from airflow_provider_openai_batches.emulator.results import Spooled


class Progress(Protocol):
    """How far a running batch is."""

    def counts(self, elapsed: float) -> tuple[int, int]:
        """Completed and failed requests at this reading of the clock."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class ClockedProgress:
    """Requests that finish evenly over ``seconds``, those at the ``failing`` positions with an error."""

    began: float
    seconds: float
    total: int
    failing: array.array[int]

    def finished(self, elapsed: float) -> int:
        """Requests done, completed or failed."""
        if elapsed >= self.began + self.seconds:
            return self.total
        return max(0, math.floor(self.total * (elapsed - self.began) / self.seconds + 1e-9))

    def counts(self, elapsed: float) -> tuple[int, int]:
        """See :class:`Progress`."""
        done = self.finished(elapsed)
        failed = bisect.bisect_left(self.failing, done)
        return done - failed, failed


@dataclasses.dataclass(slots=True)
class UpstreamProgress:
    """Requests an upstream has answered."""

    completed: int = 0
    failed: int = 0

    def count(self, spooled: Spooled) -> None:
        """Count an answer."""
        self.completed += spooled.ok
        self.failed += not spooled.ok

    def counts(self, elapsed: float) -> tuple[int, int]:
        """See :class:`Progress`."""
        return self.completed, self.failed
