"""The last rows without a batch: each bought once, at twice the price, and in a batch after all where that is due."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.jobs.direct import MOST_PAUSES
from airflow_provider_openai_batches.jobs.directory import open_directory
from airflow_provider_openai_batches.jobs.engine import Finished, Stopped, Waiting, advance
from airflow_provider_openai_batches.jobs.job import Job
from airflow_provider_openai_batches.jobs.ledger import LedgerError
from airflow_provider_openai_batches.jobs.pricing import parse_prices
from airflow_provider_openai_batches.jobs.sending import settles_s
from airflow_provider_openai_batches.testing import faults
from tests.conftest import API_KEY
from tests.jobs.world import BATCH_S, World

open_directory("/")  # imports Airflow, which sets up logging anew: before a test listens to it

NewWorld = Callable[..., World]

CHAT = "POST /v1/chat/completions"


def failing(*rows: int, times: int = 1) -> Iterator[dict[str, Any]]:
    """Rows that fail in a batch in a way that passes."""
    return (faults.row_fails(f"row-{row}", 500, times=times) for row in rows)


def waits(job: Job) -> Waiting:
    outcome = advance(job)
    assert isinstance(outcome, Waiting)
    return outcome


def direct_rows(rows: list[dict[str, Any]]) -> list[str]:
    return [row["custom_id"] for row in rows if row["batch_id"] is None]


def bought(emulator: Emulator) -> Counter[str]:
    """How often each prompt was answered, in batches and without."""
    return Counter(each.body["messages"][0]["content"] for each in emulator.requests() if each.billed)


def test_last_rows_are_finished_without_a_batch_once_and_in_input_order(
    emulator: Emulator, new_world: NewWorld
) -> None:
    world = new_world(finish_synchronously_below=3)
    world.add_faults(*failing(3, 7, 21))
    outcome = world.run()
    assert isinstance(outcome, Finished)
    rows = world.check_results(outcome)
    assert [row["status"] for row in rows] == ["succeeded"] * 25
    assert direct_rows(rows) == ["row-3", "row-7", "row-21"]
    assert {row["attempts"] for row in rows if row["batch_id"] is None} == {2}
    assert all(row["request_id"].startswith("req_") for row in rows)
    assert world.bought() == {(0, 1): 1, (1, 1): 1, (2, 1): 1}
    assert set(bought(emulator).values()) == {1}
    assert outcome.manifest["direct"]["requests"] == world.calls(CHAT) == 3
    assert len(outcome.manifest["batch_ids"]) == 3
    assert outcome.manifest["rounds"] == 2
    assert not list(world.location.glob("_job/shard-*/*.direct"))


def test_without_being_told_so_no_row_is_sent_without_a_batch(emulator: Emulator, new_world: NewWorld) -> None:
    world = new_world()
    world.add_faults(*failing(3))
    outcome = world.run()
    assert world.bought() == {(0, 1): 1, (0, 2): 1, (1, 1): 1, (2, 1): 1}
    assert world.calls(CHAT) == outcome.manifest["direct"]["requests"] == 0


def test_more_rows_than_that_go_into_batches(new_world: NewWorld) -> None:
    world = new_world(finish_synchronously_below=2)
    world.add_faults(*failing(3, 7, 21))
    rows = world.check_results(world.run())
    assert world.calls(CHAT) == 0
    assert world.bought() == {(0, 1): 1, (0, 2): 1, (1, 1): 1, (2, 1): 1, (2, 2): 1}
    assert [row["status"] for row in rows] == ["succeeded"] * 25


def test_rows_that_no_batch_has_had_are_never_sent_without_one(new_world: NewWorld) -> None:
    world = new_world(rows=["one", "two"], finish_synchronously_below=10)
    world.add_faults(faults.batch_fails([{"code": "invalid_request", "message": "Cannot find file"}]))
    rows = world.check_results(world.run())
    assert direct_rows(rows) == []
    assert world.calls(CHAT) == 0


def test_what_is_left_of_a_shard_waits_for_the_others_and_goes_with_theirs(new_world: NewWorld) -> None:
    world = new_world(finish_synchronously_below=2)
    world.add_faults(*failing(3, 14), faults.batch_stuck("in_progress", hours=3, times=1))
    job = world.attempt()
    world.wait(waits(job))
    outcome = waits(world.attempt(resuming=True))
    assert len(outcome.batch_ids) == 1, "only the slow one goes on"
    assert outcome.not_before is None, "and there is nothing to do until it ends"
    assert world.calls(CHAT) == 0
    world.pass_time(4 * 3600)
    rows = world.check_results(world.run(resuming=True))
    assert direct_rows(rows) == ["row-3", "row-14"]
    assert len(world.batches()) == 3


def test_what_is_left_is_bought_in_batches_as_soon_as_it_is_too_much(new_world: NewWorld) -> None:
    world = new_world(rows=[f"say {index}" for index in range(20)], finish_synchronously_below=2)
    world.add_faults(*failing(3, 13, 14), faults.batch_stuck("in_progress", hours=3, times=1))
    job = world.attempt()
    outcome = waits(job)
    world.wait(outcome)
    waits(world.attempt(resuming=True))
    assert len(world.batches()) == 2
    world.pass_time(4 * 3600)
    outcome = waits(world.attempt(resuming=True))
    assert len(outcome.batch_ids) == 2, "the first shard's row, too, is in a batch now"
    rows = world.check_results(world.run(resuming=True))
    assert [row["status"] for row in rows] == ["succeeded"] * 20
    assert world.calls(CHAT) == 0


# --- money -----------------------------------------------------------------------------------------------------------


def test_what_is_sent_without_a_batch_costs_twice_and_the_manifest_says_how_much(
    new_world: NewWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    prices = parse_prices({"gpt-4o-mini": {"input": 1000.0, "output": 4000.0}})
    in_batches = new_world(prices=prices)
    in_batches.add_faults(*failing(3, 4))
    at_batch_rate = in_batches.run().manifest
    assert at_batch_rate["direct"]["cost"] == 0
    world = new_world(prices=prices, finish_synchronously_below=10)
    world.add_faults(*failing(3, 4))
    manifest = world.run().manifest
    assert manifest["usage"] == at_batch_rate["usage"]
    used = manifest["direct"]["usage"]
    assert manifest["direct"]["requests"] == 2
    one = (used["input_tokens"] * 1000.0 + used["output_tokens"] * 4000.0) / 1_000_000
    assert manifest["direct"]["cost"] == pytest.approx(2 * one)
    assert manifest["cost"] == pytest.approx(at_batch_rate["cost"] + one)
    assert "2 rows are left: sending them to /v1/chat/completions without another batch" in caplog.text
    assert "more than in a batch" in caplog.text


def test_max_cost_that_would_not_hold_keeps_the_last_rows_in_a_batch(
    new_world: NewWorld, caplog: pytest.LogCaptureFixture
) -> None:
    # Without a token cap the estimate counts no answer, so that it holds and the cost does not.
    prices = parse_prices({"gpt-4o-mini": {"input": 1000.0, "output": 4000.0}})
    in_batches = new_world(prices=prices)
    in_batches.add_faults(*failing(3))
    manifest = in_batches.run().manifest
    estimated, spent = manifest["estimated_cost"], manifest["cost"]
    for most, sent in ((estimated, 0), (spent + 1, 1)):
        world = new_world(prices=prices, finish_synchronously_below=5, max_cost=most)
        world.add_faults(*failing(3))
        world.run()
        assert world.calls(CHAT) == sent
    assert "they go into another batch" in caplog.text


# --- trouble ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        faults.refused(404, None, "Invalid URL", on=faults.CHAT, times=None),
        faults.refused(401, "invalid_api_key", on=faults.CHAT, times=None),
        faults.refused(403, "model_not_found", on=faults.CHAT, times=None),
        faults.refused(400, "OperationNotSupported", on=faults.CHAT, times=None),
        faults.refused(405, None, on=faults.CHAT, times=None),
        faults.insufficient_quota(on=faults.CHAT, times=None),
        faults.redirected("http://127.0.0.1:1", on=faults.CHAT, times=None),
        faults.server_error(200, html=True, on=faults.CHAT, times=None),
        faults.server_error(503, on=faults.CHAT, times=None),
        faults.lost_call(on=faults.CHAT, times=None),
    ],
    ids=lambda rule: "-".join(str(value)[:20] for value in rule["do"].values()),
)
def test_service_that_cannot_answer_single_requests_gets_a_batch_and_burns_no_attempt(
    new_world: NewWorld, trouble: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    world = new_world(finish_synchronously_below=5, max_attempts=2)
    world.add_faults(*failing(3, 14), trouble)
    rows = world.check_results(world.run())
    assert [row["status"] for row in rows] == ["succeeded"] * 25
    assert {row["attempts"] for row in rows} == {1, 2}
    assert direct_rows(rows) == []
    assert world.bought()[0, 2] == world.bought()[1, 2] == 1
    assert sum("go into another batch" in record.message for record in caplog.records) == 1


def test_next_attempt_of_the_task_asks_the_endpoint_again(new_world: NewWorld) -> None:
    world = new_world(finish_synchronously_below=5)
    world.add_faults(*failing(3, times=2), faults.refused(404, on=faults.CHAT))
    job = world.attempt()
    while not world.bought()[0, 2]:
        outcome = waits(job)
        world.wait(outcome)
        job = world.attempt(resuming=True)
    rows = world.check_results(world.run())
    assert direct_rows(rows) == ["row-3"]
    assert world.calls(CHAT) == 2


def test_cleared_task_asks_the_endpoint_again(new_world: NewWorld) -> None:
    world = new_world(finish_synchronously_below=5)
    world.add_faults(*failing(3), faults.refused(404, on=faults.CHAT))
    assert direct_rows(world.check_results(world.run())) == []
    world.rows = [*world.rows, "say 25"]
    world.add_faults(*failing(25))
    assert direct_rows(world.check_results(world.run(max_tries=1))) == ["row-25"]


def test_answers_that_came_before_the_trouble_are_kept(emulator: Emulator, new_world: NewWorld) -> None:
    world = new_world(finish_synchronously_below=5)
    world.watch = lambda _: None  # One row at a time.
    world.add_faults(*failing(3, 4, 5), faults.insufficient_quota(on=faults.CHAT, skip=1, times=None))
    rows = world.check_results(world.run())
    assert direct_rows(rows) == ["row-3"]
    assert world.sent()["row-3"] == 1
    assert [row["attempts"] for row in rows[3:6]] == [2, 2, 2]
    assert set(bought(emulator).values()) == {1}


def test_outage_is_waited_out_and_burns_no_attempt(new_world: NewWorld) -> None:
    world = new_world(finish_synchronously_below=5, max_attempts=2)
    world.add_faults(*failing(3), faults.server_error(on=faults.CHAT, times=5 * MOST_PAUSES))
    rows = world.check_results(world.run())
    assert direct_rows(rows) == ["row-3"]
    assert rows[3]["attempts"] == 2
    assert world.calls(CHAT) == 5 * MOST_PAUSES + 1


def test_service_that_asks_for_a_long_pause_gets_it_without_holding_the_worker(new_world: NewWorld) -> None:
    world = new_world(finish_synchronously_below=5)
    world.add_faults(*failing(3, 4), faults.rate_limited(100, on=faults.CHAT, times=1))
    world.watch = lambda _: None
    job = world.attempt()
    outcome = waits(job)
    world.wait(outcome)
    outcome = waits(world.attempt(resuming=True))
    assert outcome.not_before == world.now + 100
    assert world.calls(CHAT) == 1
    rows = world.check_results(world.run(resuming=True))
    assert direct_rows(rows) == ["row-3", "row-4"]
    assert world.calls(CHAT) == 3


def test_short_pauses_are_kept_at_once(new_world: NewWorld) -> None:
    world = new_world(finish_synchronously_below=5)
    world.add_faults(*failing(3, 4), faults.rate_limited(2, on=faults.CHAT, times=3))
    rows = world.check_results(world.run())
    assert direct_rows(rows) == ["row-3", "row-4"]
    assert world.calls(CHAT) == 5


def test_refusal_of_one_request_is_that_rows_failure(new_world: NewWorld) -> None:
    world = new_world(finish_synchronously_below=5)
    message = "This prompt is too long."
    world.add_faults(*failing(3, 4), faults.refused(400, "context_length_exceeded", message, on=faults.CHAT))
    world.watch = lambda _: None
    rows = world.check_results(world.run())
    assert (rows[3]["status"], rows[4]["status"]) == ("failed", "succeeded")
    assert rows[3]["error"] == {"code": "context_length_exceeded", "message": message, "http_status": 400}


def test_answers_without_a_batch_are_judged_like_others_and_all_of_them_are_paid_for(
    emulator: Emulator, new_world: NewWorld
) -> None:
    rows = [f"say {index}" for index in range(3)]
    prices = parse_prices({"gpt-4o-mini": {"input": 0, "output": 1_000_000}})
    options = {"rows": rows, "body": {"max_completion_tokens": 5}, "max_attempts": 9, "prices": prices}
    world = new_world(**options, finish_synchronously_below=5)
    outcome = world.run()
    assert {row["status"] for row in world.check_results(outcome)} == {"succeeded"}
    tries = [each.body["max_completion_tokens"] for each in emulator.requests() if each.batch_id is None]
    assert sorted(set(tries)) == [10, 20], "an answer that is cut off is tried again with twice the cap"
    direct = outcome.manifest["direct"]
    assert direct["requests"] == len(tries) == 6
    assert direct["usage"]["output_tokens"] > 3 * 10
    assert outcome.manifest["usage"]["output_tokens"] == direct["usage"]["output_tokens"] + 3 * 5
    assert outcome.manifest["cost"] == direct["cost"] + 3 * 5 == 2 * direct["usage"]["output_tokens"] + 3 * 5


# --- time and death --------------------------------------------------------------------------------------------------


def answered_files(operation: str) -> bool:
    return operation.startswith("after write") and operation.endswith(".answer.json")


def test_deadline_ends_the_sending_and_the_next_attempt_buys_only_the_rest(
    emulator: Emulator, new_world: NewWorld
) -> None:
    world = new_world(finish_synchronously_below=5)
    world.add_faults(*failing(3, 4, 15))

    def late(operation: str) -> None:
        if answered_files(operation):
            world.pass_time(3600)

    world.watch = late
    outcome = world.run(timeout_s=3000)
    assert isinstance(outcome, Stopped)
    rows = world.check_results(outcome)
    assert [rows[row]["status"] for row in (3, 4, 15)] == ["succeeded", "missing", "failed"]
    assert rows[4]["error"]["code"] == "not_sent"
    assert world.calls(CHAT) == 1
    world.watch = None
    outcome = world.run()
    assert {row["status"] for row in world.check_results(outcome)} == {"succeeded"}
    assert world.calls(CHAT) == 3
    assert set(bought(emulator).values()) == {1}
    assert len(world.batches()) == 3


def test_task_that_is_being_ended_sends_no_more_and_its_next_attempt_goes_on(
    emulator: Emulator, new_world: NewWorld
) -> None:
    world = new_world(finish_synchronously_below=5)
    world.add_faults(*failing(3, 4, 15))
    jobs: list[Job] = []

    def ended(operation: str) -> None:
        if answered_files(operation):
            jobs[-1].halted.set()

    outcome: Any = None
    while not isinstance(outcome, Finished):
        jobs.append(world.attempt(resuming=bool(jobs), watch=ended))
        if isinstance(outcome := advance(jobs[-1]), Waiting):
            world.wait(outcome)
            assert world.calls(CHAT) <= len(jobs)
    assert direct_rows(world.check_results(outcome)) == ["row-3", "row-4", "row-15"]
    assert world.calls(CHAT) == 3
    assert set(bought(emulator).values()) == {1}


def test_answer_that_is_lost_is_bought_again_and_the_log_counts_it(
    emulator: Emulator, new_world: NewWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = new_world(finish_synchronously_below=5)
    world.add_faults(*failing(3, 4), faults.lost_response(on=faults.CHAT))
    world.watch = lambda _: None
    rows = world.check_results(world.run())
    assert direct_rows(rows) == ["row-3", "row-4"]
    counts = bought(emulator)
    assert (counts.pop("say 3"), set(counts.values())) == (2, {1})
    assert "1 calls gave no answer and may be billed all the same" in caplog.text


@pytest.mark.parametrize("timeout_s", [60, 3600])
def test_row_whose_call_is_still_under_way_in_another_attempt_is_waited_for_and_not_bought_again(
    emulator: Emulator, new_world: NewWorld, timeout_s: float
) -> None:
    world = new_world(finish_synchronously_below=5)
    settings = ClientSettings(api_key=API_KEY, base_url=world.base_url, timeout_s=timeout_s)
    world.add_faults(*failing(3, 4))
    asked_at: list[float] = []
    later: list[Waiting] = []

    def taken_over(operation: str) -> None:
        if operation == "after POST chat" and not later:
            asked_at.append(world.now)
            world.watch = None
            job = world.attempt(resuming=True)
            job.client = BatchClient(settings, sleep=lambda _: None)
            later.append(waits(job))

    world.watch = taken_over
    with pytest.raises(LedgerError, match="has taken over"):
        world.run()
    assert world.calls(CHAT) == 2, "the later attempt sends what nobody has claimed"
    longest = max(timeout_s, 600)
    assert settles_s(settings) > 2 * longest, "the server may be silent for so long, and drip for as long again"
    assert later == [Waiting([], asked_at[0] + settles_s(settings))]
    rows = world.check_results(world.run(resuming=True))
    assert direct_rows(rows) == ["row-3", "row-4"]
    assert world.calls(CHAT) == 2
    assert set(bought(emulator).values()) == {1}


def test_rows_are_sent_a_few_at_a_time(emulator: Emulator, new_world: NewWorld) -> None:
    world = new_world(rows=[f"say {index}" for index in range(30)], per_batch=50, finish_synchronously_below=20)
    world.add_faults(*failing(*range(20)), faults.slow(0.05, on=faults.CHAT, times=None))
    under_way, most, lock = 0, 0, threading.Lock()

    def count(operation: str) -> None:
        nonlocal under_way, most
        with lock:
            under_way += {"before POST chat": 1, "after POST chat": -1}.get(operation, 0)
            most = max(most, under_way)

    job = world.attempt()
    outcome = waits(job)
    world.wait(outcome)
    job = world.attempt(resuming=True)
    job.asker = lambda *_: world.asker(watch=count)
    outcome = advance(job)
    assert len(direct_rows(world.check_results(outcome))) == 20
    assert 1 < most <= 8
    assert set(bought(emulator).values()) == {1}


def test_setting_that_is_taken_back_lets_a_batch_do_the_rest(emulator: Emulator, new_world: NewWorld) -> None:
    world = new_world(finish_synchronously_below=5)
    world.add_faults(*failing(3, 4, 5), faults.rate_limited(3600, on=faults.CHAT, skip=1))
    world.watch = lambda _: None
    job = world.attempt()
    while not world.calls(CHAT):
        waits(job)
        world.pass_time(BATCH_S)
        job = world.attempt(resuming=True)
    changed = new_world(location=world.location)
    rows = changed.check_results(changed.run())
    assert direct_rows(rows) == ["row-3"]
    assert changed.calls(CHAT) == 0
    assert set(bought(emulator).values()) == {1}
