"""When a wait has something to say, and what."""

from __future__ import annotations

import time

from airflow_provider_openai_batches.api.models import Batch

QUIET_S = 300.0
"""Seconds without a line while only counts change: a log line of a deferred task is not free."""


class Progress:
    """Turns the sightings of one batch into log lines: at once for a new status, else every five minutes at most."""

    def __init__(self) -> None:
        self._said: Batch | None = None
        self._said_at = 0.0

    def line(self, batch: Batch, now: float | None = None) -> str | None:
        """Return what to log about this sighting, if anything.

        :param batch: as seen now
        :param now: unix time; default: the clock
        """
        now = time.time() if now is None else now
        said = self._said
        if said is not None and said.status == batch.status:
            changed = said.request_counts != batch.request_counts
            if not changed or now - self._said_at < QUIET_S:
                return None
        self._said, self._said_at = batch, now
        return describe(batch, now)


def describe(batch: Batch, now: float) -> str:
    """Say where a batch stands: status, counts, rate and the time left at that rate."""
    counts = batch.request_counts
    parts = [f"Batch {batch.id} is {batch.status}"]
    if counts.total:
        done = counts.completed + counts.failed
        failed = f", {counts.failed:,} of them failed" if counts.failed else ""
        parts.append(f"{done:,} of {counts.total:,} requests done{failed}")
        left_s = time_left_s(batch, now)
        if left_s is not None and done < counts.total:
            rate = (counts.total - done) / left_s
            parts.append(f"{rate * 60:,.0f} a minute, about {_duration(left_s)} left")
    return "; ".join(parts)


def time_left_s(batch: Batch, now: float) -> float | None:
    """Return the seconds a batch still needs for its requests at its rate so far; None while it has no rate.

    :param batch: as seen now
    :param now: unix time
    """
    counts = batch.request_counts
    done = counts.completed + counts.failed
    running_s = now - batch.in_progress_at if batch.in_progress_at else 0.0
    if batch.is_terminal or running_s <= 0 or not 0 < done <= counts.total:
        return None
    return (counts.total - done) * running_s / done


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(minutes, 1)} min"
