"""From rows to results: planning, rounds, trouble, time. Crashes and purchases have files of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_openai_batches.api.errors import (
    AuthenticationError,
    DownloadIncompleteError,
    InvalidInputError,
    OpenAIBatchesError,
    UnreachableError,
)
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.jobs.engine import (
    MOST_TROUBLES,
    Finished,
    ShardRefusedError,
    Stopped,
    Waiting,
    advance,
)
from airflow_provider_openai_batches.jobs.job import Job
from airflow_provider_openai_batches.jobs.landing import MISSING_TRIES, MOST_IDLE_ROUNDS
from airflow_provider_openai_batches.jobs.pricing import parse_prices
from tests.jobs.world import World

NewWorld = Callable[..., World]

SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}},
    "required": ["label"],
    "additionalProperties": False,
}


def by_id(rows: list[dict]) -> dict[str, dict]:
    return {row["custom_id"]: row for row in rows}


# --- planning ------------------------------------------------------------------------------------------------------


def test_every_row_gets_its_own_answer_in_input_order(world: World) -> None:
    outcome = world.run()
    assert isinstance(outcome, Finished)
    rows = world.check_results(outcome)
    assert [row["status"] for row in rows] == ["succeeded"] * 25
    assert world.bought() == {(0, 1): 1, (1, 1): 1, (2, 1): 1}


def test_source_is_read_once_even_if_it_would_say_something_else(new_world: NewWorld) -> None:
    said: list[int] = []

    def changing() -> Iterator[str]:
        said.append(len(said))
        yield from (f"time {said[-1]}, row {index}" for index in range(12))

    world = new_world(rows=changing)
    advance(world.attempt())
    world.pass_time(200)
    outcome = world.run()
    assert said == [0]
    assert all("time 0" in row["output"] for row in world.check_results(outcome))


def test_crash_while_planning_has_bought_nothing_and_is_planned_again(new_world: NewWorld) -> None:
    plans = []

    def dies_once() -> Iterator[str]:
        plans.append("begun")
        for index in range(25):
            if index == 22 and len(plans) == 1:
                raise OSError("the database went away")
            yield f"say {index}, plan {len(plans)}"

    world = new_world(rows=dies_once)
    with pytest.raises(OSError, match="went away"):
        world.run()
    assert world.calls("POST /v1/files") == 0
    rows = world.check_results(world.run())
    assert all(row["output"].endswith("plan 2") for row in rows)
    folders = {path.name for path in (world.location / "_job").glob("shard-*")}
    assert len(folders) == 3, "what the first plan wrote is gone"


def test_bad_row_is_refused_by_number_and_nothing_is_uploaded(new_world: NewWorld) -> None:
    world = new_world(rows=["fine"] * 23 + [{"nothing": "useful"}])
    with pytest.raises(InvalidInputError, match="row 23"):
        world.run()
    assert world.calls("POST /v1/files") == world.calls("POST /v1/batches") == 0


def test_source_without_rows_is_refused(new_world: NewWorld) -> None:
    with pytest.raises(InvalidInputError, match="no row"):
        new_world(rows=[]).run()


def test_mixed_models_go_into_batches_of_one_model_and_come_back_in_input_order(new_world: NewWorld) -> None:
    models = ["gpt-4o-mini", "gpt-4o", "gpt-4.1-mini"]
    rows = [{"prompt": f"say {n}", "model": models[n % 3], "context": {"prompt": f"say {n}"}} for n in range(31)]
    world = new_world(rows=rows, per_batch=4)
    results = world.check_results(world.run())
    assert [row["model"] for row in results] == [row["model"] for row in rows]
    assert set(world.bought().values()) == {1}


def test_estimate_above_max_cost_is_refused_before_anything_is_sent(new_world: NewWorld) -> None:
    prices = parse_prices({"gpt-4o-mini": {"input": 1000.0, "output": 1000.0}})
    world = new_world(prices=prices, max_cost=0.0001)
    with pytest.raises(InvalidInputError, match="max_cost"):
        world.run()
    assert world.calls("POST /v1/files") == 0
    world = new_world(prices=prices, max_cost=1000.0)
    manifest = world.run().manifest
    assert 0 < manifest["estimated_cost"] < 1000
    assert manifest["cost"] > 0


def test_an_estimate_says_whose_answers_are_not_in_it(new_world: NewWorld, caplog: pytest.LogCaptureFixture) -> None:
    prices = parse_prices({"gpt-4o-mini": {"input": 10, "output": 40}, "text-embedding-3-small": {"input": 10}})
    said = "Answers of 2 rows are not in it, since nothing limits them: set max_completion_tokens in `body`."
    rows = ["a", "b", {"body": {"messages": [{"role": "user", "content": "c"}], "max_tokens": 5}}]
    with pytest.raises(InvalidInputError, match=f"max_cost: .*{re.escape(said)}"):
        new_world(rows=rows, prices=prices, max_cost=0.0001).run()
    caplog.clear()
    new_world(rows=rows, prices=prices, dry_run=True).run()
    assert said in caplog.text
    caplog.clear()
    new_world(rows=rows, prices=prices).run()
    embeddings = {"model": "text-embedding-3-small", "endpoint": "/v1/embeddings"}
    new_world(rows=[{"input": "a"}], prices=prices, max_cost=1.0, **embeddings).run()
    assert "not in it" not in caplog.text


def test_max_cost_without_a_price_is_refused(new_world: NewWorld) -> None:
    with pytest.raises(InvalidInputError, match="price"):
        new_world(max_cost=1.0).run()


def test_dry_run_makes_no_call_and_the_real_run_after_it_plans_anew(new_world: NewWorld) -> None:
    prices = parse_prices({"gpt-4o-mini": {"input": 1.0, "output": 1.0}})
    dry = new_world(prices=prices, dry_run=True)
    manifest = dry.run().manifest
    assert (manifest["requests"], manifest["succeeded"], manifest["results"]) == (25, 0, [])
    assert manifest["estimated_cost"] > 0
    assert dry.calls("POST /v1/files") == dry.calls("GET /v1/batches") == 0
    assert len(list(dry.location.glob("_job/shard-*/round-1.requests.jsonl"))) == 3

    real = new_world(location=dry.location, rows=["other"] * 5)
    assert real.run().manifest["requests"] == 5
    assert len(list(dry.location.glob("_job/shard-*"))) == 1


# --- rounds --------------------------------------------------------------------------------------------------------


def test_only_rows_that_can_succeed_are_sent_again(world: World) -> None:
    world.add_faults(
        {"on": {"custom_id": "row-3"}, "do": {"outcome": "server_error"}, "times": 1},
        {"on": {"custom_id": "row-4"}, "do": {"outcome": "missing"}, "times": 1},
        {"on": {"custom_id": "row-5"}, "do": {"outcome": "error", "status": 400}, "times": None},
        {"on": {"custom_id": "row-12"}, "do": {"outcome": "timeout"}, "times": 1},
    )
    outcome = world.run()
    rows = by_id(world.check_results(outcome))
    assert rows["row-5"]["status"] == "failed"
    assert rows["row-5"]["error"]["http_status"] == 400
    assert outcome.manifest["failed"] == 1
    sent = world.sent()
    assert {custom_id for custom_id, times in sent.items() if times > 1} == {"row-3", "row-4", "row-12"}
    assert world.bought() == {(0, 1): 1, (0, 2): 1, (1, 1): 1, (1, 2): 1, (2, 1): 1}
    assert [rows[name]["attempts"] for name in ("row-0", "row-3", "row-4")] == [1, 2, 1], "a missing row never ran"


def test_row_is_given_up_after_max_attempts(new_world: NewWorld) -> None:
    world = new_world(max_attempts=2)
    world.add_faults({"on": {"custom_id": "row-3"}, "do": {"outcome": "server_error"}, "times": None})
    rows = by_id(world.check_results(world.run()))
    assert (rows["row-3"]["status"], rows["row-3"]["attempts"]) == ("failed", 2)
    assert world.sent()["row-3"] == 2


def test_shard_is_given_up_after_rounds_that_answer_nothing(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    world.add_faults({"on": {"batch": {}}, "do": {"outcome": "expire", "finished": 0.0}, "times": None})
    outcome = world.run()
    assert outcome.manifest["by_status"] == {"expired": 2}
    assert len(world.batches()) == MOST_IDLE_ROUNDS


def test_expired_batch_keeps_what_it_finished_and_only_the_rest_is_sent_again(world: World) -> None:
    world.add_faults({"on": {"batch": {"metadata": {"airflow_shard": "1"}}}, "do": {"outcome": "expire"}})
    rows = world.check_results(world.run())
    assert all(row["status"] == "succeeded" for row in rows)
    first, again = (batch for batch in world.batches() if batch.metadata["airflow_shard"] == "1")
    assert first.status == "expired"
    assert 0 < first.request_counts.completed < 10
    assert again.request_counts.total == 10 - first.request_counts.completed


def test_batch_that_somebody_cancelled_is_completed_by_another(world: World) -> None:
    job = world.attempt()
    advance(job)
    world.pass_time(60)
    world.client().cancel_batch(world.batches()[0].id)
    rows = world.check_results(world.run(world.attempt(resuming=True)))
    assert all(row["status"] == "succeeded" for row in rows)
    first, again = (batch for batch in world.batches() if batch.metadata["airflow_shard"] == "0")
    assert first.status == "cancelled"
    assert again.request_counts.total == 10 - first.request_counts.completed


def test_answer_cut_by_the_token_cap_is_asked_again_with_a_larger_one(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"], body={"max_completion_tokens": 50})
    world.add_faults({"on": {"custom_id": "row-1"}, "do": {"outcome": "length"}})
    rows = by_id(world.check_results(world.run()))
    assert rows["row-1"]["status"] == "succeeded"
    again = world.content(world.batches()[-1].input_file_id)
    assert '"max_completion_tokens":100' in again


def test_answer_against_the_schema_is_asked_again_with_what_was_wrong(new_world: NewWorld) -> None:
    world = new_world(rows=[{"prompt": "a"}, {"prompt": "b"}], output_type=SCHEMA)
    world.add_faults({"on": {"custom_id": "row-1"}, "do": {"outcome": "invalid_output"}})
    rows = by_id(world.check_results(world.run()))
    assert rows["row-1"]["status"] == "succeeded"
    assert isinstance(rows["row-1"]["output"]["label"], str)
    again = world.content(world.batches()[-1].input_file_id)
    assert "follows the schema" in again
    assert len(again.splitlines()) == 1


# --- trouble of the service ----------------------------------------------------------------------------------------


def test_failed_validation_is_raised_with_every_entry_and_a_later_attempt_may_try_again(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    errors = [{"code": "model_not_found", "message": f"No model, line {n}.", "line": n} for n in (1, 2)]
    world.add_faults({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": errors}})
    with pytest.raises(ShardRefusedError, match=r"(?s)line 1.*No model, line 2.*0 of 2 rows are answered"):
        world.run()
    rows = world.check_results(world.run())
    assert all(row["status"] == "succeeded" for row in rows)
    assert [batch.status for batch in world.batches()] == ["failed", "completed"]
    assert world.calls("POST /v1/files") == 1, "the same file serves again"


def test_shard_that_is_refused_for_good_stops_alone(new_world: NewWorld, tmp_path: Path) -> None:
    world = new_world(max_active_batches=2)
    entry = {"code": "model_not_found", "message": "No such model."}
    refused = {"outcome": "failed", "errors": [entry]}
    world.add_faults({"on": {"batch": {"metadata": {"airflow_shard": "0"}}}, "do": refused, "times": 1})
    with pytest.raises(ShardRefusedError, match=r"(?s)^1 of 3 shards cannot go on.*Shard 0 \(.*No such model"):
        world.run()
    assert [shard.finished for shard in world.ledger.shards] == [False, True, True]
    assert world.bought() == {(1, 1): 1, (2, 1): 1}
    assert [batch.status for batch in world.batches()].count("failed") == 1, "once an attempt, whatever wakes it"
    written = [json.loads(line) for line in (tmp_path / "job-0/results/part-00000.jsonl").read_text().splitlines()]
    size = world.ledger.shards[0].requests
    assert {(row["status"], row["error"]["code"]) for row in written[:size]} == {("failed", "model_not_found")}
    assert {row["status"] for row in written[size:]} == {"succeeded"}

    rows = world.check_results(world.run())
    assert all(row["status"] == "succeeded" for row in rows)
    assert set(world.bought().values()) == {1}


def test_trouble_with_the_account_is_raised_at_once(new_world: NewWorld) -> None:
    world = new_world()
    world.add_faults({"on": {"method": "POST", "path": "/batches"}, "do": {"status": 401}, "times": None})
    with pytest.raises(AuthenticationError):
        advance(world.attempt())


def test_answers_that_are_late_are_not_given_up_when_all_is_planned_anew(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    assert isinstance(advance(world.attempt()), Waiting)
    world.pass_time(200)
    world.add_faults({"on": {"path": "/files/*/content"}, "do": {"status": 404}, "times": MISSING_TRIES})
    outcome = world.run(world.attempt(max_tries=9, replan="always"))
    assert outcome.manifest["kept"] == 2
    assert world.bought() == {(0, 1): 1}


def test_attempts_that_run_out_of_time_never_use_up_a_rows_chances(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])
    stuck = {"outcome": "stuck", "status": "in_progress"}
    world.add_faults({"on": {"batch": {}}, "do": stuck, "times": MOST_IDLE_ROUNDS + 1})
    for _ in range(MOST_IDLE_ROUNDS + 1):
        assert isinstance(world.run(world.attempt(timeout_s=60)), Stopped)
    rows = world.check_results(world.run())
    assert [row["status"] for row in rows] == ["succeeded"]


def test_further_round_that_feedback_made_too_large_is_sent_in_parts(new_world: NewWorld) -> None:
    rows = [{"prompt": f"{n} " + "x" * 300} for n in range(8)]
    world = new_world(rows=rows, output_type=SCHEMA, max_bytes=8 * 900)
    for n in range(8):
        world.add_faults({"on": {"custom_id": f"row-{n}"}, "do": {"outcome": "invalid_output"}})
    results = world.check_results(world.run())
    assert {row["status"] for row in results} == {"succeeded"}
    [shard] = world.ledger.shards
    assert len(shard.rounds) > 2
    assert all(each.bytes <= 8 * 900 for each in shard.rounds)
    assert sum(each.requests for each in shard.rounds[1:]) == 8


def test_trouble_with_one_upload_makes_one_shard_wait(world: World) -> None:
    world.add_faults({"on": {"method": "POST", "path": "/files"}, "do": {"status": 503}, "times": 5})
    outcome = advance(world.attempt())
    assert isinstance(outcome, Waiting)
    assert len(outcome.batch_ids) == 2
    assert outcome.not_before == pytest.approx(world.now + 30, abs=2)
    world.check_results(world.run(world.attempt(resuming=True)))
    assert set(world.bought().values()) == {1}


def test_trouble_that_lasts_fails_the_task_and_its_next_attempt_goes_on(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])
    tries = 5 * (MOST_TROUBLES + 1)
    world.add_faults({"on": {"method": "POST", "path": "/files"}, "do": {"status": 503}, "times": tries})
    with pytest.raises(OpenAIBatchesError, match="503"):
        world.run()
    assert world.calls("POST /v1/files") == tries
    world.check_results(world.run())


def test_job_whose_service_is_nowhere_fails_within_the_hour_and_its_next_attempt_goes_on(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world(rows=["a"])
    nowhere, began = replace(world.client_settings, base_url="http://127.0.0.1:9/v1"), world.now
    with monkeypatch.context() as patch:
        patch.setattr(World, "client_settings", nowhere)
        with pytest.raises(UnreachableError, match=r"no connection to 127\.0\.0\.1:9"):
            world.run()
    assert 1_800 < world.now - began < 3_600
    world.check_results(world.run())


def test_truncated_download_is_noticed_and_fetched_again(world: World) -> None:
    world.add_faults(
        {"on": {"method": "GET", "path": "/files/*/content"}, "do": {"truncate": 700}, "times": 7},
    )
    rows = world.check_results(world.run())
    assert all(row["status"] == "succeeded" for row in rows)
    assert set(world.sent().values()) == {1}


def test_file_without_all_that_its_batch_has_counted_is_fetched_again_and_nothing_bought_for_it(
    new_world: NewWorld,
) -> None:
    world = new_world(rows=["a", "b", "c"])
    advance(world.attempt())
    world.pass_time(200)
    # Of the right length for what it is: only the batch knows that there is more.
    empty = {"status": 200, "headers": {"Content-Type": "application/octet-stream"}, "body": ""}
    world.add_faults({"on": {"method": "GET", "path": "/files/*/content"}, "do": empty, "times": 2})
    rows = world.check_results(world.run(world.attempt(resuming=True)))
    assert [(row["status"], row["attempts"]) for row in rows] == [("succeeded", 1)] * 3
    assert len(world.batches()) == 1


def test_results_that_are_not_named_yet_are_waited_for(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    advance(world.attempt())
    world.pass_time(200)
    for path in ("/batches", "/batches/*"):
        rule = {"on": {"method": "GET", "path": path}, "do": {"set": {"output_file_id": None}}, "times": 4}
        world.add_faults(rule)
    rows = world.check_results(world.run(world.attempt(resuming=True)))
    assert [row["status"] for row in rows] == ["succeeded"] * 2
    assert set(world.sent().values()) == {1}


@pytest.mark.parametrize("failed", [0, 1])
def test_results_that_are_not_named_yet_are_waited_for_where_a_service_sends_no_counts(
    new_world: NewWorld, failed: int
) -> None:
    world = new_world(rows=["a", "b", "c"])
    for row in range(failed):
        world.add_faults({"on": {"custom_id": f"row-{row}"}, "do": {"outcome": "error"}})
    advance(world.attempt())
    world.pass_time(200)
    for path in ("/batches", "/batches/*"):
        for times, hidden in ((4, {"output_file_id": None}), (None, {})):
            effect = {"set": {"request_counts": None, **hidden}}
            world.add_faults({"on": {"method": "GET", "path": path}, "do": effect, "times": times})
    rows = world.check_results(world.run(world.attempt(resuming=True)))
    assert [row["status"] for row in rows] == ["failed"] * failed + ["succeeded"] * (3 - failed)
    assert set(world.sent().values()) == {1}


def test_results_that_are_never_named_are_not_bought_again_where_a_service_sends_no_counts(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    effect = {"set": {"request_counts": None, "output_file_id": None}}
    world.add_faults({"on": {"method": "GET", "path": "/batches**"}, "do": effect, "times": None})
    with pytest.raises(DownloadIncompleteError, match="does not name all its files"):
        world.run()
    assert len(world.batches()) == 1


def test_waiting_in_one_process_looks_at_a_batch_anew_after_trouble(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    job = world.attempt()
    advance(job)
    world.pass_time(200)
    rule = {"on": {"method": "GET", "path": "/batches/*"}, "do": {"set": {"output_file_id": ""}}, "times": 1}
    world.add_faults(rule)
    outcome = advance(job)
    assert isinstance(outcome, Waiting)
    world.wait(outcome)
    assert isinstance(advance(job), Finished)


def test_file_that_is_shorter_than_its_batch_claims_ends_as_missing_rows_and_not_in_a_loop(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b", "c"], max_attempts=1)
    rule = {"on": {"method": "GET", "path": "/batches/*"}, "do": {"patch": {"request_counts": {"completed": 9}}}}
    world.add_faults(rule | {"times": None})
    rows = world.check_results(world.run())
    assert [row["status"] for row in rows] == ["succeeded"] * 3
    assert len(world.batches()) == 1


def test_deleted_output_file_is_said_clearly_and_not_bought_again_by_itself(new_world: NewWorld) -> None:
    world = new_world()
    advance(world.attempt())
    world.pass_time(200)
    gone = world.batches()[1].output_file_id
    assert gone is not None
    world.client().delete_file(gone)
    for _ in range(2):
        with pytest.raises(OpenAIBatchesError, match=rf"{gone}.*gone.*replan='always'"):
            world.run()
    assert len(world.batches()) == 3
    # A user decides that these rows are to be bought again.
    rows = world.check_results(world.run(max_tries=1, replan="always"))
    assert all(row["status"] == "succeeded" for row in rows)
    assert sum(world.sent().values()) == 25 + 10


def test_batch_that_the_service_does_not_know_any_more_is_not_replaced_by_itself(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    advance(world.attempt())
    rule = {"on": {"method": "GET", "path": "/batches/*"}, "do": {"status": 404, "body": {}}, "times": None}
    world.add_faults(rule)
    with pytest.raises(OpenAIBatchesError, match=r"not known.*not bought again"):
        world.run(world.attempt(resuming=True))
    assert len(world.batches()) == 1


def test_batch_that_is_not_visible_at_once_is_waited_for(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    advance(world.attempt())
    world.add_faults({"on": {"method": "GET", "path": "/batches/*"}, "do": {"status": 404, "body": {}}, "times": 2})
    world.check_results(world.run(world.attempt(resuming=True)))
    assert len(world.batches()) == 1


# --- time ----------------------------------------------------------------------------------------------------------


def stopped_halfway(world: World) -> Stopped:
    outcome = world.run(world.attempt(timeout_s=60))
    assert isinstance(outcome, Stopped)
    return outcome


def test_timeout_lands_what_was_finished_and_the_next_attempt_buys_only_the_rest(world: World) -> None:
    outcome = stopped_halfway(world)
    rows = world.check_results(outcome)
    done = {row["custom_id"] for row in rows if row["status"] == "succeeded"}
    assert 0 < len(done) < 25
    assert {row["status"] for row in rows} == {"succeeded", "cancelled"}
    assert {batch.status for batch in world.batches()} == {"cancelled"}

    rows = world.check_results(world.run())
    assert all(row["status"] == "succeeded" for row in rows)
    sent = world.sent()
    assert {custom_id for custom_id, times in sent.items() if times == 1} == done
    assert set(sent.values()) == {1, 2}


def test_timeout_in_the_middle_of_trouble_still_cancels(world: World) -> None:
    job = world.attempt(timeout_s=60)
    advance(job)
    world.pass_time(65)
    rule = {"on": {"method": "POST", "path": "/batches/*/cancel"}, "do": {"status": 500}, "times": 15}
    world.add_faults(rule)
    outcome = advance(world.attempt(resuming=True))
    assert isinstance(outcome, Waiting)
    assert {batch.status for batch in world.batches()} == {"in_progress"}
    assert outcome.not_before is not None
    world.pass_time(1)
    assert isinstance(world.run(world.attempt(resuming=True)), Stopped)
    assert {batch.status for batch in world.batches()} == {"cancelled"}


def test_timeout_buys_nothing_more_but_finds_what_a_lost_answer_bought(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    world.add_faults({"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "after"}})
    rule = {"on": {"method": "GET", "path": "/batches"}, "do": {"status": 500}, "times": 1}
    world.add_faults(rule)
    advance(world.attempt(timeout_s=10))
    assert world.ledger.shards[0].round.batch_id is None
    world.pass_time(11)
    assert isinstance(world.run(world.attempt(resuming=True)), Stopped)
    assert [batch.status for batch in world.batches()] == ["cancelled"]
    assert world.ledger.shards[0].rounds[0].batch_id == world.batches()[0].id


def test_timeout_after_a_create_that_never_arrived_sends_no_other(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    world.add_faults({"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "before"}})
    advance(world.attempt(timeout_s=10))
    world.pass_time(11)
    outcome = world.run(world.attempt(resuming=True))
    assert isinstance(outcome, Stopped)
    assert outcome.manifest["by_error"] == {"not_submitted": 2}
    assert world.batches() == []
    world.check_results(world.run())
    assert world.bought() == {(0, 1): 1}


def test_deadline_is_one_of_the_times_to_look_again(world: World) -> None:
    job = world.attempt(timeout_s=50)
    began = world.now
    outcome = advance(job)
    assert isinstance(outcome, Waiting)
    assert outcome.not_before == pytest.approx(began + 50, abs=1)


def test_resume_of_a_finished_job_makes_no_call(world: World, emulator: Emulator) -> None:
    manifest = world.run().manifest
    calls = len(emulator.calls)
    assert advance(world.attempt(resuming=True)) == Finished(manifest)
    assert len(emulator.calls) == calls


def test_pause_that_ended_while_other_shards_were_busy_is_looked_at_at_once(new_world: NewWorld) -> None:
    def uploads_take_long(operation: str) -> None:
        if operation == "before POST files":
            world.pass_time(40)

    world = new_world()
    world.add_faults({"on": {"method": "POST", "path": "/files"}, "do": {"status": 503}, "times": 5})
    job: Job = world.attempt(watch=uploads_take_long)
    outcome = advance(job)
    assert isinstance(outcome, Waiting)
    assert outcome.not_before is not None
    assert outcome.not_before <= world.now, "the first shard may go on now"


def test_nothing_in_the_making_is_left_in_the_directory(world: World) -> None:
    world.run()
    names = [path.name for path in world.location.rglob("*") if path.is_file()]
    assert not [name for name in names if name.startswith(".")]
    assert not list(world.location.glob("_job/.*"))


def test_revoked_key_ends_the_attempt_and_loses_nothing(world: World) -> None:
    waiting = advance(world.attempt())
    assert isinstance(waiting, Waiting)
    world.add_faults({"on": {"method": "GET", "path": "/v1/batches*"}, "times": None, "do": {"status": 401}})
    world.add_faults({"on": {"method": "GET", "path": "/v1/batches/**"}, "times": None, "do": {"status": 401}})
    with pytest.raises(AuthenticationError, match="API key"):
        advance(world.attempt())
    world.clear_faults()
    world.check_results(world.run(world.attempt()))
    world.check_bought_once()
