from __future__ import annotations

import math

import pytest

from airflow_provider_openai_batches.api.error_answers import status_error
from airflow_provider_openai_batches.api.errors import (
    APIConnectionError,
    CreateOutcomeUnknownError,
    DownloadIncompleteError,
    InvalidInputError,
    InvalidResponseError,
    OpenAIBatchesError,
)
from airflow_provider_openai_batches.api.retry import (
    LONGEST_WAIT_S,
    OUTAGE_GRACE_S,
    UNKNOWN_BATCH_GRACE_S,
    Patience,
    is_retryable,
    outlasts,
    retrying,
)

BACKOFF = [(0.5, 1.0), (1.0, 1.5), (2.0, 2.5), (4.0, 4.5)]
"""Shortest and longest pause before the 2nd, 3rd, 4th and 5th attempt."""


def refused(status: int, code: str | None = None, **headers: str) -> OpenAIBatchesError:
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    body = b"{}" if code is None else b'{"error": {"message": "m", "code": "%s"}}' % code.encode()
    return status_error("GET /batches", status, names, body)


def run(error: Exception, attempts: int = 5) -> tuple[int, list[float]]:
    """Calls made, and pauses between them, when every call ends with this error."""
    calls, pauses = 0, []

    def call() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)) as raised:
        retrying(attempts=attempts, sleep=pauses.append)(call)
    assert raised.value is error
    return calls, pauses


@pytest.mark.parametrize(
    "error",
    [
        refused(408),
        refused(409),
        refused(429),
        refused(500),
        refused(502),
        refused(503),
        refused(504),
        refused(400, x_should_retry="true"),
        refused(429, retry_after="soon"),
        refused(429, retry_after="inf"),
        refused(429, retry_after="0"),
        refused(429, retry_after="-1"),
        APIConnectionError("reset"),
        DownloadIncompleteError("cut"),
    ],
    ids=str,
)
def test_a_transient_error_is_retried_with_growing_pauses(error: OpenAIBatchesError) -> None:
    calls, pauses = run(error)
    assert calls == 5
    for pause, (least, most) in zip(pauses, BACKOFF, strict=True):
        assert least <= pause <= most


@pytest.mark.parametrize(
    "error",
    [
        refused(400),
        refused(401),
        refused(403),
        refused(404),
        refused(413),
        refused(422),
        refused(429, "insufficient_quota"),
        refused(429, "insufficient_quota", x_should_retry="true", retry_after="1"),
        refused(429, "billing_hard_limit_reached"),
        refused(429, "token_limit_exceeded"),
        refused(400, "token_limit_exceeded", x_should_retry="true"),
        refused(500, x_should_retry="false"),
        refused(429, retry_after="121"),
        refused(503, retry_after_ms="3600000"),
        APIConnectionError("no trust", transient=False),
        InvalidResponseError("HTML"),
        InvalidInputError("endpoint", "no path"),
        KeyError("a bug of ours"),
    ],
    ids=repr,
)
def test_any_other_error_ends_the_call_at_once(error: Exception) -> None:
    assert run(error) == (1, [])


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (refused(429, retry_after="7"), 7.0),
        (refused(503, retry_after_ms="250"), 0.25),
        (refused(429, retry_after=f"{LONGEST_WAIT_S:.0f}"), LONGEST_WAIT_S),
    ],
)
def test_the_pause_a_server_asks_for_is_kept(error: OpenAIBatchesError, seconds: float) -> None:
    assert run(error) == (5, [seconds] * 4)


def test_backoff_does_not_grow_forever() -> None:
    assert max(run(refused(500), attempts=12)[1]) <= 8.5


def test_one_attempt_means_no_repetition() -> None:
    assert run(refused(500), attempts=1) == (1, [])


def test_success_ends_the_repetition() -> None:
    outcomes = iter([refused(500), refused(429), None])

    def call() -> str:
        if error := next(outcomes):
            raise error
        return "answer"

    pauses: list[float] = []
    assert retrying(attempts=5, sleep=pauses.append)(call) == "answer"
    assert len(pauses) == 2


def test_an_interrupt_is_never_retried() -> None:
    assert not is_retryable(KeyboardInterrupt())


@pytest.mark.parametrize(
    ("error", "outage_s", "watched_s", "goes_on"),
    [
        (refused(500), 0, 0, True),
        (refused(500), 86_400, 86_400, True),
        (refused(429), 86_400, 86_400, True),
        (refused(503, retry_after="9999"), 86_400, 86_400, True),
        (APIConnectionError("refused"), math.inf, math.inf, True),
        (CreateOutcomeUnknownError("lost"), 86_400, 86_400, True),
        (refused(401), 0, 86_400, True),
        (refused(401), OUTAGE_GRACE_S - 1, 86_400, True),
        (refused(401), OUTAGE_GRACE_S, 86_400, False),
        (refused(403), OUTAGE_GRACE_S - 1, 86_400, True),
        (refused(403), OUTAGE_GRACE_S, 86_400, False),
        (InvalidResponseError("HTML"), OUTAGE_GRACE_S - 1, 86_400, True),
        (InvalidResponseError("HTML"), OUTAGE_GRACE_S, 86_400, False),
        (refused(404), 0, UNKNOWN_BATCH_GRACE_S - 1, True),
        (refused(404), 0, UNKNOWN_BATCH_GRACE_S, False),
    ],
)
def test_a_long_wait_outlasts_outages(
    error: OpenAIBatchesError, outage_s: float, watched_s: float, goes_on: bool
) -> None:
    assert outlasts(error, outage_s=outage_s, watched_s=watched_s) is goes_on


def verdicts(*looks: tuple[int | None, float]) -> list[bool]:
    """Whether the wait goes on after each look: (HTTP status or None if the batch was seen, time)."""
    patience = Patience()
    verdicts = []
    for status, now in looks:
        if status is None:
            patience.recovered()
        else:
            verdicts.append(patience.outlasts(refused(status), now))
    return verdicts


def test_patience_with_a_refusal_starts_with_the_refusal() -> None:
    end = 10_000 + OUTAGE_GRACE_S
    assert verdicts((503, 0), (401, 10_000), (401, end - 1), (401, end)) == [True, True, True, False]


def test_patience_starts_anew_with_another_kind_of_refusal_or_a_sighting() -> None:
    ended = OUTAGE_GRACE_S + 1
    assert verdicts((401, 0), (403, ended), (403, ended + 1)) == [True, True, True]
    assert verdicts((401, 0), (None, 1), (401, ended)) == [True, True]
    assert verdicts((404, 0), (404, UNKNOWN_BATCH_GRACE_S)) == [True, False]


def test_an_outage_begins_with_its_first_failure_and_ends_with_a_sighting() -> None:
    patience = Patience()
    patience.outlasts(refused(503), 7)
    patience.outlasts(refused(401), 9)
    assert patience.outage_since == 7
    patience.recovered()
    assert patience.outage_since is None
