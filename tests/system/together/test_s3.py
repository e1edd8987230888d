"""Jobs on S3, in a real Airflow whose connection leads to a local server."""

from __future__ import annotations

import pytest

from tests.system.dags.reuse import QUESTIONS, ROWS
from tests.system.together.bucket import Bucket
from tests.system.together.conftest import TICKETS
from tests.system.together.run import Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

CHAT = ("POST", "/v1/chat/completions")


def test_rows_in_a_bucket_become_results_in_the_bucket(from_bucket: Run, s3: Bucket) -> None:
    manifest = from_bucket.finish()
    assert len(from_bucket.service.batches()) == len(manifest["batch_ids"]) == 3
    assert all(path.startswith(f"{s3.uri}/out/results/") for path in manifest["results"])
    results = s3.results(manifest)
    assert [row["custom_id"] for row in results] == TICKETS
    assert {row["status"] for row in results} == {"succeeded"}
    assert from_bucket.xcom("count") == len(TICKETS)


def test_a_second_run_buys_nothing_and_the_first_finishes_its_last_rows_without_a_batch(
    with_cache: Run, s3: Bucket
) -> None:
    service = with_cache.service

    manifest = with_cache.finish()

    assert (manifest["requests"], manifest["succeeded"]) == (ROWS, ROWS)
    assert (manifest["direct"]["requests"], manifest["reused"]["duplicates"]) == (2, ROWS - QUESTIONS)
    assert (len(service.batches()), service.count(*CHAT)) == (1, 2)
    rows = s3.results(manifest)
    assert [row["custom_id"] for row in rows] == [f"row-{n}" for n in range(ROWS)]
    assert [row["output"] for row in rows[QUESTIONS:]] == [row["output"] for row in rows[: ROWS - QUESTIONS]]
    assert s3.keys("reuse/answers/")

    again = with_cache.begin_again().finish()

    assert (again["succeeded"], again["batch_ids"], again["reused"]["cache"]) == (ROWS, [], QUESTIONS)
    assert again["output_path"] != manifest["output_path"]
    assert [row["output"] for row in s3.results(again)] == [row["output"] for row in rows]
    assert (len(service.batches()), service.count(*CHAT)) == (1, 2)
