"""The one retry policy: which errors are tried again, after how long, and how long an outage is waited out.

Two scales of patience live here. A single call is repeated for seconds (:func:`retrying`). A wait of hours survives
outages of hours (:class:`Patience`): the batch goes on without us, so giving up would only lose sight of paid work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import tenacity

from airflow_provider_openai_batches.api.errors import NotFoundError, OpenAIBatchesError, QueueFullError

log = logging.getLogger(__name__)

DEFAULT_ATTEMPTS = 5
LONGEST_WAIT_S = 120.0
"""A server that asks for a longer pause gets the error raised instead: a worker should not sleep that long."""

OUTAGE_GRACE_S = 600.0
"""How long errors that look permanent (401, 403, a proxy's page) are tolerated while waiting: keys get rotated,
permissions take a while to spread, and maintenance pages come with any status."""

UNKNOWN_BATCH_GRACE_S = 120.0
"""How long 404 is tolerated for a batch that is new to us: reads may lag behind the create."""

_backoff = tenacity.wait_exponential(multiplier=0.5, max=8) + tenacity.wait_random(0, 0.5)


def is_retryable(error: BaseException) -> bool:
    """Whether the same call is worth repeating within seconds."""
    return (
        isinstance(error, OpenAIBatchesError)
        and error.transient
        and not isinstance(error, QueueFullError)
        and (error.retry_after_s or 0) <= LONGEST_WAIT_S
    )


def wait_s(state: tenacity.RetryCallState) -> float:
    """Seconds before the next attempt: what the server asks for, else exponential backoff with jitter.

    A server that asks for no pause at all, or for one that ended in the past, gets the backoff too.
    """
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, OpenAIBatchesError) else None
    return asked or _backoff(state)


def retrying(
    *,
    attempts: int,
    sleep: Callable[[float], None],
    retry_if: Callable[[BaseException], bool] = is_retryable,
) -> tenacity.Retrying:
    """Build the driver that repeats a call under this policy and raises its last error.

    :param attempts: calls in all, 1 for no repetition
    :param sleep: called with seconds between attempts
    :param retry_if: which errors are repeated
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(retry_if),
        wait=wait_s,
        stop=tenacity.stop_after_attempt(attempts),
        sleep=sleep,
        before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
        reraise=True,
    )


def outlasts(error: OpenAIBatchesError, *, outage_s: float, watched_s: float) -> bool:
    """Decide whether a long wait goes on after a failed poll.

    :param error: what the poll ended with
    :param outage_s: seconds since the first of the failures in a row, 0 for the first
    :param watched_s: seconds since the batch was first asked for
    """
    if isinstance(error, NotFoundError):
        return watched_s < UNKNOWN_BATCH_GRACE_S
    return error.transient or outage_s < OUTAGE_GRACE_S


@dataclass
class Patience:
    """What a long wait remembers of the looks at one batch that failed in a row.

    :param outage_since: time of the first of them; None if the latest look did not fail
    :param refusal: kind of the latest error, if it is not one that passes by itself
    :param refused_since: time of the first of its kind in a row
    """

    outage_since: float | None = None
    refusal: type[OpenAIBatchesError] | None = None
    refused_since: float = 0.0

    def outlasts(self, error: OpenAIBatchesError, now: float) -> bool:
        """Take note of a look that failed, and decide whether the wait goes on.

        :param error: what it ended with
        :param now: time of it, in seconds on a clock that never goes back
        """
        self.outage_since = now if self.outage_since is None else self.outage_since
        # Patience with a refusal starts with the refusal: hours of 503 before a 401 say nothing about the key.
        refusal = None if error.transient else type(error)
        if refusal is not self.refusal:
            self.refusal, self.refused_since = refusal, now
        refused_s = now - self.refused_since
        return outlasts(error, outage_s=refused_s, watched_s=refused_s)

    def recovered(self) -> None:
        """Forget the trouble: the batch was seen."""
        self.outage_since, self.refusal = None, None
