"""The virtual time of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator import Emulator


class BatchClock:
    """The emulator's time, which stands still until the test moves it.

    :param emulator: its time
    """

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        emulator.seconds_per_look = 0

    @property
    def now(self) -> int:
        """The virtual time in unix seconds."""
        return self._emulator.now

    @property
    def seconds_per_look(self) -> float:
        """Seconds that pass whenever a client retrieves or lists batches; 0 until it is set."""
        return self._emulator.seconds_per_look

    @seconds_per_look.setter
    def seconds_per_look(self, seconds: float) -> None:
        self._emulator.seconds_per_look = seconds

    def advance(self, seconds: float = 0, *, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Move time ahead, without waiting; all that was due has happened when this returns."""
        self._emulator.advance(seconds + 60 * minutes + 3_600 * hours + 86_400 * days)
