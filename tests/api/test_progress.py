"""What is said about batches on their way: counts, rate, and a time left that is true or not said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.models import Batch, BatchStatus, RequestCounts
from airflow_provider_openai_batches.api.progress import Progress, describe, describe_all, duration, time_left_s

BEGAN = 1_700_000_000


def batch(done: int, total: int, *, failed: int = 0, status: str = "in_progress", **fields: Any) -> Batch:
    counts = RequestCounts(total=total, completed=done - failed, failed=failed)
    fields = {"id": "batch_1", "in_progress_at": BEGAN, **fields}
    return Batch(status=status, request_counts=counts, **fields)


@pytest.mark.parametrize(
    ("seen", "after_s", "said"),
    [
        (batch(0, 0, status="validating"), 10, "Batch batch_1 is validating"),
        (batch(0, 1_000), 600, "Batch batch_1 is in_progress; 0 of 1,000 requests done"),
        (
            batch(2_500, 10_000, failed=100),
            600,
            "Batch batch_1 is in_progress; 2,500 of 10,000 requests done, 100 of them failed; 250 a minute, about "
            "30 min left",
        ),
        (
            batch(10, 1_000),
            36_000,
            "Batch batch_1 is in_progress; 10 of 1,000 requests done; 1.0 an hour, about 41 d 6 h left",
        ),
        (
            batch(100, 1_000, expires_at=BEGAN + 7_200),
            3_600,
            "Batch batch_1 is in_progress; 100 of 1,000 requests done; 2 a minute, about 9 h 0 min left; at this rate "
            "a batch expires before it is done, in 1 h 0 min",
        ),
        # The rest of these takes no more requests: no rate tells how long it lasts.
        (batch(1_000, 1_000, status="finalizing"), 600, "Batch batch_1 is finalizing; 1,000 of 1,000 requests done"),
        (batch(500, 1_000, status="cancelling"), 600, "Batch batch_1 is cancelling; 500 of 1,000 requests done"),
        (batch(500, 1_000, status="expired"), 600, "Batch batch_1 is expired; 500 of 1,000 requests done"),
        (batch(500, 1_000, status="paused"), 600, "Batch batch_1 is paused; 500 of 1,000 requests done"),
        # A service that does not say when it began, a clock that is behind, and counts that cannot be.
        (batch(5, 10, in_progress_at=None), 600, "Batch batch_1 is in_progress; 5 of 10 requests done"),
        (batch(5, 10), -5, "Batch batch_1 is in_progress; 5 of 10 requests done"),
        (batch(12, 10), 60, "Batch batch_1 is in_progress; 12 of 10 requests done"),
    ],
)
def test_one_batch(seen: Batch, after_s: float, said: str) -> None:
    assert describe(seen, BEGAN + after_s) == said


def test_many_batches_are_done_when_the_slowest_is() -> None:
    seen = [
        batch(100, 100, status="completed"),
        batch(500, 1_000, failed=10, id="batch_2"),
        batch(100, 1_000, id="batch_3"),
    ]
    assert describe_all(seen, 3, BEGAN + 600) == (
        "Of 3 batches: 2 in_progress, 1 completed; 700 of 2,100 requests done, 10 of them failed; 60 a minute, about "
        "1 h 30 min left"
    )


@pytest.mark.parametrize(
    ("other", "waited_for"),
    [(batch(0, 0, status="validating"), 2), (batch(0, 100), 2), (batch(100, 100, status="finalizing"), 2), (None, 2)],
)
def test_a_batch_that_nothing_is_known_of_leaves_the_time_open(other: Batch | None, waited_for: int) -> None:
    seen = [batch(500, 1_000), *([other] if other else [])]
    said = describe_all(seen, waited_for, BEGAN + 600)
    assert "50 a minute" in said
    assert "left" not in said


@given(
    st.sampled_from([*BatchStatus, "a new status"]),
    st.integers(0, 60_000),
    st.integers(0, 60_000),
    st.integers(-100, 10**6),
)
def test_a_time_left_is_never_made_up(status: str, done: int, total: int, after_s: int) -> None:
    left_s = time_left_s(batch(done, total, status=status), BEGAN + after_s)
    if status != "in_progress" or not 0 < done <= total or after_s <= 0:
        assert left_s is None
    else:
        assert left_s == pytest.approx((total - done) * after_s / done)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 min"), (89, "1 min"), (3_599, "1 h 0 min"), (172_799, "2 d 0 h"), (100_000, "27 h 47 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_comes_with_a_new_status_or_five_minutes_after_the_last_with_new_counts() -> None:
    progress = Progress()
    seen = [(0, 0), (10, 299), (10, 301), (10, 900), (20, 901), (30, 1_200), (30, 1_202)]
    said = [now for done, now in seen if progress.line(batch(done, 100), BEGAN + now)]
    assert said == [0, 301, 901, 1_202]
    assert progress.line(batch(30, 100, status="cancelling"), BEGAN + 1_203)
