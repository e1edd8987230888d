"""Rows of one job that ask the same are bought once, if the user says so, and each has its own result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.engine import ShardRefusedError, Stopped, Waiting, advance
from airflow_provider_openai_batches.jobs.pricing import Price
from airflow_provider_openai_batches.jobs.verdict import RowsFailedError, raise_for_results
from tests.jobs.world import World

NewWorld = Callable[..., World]
PRICES = {"gpt-4o-mini": Price(input=1.0, output=2.0)}
ABOVE_TOKENS = 1_000_000


def asked(custom_id: str, prompt: str, **more: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "prompt": prompt, "context": {"prompt": prompt, "id": custom_id}, **more}


@pytest.fixture
def new_world(new_world: NewWorld) -> NewWorld:
    """Worlds in which rows that ask the same are bought once."""
    return lambda **options: new_world(**{"deduplicate": True} | options)


def test_rows_that_ask_the_same_are_bought_once_and_each_has_its_own_result(new_world: NewWorld) -> None:
    rows = [asked(f"id-{index}", f"say {index % 5}") for index in range(33)]
    world = new_world(rows=rows, per_batch=2, prices=PRICES)
    outcome = world.run()
    results = world.check_results(outcome)
    assert [(row["custom_id"], row["context"]["id"]) for row in results] == [(f"id-{n}", f"id-{n}") for n in range(33)]
    assert world.answered() == {f"id-{index}": 1 for index in range(5)}
    for row in results[5:]:
        original = results[row["index"] % 5]
        assert (row["attempts"], row["usage"]) == (0, None)
        same = ("status", "output", "error", "finish_reason", "model", "batch_id", "request_id")
        assert [row[name] for name in same] == [original[name] for name in same]


def test_manifest_counts_tokens_of_duplicates_as_reused_and_no_other_way(new_world: NewWorld) -> None:
    world = new_world(rows=[asked(f"id-{index}", f"say {index % 2}") for index in range(6)], prices=PRICES)
    outcome = world.run()
    manifest, bought = outcome.manifest, world.check_results(outcome)[:2]
    for name, count in manifest["usage"].items():
        assert count == sum(row["usage"][name] for row in bought)
        assert manifest["reused"]["usage"][name] == 2 * count
    reused = manifest["reused"]
    assert (reused["kept"], reused["cache"], reused["duplicates"]) == (0, 0, 4)
    assert reused["cost"] == pytest.approx(2 * manifest["cost"])
    tokens = reused["usage"]
    assert reused["cost"] * ABOVE_TOKENS == pytest.approx(tokens["input_tokens"] + 2 * tokens["output_tokens"])


def test_who_does_not_say_so_buys_the_same_prompt_five_times(new_world: NewWorld) -> None:
    world = new_world(rows=["say it"] * 5, deduplicate=False)
    outcome = world.run()
    assert sum(world.answered().values()) == 5
    assert outcome.manifest["reused"]["duplicates"] == 0
    assert outcome.manifest["reused"]["cost"] is None, "no prices are known"


def test_estimate_and_max_cost_count_only_what_is_sent(new_world: NewWorld) -> None:
    def estimate(rows: list[str], **options: Any) -> float:
        manifest = new_world(rows=rows, prices=PRICES, dry_run=True, **options).run().manifest
        return manifest["estimated_cost"]

    once = estimate(["say it"])
    assert estimate(["say it"] * 9) == once
    assert estimate(["say it"] * 9, deduplicate=False) == pytest.approx(9 * once)
    assert new_world(rows=["say it"] * 9, prices=PRICES, max_cost=once).run().manifest["succeeded"] == 9
    with pytest.raises(InvalidInputError, match="max_cost"):
        new_world(rows=["say it"] * 9, prices=PRICES, max_cost=once, deduplicate=False).run()


def test_same_text_for_another_model_or_with_other_options_is_another_question(new_world: NewWorld) -> None:
    rows = [
        asked("a", "say it"),
        asked("b", "say it", model="gpt-4.1-mini"),
        {"custom_id": "c", "body": {"messages": [{"role": "user", "content": "say it"}], "temperature": 0}},
        asked("d", "say it", model="gpt-4.1-mini"),
        asked("e", "say it"),
    ]
    world = new_world(rows=rows)
    outcome = world.run()
    assert world.answered() == {"a": 1, "b": 1, "c": 1}
    assert [row["model"] for row in world.check_results(outcome)] == [
        world.check_results(outcome)[original]["model"] for original in (0, 1, 2, 1, 0)
    ]


def test_duplicates_of_a_failed_row_fail_with_its_reason_and_count_as_failed(new_world: NewWorld) -> None:
    world = new_world(rows=["bad", "good", "bad", "bad"], max_attempts=1)
    world.add_faults({"on": {"custom_id": "row-0"}, "do": {"outcome": "error"}})
    outcome = world.run()
    results = world.check_results(outcome)
    assert [row["status"] for row in results] == ["failed", "succeeded", "failed", "failed"]
    assert results[2]["error"] == results[3]["error"] == results[0]["error"] is not None
    assert list(outcome.manifest["by_error"].values()) == [3]
    with pytest.raises(RowsFailedError, match="3 of 4 rows"):
        raise_for_results(outcome.manifest, 2)


def test_duplicates_get_what_the_last_round_of_their_original_brings(new_world: NewWorld) -> None:
    world = new_world(rows=["say it", "other", "say it"])
    world.add_faults({"on": {"custom_id": "row-0"}, "do": {"outcome": "server_error"}, "times": 1})
    outcome = world.run()
    assert [(row["status"], row["attempts"]) for row in world.check_results(outcome)] == [
        ("succeeded", 2),
        ("succeeded", 1),
        ("succeeded", 0),
    ]
    assert outcome.manifest["rounds"] == 2


def test_refused_and_stopped_jobs_have_a_row_for_each_duplicate(new_world: NewWorld) -> None:
    fault = {"outcome": "failed", "errors": [{"code": "model_not_found", "message": "No such model."}]}
    world = new_world(rows=["say it"] * 3)
    world.add_faults({"on": {"batch": {}}, "do": fault})
    with pytest.raises(ShardRefusedError, match="0 of 3 rows"):
        world.run()
    assert world.run().manifest["succeeded"] == 3
    late = new_world(rows=["say it"] * 3)
    late.add_faults({"on": {"batch": {}}, "do": {"outcome": "stuck", "status": "validating", "seconds": 90_000}})
    outcome = late.run(late.attempt(timeout_s=1))
    assert isinstance(outcome, Stopped)
    assert [row["status"] for row in late.check_results(outcome)] == [outcome.manifest["by_status"].popitem()[0]] * 3


def test_parquet_results_have_the_duplicates_too(new_world: NewWorld) -> None:
    pytest.importorskip("pyarrow")
    embeddings = {"endpoint": "/v1/embeddings", "model": "text-embedding-3-small"}
    rows = [{"custom_id": f"id-{index}", "input": f"text {index % 2}"} for index in range(6)]
    world = new_world(rows=rows, output_format="parquet", **embeddings)
    results = world.check_results(world.run())
    assert world.answered() == {"id-0": 1, "id-1": 1}
    assert [row["output"] for row in results] == [results[index % 2]["output"] for index in range(6)]


def test_retry_goes_on_with_the_plan_it_finds(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b", "a"])
    assert isinstance(advance(world.attempt()), Waiting)
    retried = new_world(location=world.location, rows=["something else"], deduplicate=False)
    outcome = retried.run()
    assert [row["output"] for row in retried.check_results(outcome)][::2] == 2 * [
        retried.check_results(outcome)[0]["output"]
    ]
    assert outcome.manifest["reused"]["duplicates"] == 1


class TestReplan:
    def test_clear_keeps_originals_and_duplicates(self, new_world: NewWorld) -> None:
        world = new_world(rows=[asked("a", "one"), asked("b", "one"), asked("c", "two")], prices=PRICES)
        before = world.run()
        rows = world.check_results(before)
        outcome = world.run(max_tries=1)
        assert world.check_results(outcome) == rows
        manifest = outcome.manifest
        assert (manifest["kept"], manifest["reused"]["kept"], manifest["reused"]["duplicates"]) == (3, 3, 0)
        assert manifest["reused"]["usage"] == before.manifest["usage"]
        assert manifest["reused"]["cost"] == before.manifest["cost"]
        assert manifest["cost"] == 0.0

    def test_duplicate_is_kept_when_its_original_asks_something_else(self, new_world: NewWorld) -> None:
        world = new_world(rows=[asked("a", "one"), asked("b", "one")])
        world.run()
        world.rows = [asked("a", "other"), asked("b", "one"), asked("c", "one"), asked("d", "other")]
        outcome = world.run(max_tries=1)
        world.check_results(outcome)
        assert world.answered() == {"a": 2}, "once in each run"
        reused = outcome.manifest["reused"]
        assert (reused["kept"], reused["duplicates"]) == (1, 2)

    def test_new_row_that_asks_what_a_kept_one_asks_is_not_bought(self, new_world: NewWorld) -> None:
        world = new_world(rows=[asked("a", "one")])
        world.run()
        world.rows = [asked("a", "one"), asked("b", "one")]
        outcome = world.run(max_tries=1)
        world.check_results(outcome)
        assert outcome.manifest["batch_ids"] == []
        assert world.answered() == {"a": 1}

    def test_failed_original_is_bought_again_for_all_its_duplicates(self, new_world: NewWorld) -> None:
        world = new_world(rows=["bad", "bad", "bad"], max_attempts=1)
        world.add_faults({"on": {"custom_id": "row-0"}, "do": {"outcome": "error"}, "times": 1})
        assert world.run().manifest["failed"] == 3
        outcome = world.run(max_tries=1)
        assert [row["status"] for row in world.check_results(outcome)] == ["succeeded"] * 3
        assert world.sent() == {"row-0": 2}

    def test_files_of_the_plan_before_are_gone(self, new_world: NewWorld) -> None:
        world = new_world(rows=["a", "a", "b"])
        world.run()
        world.rows = ["c", "c"]
        world.check_results(world.run(max_tries=1))
        plans = {path.name.split(".")[0] for path in world.location.glob("_job/plan-*")}
        assert plans == {f"plan-{world.ledger.plan}"}


@pytest.mark.parametrize("deduplicate", [True, False])
def test_cleared_task_buys_no_answer_that_the_run_before_has_under_another_custom_id(
    new_world: NewWorld, deduplicate: bool
) -> None:
    world = new_world(rows=[asked("old", "say it"), asked("gone", "say that")], deduplicate=deduplicate)
    before = world.check_results(world.run())
    world.rows = [asked("new", "say it"), asked("old", "say it"), asked("other", "say that"), asked("last", "say this")]
    outcome = world.run(max_tries=1)
    results = world.check_results(outcome)
    assert outcome.manifest["reused"]["kept"] == (3 if deduplicate else 1)
    assert world.answered() == {"old": 1, "gone": 1, "last": 1} | ({} if deduplicate else {"new": 1, "other": 1})
    assert [row["custom_id"] for row in results] == ["new", "old", "other", "last"]
    assert [row["context"]["id"] for row in results] == ["new", "old", "other", "last"]
    if deduplicate:
        assert [row["request_id"] for row in results[:3]] == [before[at]["request_id"] for at in (0, 0, 1)]
