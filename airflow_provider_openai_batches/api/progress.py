"""When a wait has something to say, and what."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator

from airflow_provider_openai_batches.api.models import Batch, BatchStatus

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
    return "; ".join([f"Batch {batch.id} is {batch.status}", *_requests([batch], time_left_s(batch, now), now)])


def describe_all(batches: Collection[Batch], waited_for: int, now: float) -> str:
    """Say where many batches stand together.

    :param batches: as last seen
    :param waited_for: how many there are, seen or not
    :param now: unix time
    """
    counts = Counter(batch.status for batch in batches)
    statuses = ", ".join(f"{count:,} {status}" for status, count in counts.most_common())
    lefts = [time_left_s(batch, now) for batch in batches if not batch.is_terminal]
    known = [left_s for left_s in lefts if left_s is not None]
    # They run side by side. One that nothing is known of could be the last.
    is_known = known and len(known) == len(lefts) and len(batches) == waited_for
    return "; ".join(
        [f"Of {waited_for:,} batches: {statuses}", *_requests(batches, max(known) if is_known else None, now)]
    )


def time_left_s(batch: Batch, now: float) -> float | None:
    """Return the seconds a batch still needs for its requests at its rate so far; None while it has no rate.

    :param batch: as seen now
    :param now: unix time
    """
    rate = _rate(batch, now)
    return None if rate is None else (batch.request_counts.total - _done(batch)) / rate


def duration(seconds: float) -> str:
    """Return a time span as people say it, in minutes at the finest."""
    minutes = round(seconds / 60)
    if minutes >= 48 * 60:
        return f"{minutes // 1440} d {minutes % 1440 // 60} h"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def _requests(batches: Collection[Batch], left_s: float | None, now: float) -> Iterator[str]:
    """What is known of the requests of batches, as far as anything is."""
    total = sum(batch.request_counts.total for batch in batches)
    if not total:
        return
    done, failed = sum(map(_done, batches)), sum(batch.request_counts.failed for batch in batches)
    yield f"{done:,} of {total:,} requests done" + (f", {failed:,} of them failed" if failed else "")
    rates = [rate for batch in batches if (rate := _rate(batch, now)) is not None]
    if not rates or done >= total:
        return
    # Rounded to what was really seen: a slow batch has no rate of 0.
    a_minute = sum(rates) * 60
    pace = f"{a_minute:,.0f} a minute" if a_minute >= 1 else f"{a_minute * 60:,.1f} an hour"
    yield pace if left_s is None else f"{pace}, about {duration(left_s)} left"
    if (expires_in_s := _expires_first_in_s(batches, now)) is not None:
        yield f"at this rate a batch expires before it is done, in {duration(expires_in_s)}"


def _expires_first_in_s(batches: Collection[Batch], now: float) -> float | None:
    """Seconds until the first of the batches expires that will not be done by then."""
    late = [
        max(batch.expires_at - now, 0.0)
        for batch in batches
        if batch.expires_at is not None
        and (left_s := time_left_s(batch, now)) is not None
        and now + left_s > batch.expires_at
    ]
    return min(late, default=None)


def _done(batch: Batch) -> int:
    return batch.request_counts.completed + batch.request_counts.failed


def _rate(batch: Batch, now: float) -> float | None:
    """Requests per second since the batch began; None before the first is done, and when no more are worked on."""
    running_s = now - batch.in_progress_at if batch.in_progress_at else 0.0
    done = _done(batch)
    is_running = batch.status == BatchStatus.IN_PROGRESS and running_s > 0
    return done / running_s if is_running and 0 < done <= batch.request_counts.total else None
