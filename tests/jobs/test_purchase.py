"""Each round is bought exactly once, whatever is lost; and a full queue costs nothing but time."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.dialects import OPENAI
from airflow_provider_openai_batches.api.errors import BadRequestError, CreateOutcomeUnknownError
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.jobs.engine import (
    Finished,
    ShardRefusedError,
    Stopped,
    Waiting,
    advance,
    cancel,
)
from airflow_provider_openai_batches.jobs.ledger import LedgerError, Round, Shard
from airflow_provider_openai_batches.jobs.ownership import save_ledger
from airflow_provider_openai_batches.jobs.purchase import (
    CLAIM_LEASE_S,
    FOREIGN_CLAIM_SETTLES_S,
    cancel_twins,
    metadata,
)
from airflow_provider_openai_batches.jobs.queue import QUEUE_WAIT_S, queue_limit
from airflow_provider_openai_batches.testing import faults
from tests.jobs.world import Watch, World

NewWorld = Callable[..., World]
CREATE = {"method": "POST", "path": "/batches"}
LIST = {"method": "GET", "path": "/batches"}
FULL = (
    "Enqueued token limit reached for gpt-4o-mini in organization org-1. Limit: {limit} enqueued tokens. Please wait."
)


class FrozenError(Exception):
    """A process that does not go on; the test decides what happened to it."""


def freezing_at(operation: str) -> Callable[[str], None]:
    """Stop an attempt for good at the first operation of this name."""

    def watch(seen: str) -> None:
        if seen == operation:
            raise FrozenError

    return watch


def test_lost_create_answer_buys_one_batch(world: World) -> None:
    world.add_faults({"on": CREATE, "do": {"drop": "after"}, "times": 1})
    world.check_results(world.run())
    assert set(world.bought().values()) == {1}
    assert world.calls("POST /v1/batches") == 3


def test_lost_create_answer_and_lost_listing_buy_one_batch(world: World) -> None:
    world.add_faults({"on": CREATE, "do": {"drop": "after"}}, {"on": LIST, "do": {"status": 503}, "times": 3})
    world.check_results(world.run())
    assert set(world.bought().values()) == {1}
    assert world.calls("POST /v1/batches") == 3


@pytest.mark.parametrize(
    "effect", [{"status": 500}, {"status": 503, "body": "<html>down</html>"}, {"drop": "before"}, {"status": 429}]
)
def test_create_that_was_not_carried_out_is_sent_again_after_a_while(world: World, effect: dict[str, Any]) -> None:
    world.add_faults({"on": CREATE, "do": effect, "times": 2})
    outcome = advance(world.attempt())
    assert isinstance(outcome, Waiting)
    assert len(outcome.batch_ids) == 1
    world.check_results(world.run(world.attempt(resuming=True)))
    assert set(world.bought().values()) == {1}
    assert world.calls("POST /v1/files") == 3


def test_refused_connection_sends_nothing_twice(world: World) -> None:
    job = world.attempt()
    nowhere = ClientSettings(api_key="any", base_url="http://127.0.0.1:9/v1")
    job.creator = BatchClient(nowhere, attempts=1, sleep=lambda _: None)
    outcome = advance(job)
    assert isinstance(outcome, Waiting)
    assert outcome.batch_ids == []
    assert [shard.round.intent_at for shard in world.ledger.shards] == [None] * 3, "nothing can have been carried out"
    world.check_results(world.run(world.attempt(resuming=True)))
    assert set(world.bought().values()) == {1}


def test_create_that_is_refused_for_good_can_be_sent_by_the_next_attempt_without_a_pause(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])
    world.add_faults({"on": CREATE, "do": {"status": 400}})
    with pytest.raises(ShardRefusedError, match="HTTP 400"):
        world.run()
    outcome = advance(world.attempt())
    assert isinstance(outcome, Waiting)
    assert len(outcome.batch_ids) == 1


def test_create_whose_answer_was_lost_is_never_given_up_for_a_refused_listing(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])
    world.add_faults({"on": CREATE, "do": {"drop": "after"}}, {"on": LIST, "do": {"status": 400}, "times": 20})
    with pytest.raises(CreateOutcomeUnknownError):
        world.run()
    with pytest.raises(BadRequestError):
        world.run()
    assert world.ledger.shards[0].refusal is None
    world.clear_faults()
    world.check_results(world.run())
    assert world.bought() == {(0, 1): 1}


def test_create_that_was_lost_while_the_queue_looked_full_is_not_forgotten(new_world: NewWorld) -> None:
    world = new_world(rows=["a" * 400, "b" * 400], queue_limits={"gpt-4o-mini": 300}, per_batch=2)
    world.add_faults({"on": CREATE, "do": {"drop": "after"}}, {"on": LIST, "do": {"status": 503}, "skip": 1})
    world.check_results(world.run())
    assert world.bought() == {(0, 1): 1}
    assert world.ledger.shards[0].round.times_queue_full == 0, "the queue was full of the lost batch itself"


# --- two attempts --------------------------------------------------------------------------------------------------


def test_claim_of_a_dead_attempt_is_waited_for_and_its_batch_found(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])
    with pytest.raises(FrozenError):
        advance(world.attempt("dead", watch=freezing_at("after POST batches")))
    world.check_results(world.run())
    assert world.bought() == {(0, 1): 1}
    assert world.calls("POST /v1/batches") == 1


def test_claim_of_a_dead_attempt_that_sent_nothing_is_waited_for_and_then_replaced(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])
    with pytest.raises(FrozenError):
        advance(world.attempt("dead", watch=freezing_at("before POST batches")))
    began = world.now
    outcome = advance(world.attempt())
    assert isinstance(outcome, Waiting)
    assert outcome.batch_ids == []
    settles = FOREIGN_CLAIM_SETTLES_S + world.client().settings.timeout_s
    assert outcome.not_before == pytest.approx(began + settles, abs=2)
    assert world.calls("POST /v1/batches") == 0
    world.check_results(world.run(world.attempt(resuming=True)))
    assert world.bought() == {(0, 1): 1}


def test_process_that_was_held_up_for_longer_than_its_lease_does_not_send(new_world: NewWorld) -> None:
    def held_up(operation: str) -> None:
        if operation.startswith("after claim") and "create-1" in operation:
            world.pass_time(CLAIM_LEASE_S + 1)

    world = new_world(rows=["a"])
    world.run(world.attempt(watch=held_up))
    (batch,) = world.batches()
    assert batch.metadata["idempotency_token"].endswith("-2"), "the first claim was never used"
    assert world.calls("POST /v1/batches") == 1


def test_zombie_stops_at_its_next_write_and_its_cancel_does_nothing(world: World) -> None:
    zombie = world.attempt("zombie")
    advance(zombie)
    alive = world.attempt("alive")
    with pytest.raises(LedgerError, match="taken over"):
        save_ledger(world.directory, zombie.ledger)
    cancel(zombie)
    assert {batch.status for batch in world.batches()} == {"validating"}
    cancel(alive)
    assert {batch.status for batch in world.batches()} == {"cancelling"}


def test_zombie_does_not_take_the_batches_of_its_successor_for_twins(world: World) -> None:
    zombie = world.attempt("zombie")
    zombie.ledger.contested = True
    advance(world.attempt("alive"))
    with pytest.raises(LedgerError, match="taken over"):
        cancel_twins(zombie)
    assert {batch.status for batch in world.batches()} == {"validating"}


def test_zombie_that_wakes_up_with_a_claim_sends_nothing_once_another_attempt_has_the_job(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])

    def replaced(operation: str) -> None:
        if operation.startswith("after claim") and "create-1" in operation:
            world.check_results(world.run())

    with pytest.raises(LedgerError):
        advance(world.attempt("zombie", watch=replaced))
    assert world.bought() == {(0, 1): 1}


def test_plan_of_a_zombie_touches_nothing_of_the_attempt_that_replaced_it(new_world: NewWorld) -> None:
    world = new_world(rows=[f"say {n}" for n in range(12)], per_batch=5)

    def replaced_while_planning(operation: str) -> None:
        if operation == "before publish _job/shard-00001/round-1.requests.jsonl" and world.rows is zombies:
            world.rows = [f"alive {n}" for n in range(12)]
            outcomes.append(advance(world.attempt("alive")))

    outcomes: list[Any] = []
    zombies = world.rows
    with pytest.raises(LedgerError):
        advance(world.attempt("zombie", watch=replaced_while_planning))
    assert isinstance(outcomes[0], Waiting)
    rows = world.check_results(world.run())
    assert all("alive" in row["output"] for row in rows)
    assert set(world.sent().values()) == {1}


def test_twins_are_cancelled_and_reported(new_world: NewWorld, caplog: pytest.LogCaptureFixture) -> None:
    world = new_world(rows=["a"])
    with pytest.raises(FrozenError):
        advance(world.attempt("dead", watch=freezing_at("after POST batches")))
    # Somebody made a second one by hand.
    ledger = world.ledger
    shard = ledger.shards[0]
    assert shard.round.file_id is not None
    twin = world.client().create_batch(
        shard.round.file_id, ledger.endpoint, metadata=metadata(ledger, shard), idempotency_token="by-hand"
    )
    outcome = world.run()
    world.check_results(outcome)
    assert outcome.manifest["twins"] == [twin.id]
    assert {batch.id: batch.status for batch in world.batches()}[twin.id] == "cancelled"
    assert twin.id in caplog.text


def test_batch_that_a_frozen_process_sent_far_too_late_is_found_at_the_end(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])

    def far_too_late(operation: str) -> None:
        if operation == "before POST batches" and world.attempts == 1:
            # Longer than any claim is waited for: another attempt has sent its own by then.
            waiting = advance(world.attempt("alive"))
            assert isinstance(waiting, Waiting)
            world.wait(waiting)
            assert isinstance(advance(world.attempt("alive", resuming=True)), Waiting)

    with pytest.raises(LedgerError):
        advance(world.attempt("zombie", watch=far_too_late))
    assert world.bought() == {(0, 1): 2}, "no client can prevent this one"
    outcome = world.run(world.attempt(resuming=True))
    world.check_results(outcome)
    assert len(outcome.manifest["twins"]) == 1


def test_batch_that_was_sent_far_too_late_is_found_even_if_its_shard_was_split(new_world: NewWorld) -> None:
    world = new_world(rows=[f"say {n}" * 100 for n in range(4)], per_batch=4)
    with pytest.raises(FrozenError):
        advance(world.attempt("zombie", watch=freezing_at("before POST batches")))
    before = world.ledger
    entry = {"code": "token_limit_exceeded", "message": FULL.format(limit="500")}
    world.add_faults({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": [entry]}})
    outcome = advance(world.attempt())
    while sum(world.bought().values()) < 2:
        assert isinstance(outcome, Waiting)
        world.pass_time(20)
        outcome = advance(world.attempt(resuming=True))
    (shard,) = before.shards
    assert shard.round.file_id is not None
    late = world.client().create_batch(shard.round.file_id, before.endpoint, metadata=metadata(before, shard))
    outcome = world.run(world.attempt(resuming=True))
    world.check_results(outcome)
    assert outcome.manifest["twins"] == [late.id]
    world.run(max_tries=1)
    assert world.ledger.twins == [late.id], "batches of earlier generations are none"


# --- the queue -----------------------------------------------------------------------------------------------------


def full_as_batch(times: int) -> dict[str, Any]:
    entry = {"code": "token_limit_exceeded", "message": FULL.format(limit="2,000,000")}
    return {"on": {"batch": {}}, "do": {"outcome": "failed", "errors": [entry]}, "times": times}


def full_as_status(status: int, times: int) -> dict[str, Any]:
    message = FULL.format(limit="2,000,000")
    body = {"error": {"message": message, "type": "invalid_request_error", "code": "token_limit_exceeded"}}
    return {"on": CREATE, "do": {"status": status, "body": body}, "times": times}


@pytest.mark.parametrize("fault", [full_as_batch(3), full_as_status(400, 3), full_as_status(429, 3)])
def test_full_queue_is_waited_for_with_the_same_file_and_costs_no_attempt(
    new_world: NewWorld, fault: dict[str, Any]
) -> None:
    world = new_world(rows=["a", "b"], max_attempts=1)
    world.add_faults(fault)
    began = world.now
    rows = world.check_results(world.run())
    assert [(row["status"], row["attempts"]) for row in rows] == [("succeeded", 1)] * 2
    assert world.calls("POST /v1/files") == 1
    assert world.calls("POST /v1/batches") == 4
    assert world.now - began > sum(QUEUE_WAIT_S[0] * 2**n for n in range(3)), "each wait is longer than the last"


def test_end_of_an_own_batch_lets_a_waiting_shard_try_at_once(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"], per_batch=1)
    world.add_faults({"on": {"batch": {"metadata": {"airflow_shard": "1"}}}, "do": full_as_batch(1)["do"], "times": 5})
    advance(world.attempt())
    while not (first := world.ledger.shards[0]).finished:
        before = world.ledger.shards[1].round.not_before
        world.pass_time(20)
        advance(world.attempt(resuming=True))
    assert first.finished
    assert before > world.now + 20, "it would have waited for longer"
    assert world.ledger.shards[1].round.is_active


@pytest.mark.parametrize("status", [None, 400, 429])
def test_shard_above_the_learned_limit_is_split(new_world: NewWorld, status: int | None) -> None:
    world = new_world(rows=[f"say {n}" * 100 for n in range(8)], per_batch=8)
    limit = FULL.format(limit="1,000")
    entry = {"code": "token_limit_exceeded", "message": limit}
    if status is None:
        fault = {"on": {"batch": {}}, "do": {"outcome": "failed", "errors": [entry]}}
    else:
        fault = {"on": CREATE, "do": {"status": status, "body": {"error": entry}}}
    world.add_faults(fault)
    rows = world.check_results(world.run())
    assert [row["status"] for row in rows] == ["succeeded"] * 8
    assert world.bought() == {(1, 1): 1, (2, 1): 1}
    assert set(world.sent().values()) == {1}


@pytest.mark.openai_batches_emulator(token_limits={"*": 120})
def test_shard_is_split_until_it_fits_a_real_limit(new_world: NewWorld) -> None:
    world = new_world(rows=[f"say {n} " * 20 for n in range(16)], per_batch=16)
    rows = world.check_results(world.run())
    assert [row["status"] for row in rows] == ["succeeded"] * 16
    assert set(world.sent().values()) == {1}
    assert len(world.bought()) > 2


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        (FULL.format(limit="2,000,000"), 2_000_000),
        ("The number of enqueued tokens has surpassed the configured limit of 30K for the deployment 'x'.", 30_000),
        ("... configured limit of 1.5M for the deployment 'x'.", 1_500_000),
        ("Enqueued request limit reached. Limit: 1,000,000 enqueued requests.", None),
        ("Full.", None),
    ],
)
def test_limit_is_read_from_the_message(message: str, limit: int | None) -> None:
    assert queue_limit(message) == limit


def test_no_more_batches_are_active_than_allowed(new_world: NewWorld) -> None:
    world = new_world(max_active_batches=2, per_batch=4)
    job, most = world.attempt(), 0
    while isinstance(outcome := advance(job), Waiting):
        active = [batch for batch in world.batches() if not batch.is_terminal]
        most = max(most, len(active))
        world.wait(outcome)
        job = world.attempt(resuming=True)
    assert isinstance(outcome, Finished)
    world.check_results(outcome)
    assert most == 2
    assert set(world.bought().values()) == {1}


def test_lost_create_counts_as_an_active_batch(new_world: NewWorld) -> None:
    world = new_world(max_active_batches=1)
    world.add_faults({"on": CREATE, "do": {"drop": "after"}}, {"on": LIST, "do": {"status": 503}, "times": 1})
    advance(world.attempt())
    assert len(world.batches()) == 1


@pytest.mark.openai_batches_emulator(token_limits={"gpt-4o-mini": 100})
def test_single_request_larger_than_the_queue_is_named(new_world: NewWorld) -> None:
    world = new_world(rows=["short", "word " * 400], per_batch=1)
    with pytest.raises(ShardRefusedError, match=r"'row-1' alone has about \d+ tokens, and the queue .* takes 100"):
        world.run()
    assert world.bought() == {(0, 1): 1}


def test_further_round_larger_than_the_queue_is_sent_in_parts(new_world: NewWorld) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    world = new_world(rows=["say 0", "say 1", "say 2"], output_type=schema)
    entry = {"code": "token_limit_exceeded", "message": FULL.format(limit="150")}
    world.add_faults(
        {"on": {"batch": {"metadata": {"airflow_round": "2"}}}, "do": {"outcome": "failed", "errors": [entry]}},
        {"on": {"custom_id": "row-*"}, "do": {"outcome": "invalid_output"}, "times": 3},
    )
    assert world.run().manifest["by_status"] == {"succeeded": 3}
    [shard] = world.ledger.shards
    assert [each.number for each in shard.rounds][:2] == [1, 3], "a number is never used again"
    assert len(shard.rounds) > 2
    assert sum(each.requests for each in shard.rounds[1:]) == 3
    assert len(world.ledger.unused_files) == 1


def test_shards_that_wait_for_the_shared_queue_cost_no_call_and_one_save(new_world: NewWorld) -> None:
    limit = {"gpt-4o-mini": 40}
    world = new_world(rows=[f"say {n}" for n in range(12)], per_batch=1, queue_limits=limit)
    saves: list[str] = []
    outcome = advance(world.attempt())
    while isinstance(outcome, Waiting):
        world.wait(outcome)
        saves.clear()
        outcome = advance(world.attempt(resuming=True, watch=saves.append))
        assert sum("job.json" in operation and "after write" in operation for operation in saves) < 12
    world.check_results(outcome)
    assert world.calls("POST /v1/batches") == 12
    assert max(shard.round.times_queue_full for shard in world.ledger.shards) < 3, "each end of a batch is a new chance"


def test_two_jobs_share_one_queue_by_what_their_batches_say(new_world: NewWorld) -> None:
    row_tokens = 40
    limit = {"gpt-4o-mini": 10 * row_tokens}
    worlds = [new_world(rows=[f"say {n}" for n in range(20)], per_batch=8, queue_limits=limit) for _ in range(2)]
    jobs, done, most = [world.attempt(f"{n}") for n, world in enumerate(worlds)], set(), 0
    for _ in range(60):
        for number, world in enumerate(worlds):
            outcome = advance(jobs[number])
            if isinstance(outcome, Finished):
                world.check_results(outcome)
                done.add(number)
            queued = sum(
                int(batch.metadata["airflow_tokens"])
                for each in worlds
                for batch in each.batches()
                if not batch.is_terminal
            )
            most = max(most, queued)
        if len(done) == 2:
            break
        worlds[0].pass_time(60)
        for world in worlds:
            world.pass_time(0)
    assert done == {0, 1}
    assert 0 < most <= limit["gpt-4o-mini"]
    assert not [batch for world in worlds for batch in world.batches() if batch.status == "failed"]
    assert all(set(world.bought().values()) == {1} for world in worlds)


class SlowWorld(World):
    """A service whose batches go on for days, as those of Azure and Groq do."""

    def client(self, *, attempts: int = 5, watch: Watch | None = None) -> BatchClient:
        client = super().client(attempts=attempts, watch=watch)
        settings = dataclasses.replace(client.settings, dialect=dataclasses.replace(OPENAI, longest_life_s=8 * 86_400))
        return BatchClient(settings, attempts=attempts, sleep=lambda _: None)


def test_batch_that_goes_on_for_days_is_in_the_queue_to_its_end(emulator: Emulator, tmp_path: Path) -> None:
    limit = {"gpt-4o-mini": 30}
    first, second = (
        SlowWorld(emulator.base_url, tmp_path / name, ["say it"], queue_limits=limit) for name in ("first", "second")
    )
    first.add_faults(faults.batch_stuck("in_progress", hours=100))
    waiting = advance(first.attempt())
    tokens = first.ledger.shards[0].round.tokens
    assert tokens <= 30 < 2 * tokens
    second.pass_time(60 * 3600)
    # The first page of the list counts whatever its age.
    for _ in range(101):
        first.client().create_batch(first.ledger.shards[0].round.file_id or "", "/v1/chat/completions")
    blocked = advance(second.attempt())
    assert isinstance(waiting, Waiting)
    assert isinstance(blocked, Waiting)
    assert (len(waiting.batch_ids), len(blocked.batch_ids)) == (1, 0)
    second.pass_time(50 * 3600)
    second.check_results(second.run())


def test_junk_in_other_batches_metadata_does_not_stop_admission(new_world: NewWorld) -> None:
    world = new_world(rows=["a"], queue_limits={"gpt-4o-mini": 1000})
    file = world.client().upload_file(lambda: io.BytesIO(b"{}\n"), filename="x.jsonl")
    world.client().create_batch(
        file.id, "/v1/chat/completions", metadata={"airflow_model": "gpt-4o-mini", "airflow_tokens": "many"}
    )
    world.check_results(world.run())


def test_input_file_that_is_not_found_is_tried_again_and_then_uploaded_anew(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])
    world.add_faults({"on": {"batch": {}}, "do": {"outcome": "file_not_found"}, "times": 5})
    world.check_results(world.run())
    assert world.calls("POST /v1/files") == 2
    assert world.calls("POST /v1/batches") == 6


def test_input_file_that_is_never_found_fails_the_task(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])
    world.add_faults({"on": {"batch": {}}, "do": {"outcome": "file_not_found"}, "times": None})
    with pytest.raises(ShardRefusedError, match=r"(?i)cannot find file"):
        world.run()


def test_timeout_while_waiting_for_the_queue_stops_at_once(new_world: NewWorld) -> None:
    world = new_world(rows=["a"])
    world.add_faults(full_as_status(429, 100))
    outcome = world.run(world.attempt(timeout_s=100))
    assert isinstance(outcome, Stopped)
    assert world.batches() == []


def test_round_counts_as_claimed_from_its_intent_to_its_end() -> None:
    shard = Shard(0, "m", 0, 1, [Round(1, 1, 1, 1)])
    assert not shard.round.is_claimed
    shard.round.intent_at = 1.0
    assert shard.round.is_claimed
    shard.round.batch_id, shard.round.status = "b", "completed"
    assert not shard.round.is_claimed
