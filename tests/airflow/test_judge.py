"""What becomes of an earlier attempt's batch: every case."""

from __future__ import annotations

import itertools

import pytest

from airflow_provider_openai_batches.api.models import Batch, BatchStatus, RequestCounts
from airflow_provider_openai_batches.operators.submission import Verdict, judge

ADOPT, CREATE_ANEW, REFUSE, WAIT = Verdict.ADOPT, Verdict.CREATE_ANEW, Verdict.REFUSE, Verdict.WAIT

NOTHING = {"request_counts": RequestCounts(total=3), "output_file_id": None}
SOME = {"request_counts": RequestCounts(total=3, completed=1), "output_file_id": "file-1"}
UNCOUNTED = {"request_counts": RequestCounts(), "output_file_id": "file-1"}
"""As services report it that send no counts."""
ANSWERS = {"nothing": NOTHING, "some": SOME, "uncounted": UNCOUNTED}

CASES = [
    # status, answers, verdict for a retry, verdict after a clear
    ("validating", "nothing", ADOPT, ADOPT),
    ("in_progress", "nothing", ADOPT, ADOPT),
    ("in_progress", "some", ADOPT, ADOPT),
    ("finalizing", "some", ADOPT, ADOPT),
    ("paused", "nothing", ADOPT, ADOPT),
    ("cancelling", "nothing", WAIT, CREATE_ANEW),
    ("cancelling", "some", WAIT, CREATE_ANEW),
    ("failed", "nothing", CREATE_ANEW, CREATE_ANEW),
    ("completed", "some", ADOPT, CREATE_ANEW),
    ("completed", "uncounted", ADOPT, CREATE_ANEW),
    ("completed", "nothing", CREATE_ANEW, CREATE_ANEW),
    ("expired", "some", REFUSE, CREATE_ANEW),
    ("expired", "uncounted", REFUSE, CREATE_ANEW),
    ("expired", "nothing", CREATE_ANEW, CREATE_ANEW),
    ("cancelled", "some", REFUSE, CREATE_ANEW),
    ("cancelled", "uncounted", REFUSE, CREATE_ANEW),
    ("cancelled", "nothing", CREATE_ANEW, CREATE_ANEW),
]


@pytest.mark.parametrize(("status", "answers", "retried", "cleared"), CASES)
def test_verdict(status: str, answers: str, retried: Verdict, cleared: Verdict) -> None:
    batch = Batch(id="batch_1", status=status, **ANSWERS[answers])
    assert judge(batch, cleared=False) is retried
    assert judge(batch, cleared=True) is cleared


def test_no_status_is_forgotten() -> None:
    assert set(BatchStatus) <= {status for status, *_ in CASES}


@pytest.mark.parametrize(("status", "answers"), itertools.product(BatchStatus, ("some", "uncounted")))
def test_a_retry_never_buys_answers_again(status: str, answers: str) -> None:
    if status != BatchStatus.FAILED:  # a batch that failed validation has no answers
        assert judge(Batch(id="batch_1", status=status, **ANSWERS[answers]), cleared=False) is not CREATE_ANEW
