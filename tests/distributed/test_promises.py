"""The promises, held against what the service and S3 have on record after all that was done to the Airflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from tests.distributed.conftest import Outcome
from tests.distributed.workload import SHORT_BATCH, Work, jobs

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

ROW_IDS = [work.custom_id(run, number) for run, work in jobs() for number in range(work.rows)]


def fated(fate: str, ids: Iterable[str] = ROW_IDS) -> set[str]:
    return {custom_id for custom_id in ids if custom_id.endswith(fate)}


def in_short_batches() -> set[str]:
    short = [(run, work) for run, work in jobs() if work.dag_id == "fleet"]
    wanted = tuple(f"{run}-{work.task_id}-{SHORT_BATCH}-" for run, work in short)
    return {custom_id for custom_id in ROW_IDS if custom_id.startswith(wanted)}


def test_every_job_succeeded(outcome: Outcome) -> None:
    failed = {job: ended.log for job, ended in outcome.jobs.items() if ended.state != "success"}
    assert not failed
    assert set(outcome.jobs) == {(run, work.task_id) for run, work in jobs()}


@pytest.mark.parametrize(("run", "work"), [pytest.param(*job, id=f"{job[0]}-{job[1].task_id}") for job in jobs()])
def test_each_row_has_one_result_in_its_place_and_its_status_is_true(outcome: Outcome, run: str, work: Work) -> None:
    rows = outcome.rows[run, work.task_id]
    assert [row["custom_id"] for row in rows] == [work.custom_id(run, number) for number in range(work.rows)]
    assert [row["context"]["number"] for row in rows] == list(range(work.rows))
    failed = {row["custom_id"] for row in rows if row["status"] != "succeeded"}
    assert failed == fated("doomed", (row["custom_id"] for row in rows))
    assert all(row["output"] for row in rows if row["status"] == "succeeded")
    assert {row["error"]["code"] for row in rows if row["status"] == "failed"} == {"content_policy"}


def test_every_answer_was_bought_once(outcome: Outcome) -> None:
    assert outcome.bought.answered == dict.fromkeys(set(ROW_IDS) - fated("doomed"), 1)


def test_a_request_was_sent_again_only_after_a_scripted_failure(outcome: Outcome) -> None:
    bought = outcome.bought
    assert bought.sent == bought.answered + bought.errors + bought.unrun
    assert set(bought.errors.values()) == {1}
    assert bought.errors.keys() <= fated("flaky") | fated("doomed")
    assert fated("doomed") <= bought.errors.keys()
    assert set(bought.unrun.values()) == {1}
    assert bought.unrun.keys() <= in_short_batches()


def test_each_round_of_a_shard_is_one_batch(outcome: Outcome) -> None:
    names = ("airflow_job", "airflow_shard", "airflow_round")
    rounds = Counter(tuple(batch["metadata"][name] for name in names) for batch in outcome.batches)
    assert set(rounds.values()) == {1}, rounds
    of_first_rounds = [batch for batch in outcome.batches if batch["metadata"]["airflow_round"] == "1"]
    assert len(of_first_rounds) == sum(work.shards for _, work in jobs())


def test_no_batch_was_left_open_and_none_was_cancelled(outcome: Outcome) -> None:
    assert {batch["status"] for batch in outcome.batches} == {"completed", "expired"}
    assert not [batch["id"] for batch in outcome.batches if batch["cancelling_at"]]


def test_every_manifest_knows_all_batches_of_its_job(outcome: Outcome) -> None:
    known = [batch_id for ended in outcome.jobs.values() for batch_id in ended.manifest["batch_ids"]]
    assert sorted(known) == sorted(batch["id"] for batch in outcome.batches)


def test_nothing_is_left_of_the_run(outcome: Outcome) -> None:
    assert outcome.survivors == []
    assert outcome.remains == []
