"""Jobs on object storage, in a real Airflow whose connection leads to a local server."""

from __future__ import annotations

import pytest

from tests.stores import Bucket
from tests.system.dags.reuse import QUESTIONS, ROWS
from tests.system.together.conftest import PRICES, STORES, TICKETS
from tests.system.together.run import Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

[PRICE] = PRICES.values()
CHAT = ("POST", "/v1/chat/completions")


@pytest.mark.parametrize("name", STORES)
def test_rows_in_a_bucket_become_results_in_the_bucket(
    from_bucket: dict[str, Run], buckets: dict[str, Bucket], name: str
) -> None:
    run, bucket = from_bucket[name], buckets[name]

    manifest = run.finish()

    assert len(run.service.batches()) == len(manifest["batch_ids"]) == 3
    assert all(path.startswith(f"{bucket.uri}/out/results/") for path in manifest["results"])
    results = bucket.results(manifest)
    assert [row["custom_id"] for row in results] == TICKETS
    assert {row["status"] for row in results} == {"succeeded"}
    assert run.xcom("count") == len(TICKETS)


@pytest.mark.parametrize("name", STORES)
def test_a_second_run_buys_nothing_and_the_first_finishes_its_last_rows_without_a_batch(
    with_cache: dict[str, Run], buckets: dict[str, Bucket], name: str
) -> None:
    run, bucket = with_cache[name], buckets[name]

    manifest = run.finish()

    assert (manifest["requests"], manifest["succeeded"]) == (ROWS, ROWS)
    assert (manifest["direct"]["requests"], manifest["reused"]["duplicates"]) == (2, ROWS - QUESTIONS)
    assert (len(run.service.batches()), run.service.count(*CHAT)) == (1, 2)
    whole, direct = (costs(usage) for usage in (manifest["usage"], manifest["direct"]["usage"]))
    assert manifest["direct"]["cost"] == pytest.approx(2 * direct)
    assert manifest["cost"] == pytest.approx(whole + direct), "a call without a batch costs twice as much"
    rows = bucket.results(manifest)
    assert [row["custom_id"] for row in rows] == [f"row-{n}" for n in range(ROWS)]
    assert [row["output"] for row in rows[QUESTIONS:]] == [row["output"] for row in rows[: ROWS - QUESTIONS]]
    assert bucket.keys("reuse/answers/")

    again = run.begin_again().finish()

    assert (again["succeeded"], again["batch_ids"], again["reused"]["cache"]) == (ROWS, [], QUESTIONS)
    assert again["output_path"] != manifest["output_path"]
    assert [row["output"] for row in bucket.results(again)] == [row["output"] for row in rows]
    assert (len(run.service.batches()), run.service.count(*CHAT)) == (1, 2)


def costs(usage: dict[str, int]) -> float:
    """Return what tokens cost in a batch."""
    return (usage["input_tokens"] * PRICE["input"] + usage["output_tokens"] * PRICE["output"]) / 1_000_000
