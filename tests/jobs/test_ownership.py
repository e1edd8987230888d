"""Whose a directory is: two attempts or tasks that meet there, at any moment, neither lose nor repeat a purchase."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.jobs.directory import open_directory
from airflow_provider_openai_batches.jobs.engine import Waiting, advance
from airflow_provider_openai_batches.jobs.ledger import VERSION, Ledger, LedgerError, Owner, Refusal, Round, Shard
from airflow_provider_openai_batches.jobs.ownership import ATTEMPTS, LEDGER, load_ledger, save_ledger
from airflow_provider_openai_batches.jobs.purchase import JOB_KEY
from tests.jobs.world import World

NewWorld = Callable[..., World]
FIRST, SECOND = Owner("dag", "task", "run", 0), Owner("dag", "task", "run", 1)
SMALL = {"rows": ["say 1", "say 2"], "per_batch": 1}


def at_boundary(number: int, work: Callable[[], Any], *, only: str = "", but: str = "-") -> Callable[[str], None]:
    """Do something when an attempt comes to a boundary.

    :param number: of those that count, from 0
    :param only: what the names of those that count begin with
    :param but: what they do not begin with
    """
    seen = 0

    def watch(operation: str) -> None:
        nonlocal seen
        if operation.startswith(only) and not operation.startswith(but):
            seen += 1
            if seen == number + 1:
                work()

    return watch


def boundaries(new_world: NewWorld, *, only: str = "", **attempt: Any) -> int:
    """Count the boundaries of a first step that nobody disturbs."""
    seen: list[str] = []
    advance(new_world(**SMALL).attempt(watch=seen.append, **attempt))
    return sum(operation.startswith(only) for operation in seen)


def all_batches(world: World) -> dict[str, str]:
    """Jobs of all batches since a world began, by batch, whosever they are."""
    found = world.client().batches_since(world.born)
    return {batch.id: batch.metadata[JOB_KEY] for batch in found if batch.created_at >= world.born - 1}


# --- two attempts of one task --------------------------------------------------------------------------------------


def test_zombie_frozen_anywhere_in_its_first_step_repeats_nothing_that_the_retry_bought(new_world: NewWorld) -> None:
    for number in range(boundaries(new_world)):
        world = new_world(**SMALL)

        def retry(world: World = world) -> None:
            assert isinstance(advance(world.attempt("retry")), Waiting)

        before = all_batches(world)
        try:
            # Nobody can stop the create itself; see the test of a batch that was sent far too late.
            advance(world.attempt("zombie", watch=at_boundary(number, retry, but="before POST batches")))
        except LedgerError as error:
            assert "(retry) has taken over" in str(error) or "(zombie)" in str(error)  # noqa: PT017
        world.check_results(world.run())
        world.check_bought_once()
        assert set(all_batches(world)) - set(before) == {batch.id for batch in world.batches()}, "of one job"


def test_zombie_frozen_before_any_write_of_its_ledger_leaves_the_retrys_as_it_is(new_world: NewWorld) -> None:
    write = f"before write {ATTEMPTS}/00001"
    for number in range(boundaries(new_world, only=write)):
        world = new_world(**SMALL)
        kept: list[Ledger] = []

        def retry(world: World = world, kept: list[Ledger] = kept) -> None:
            world.run()
            kept.append(world.ledger)

        with pytest.raises(LedgerError, match=r"This one \(zombie\) stops"):
            advance(world.attempt("zombie", watch=at_boundary(number, retry, only=write)))
        assert world.ledger == kept[0]
        assert world.ledger.manifest is not None
        world.check_bought_once()


def test_what_was_saved_just_before_a_takeover_is_what_it_begins_with(new_world: NewWorld) -> None:
    world = new_world(**SMALL)
    job = world.attempt("first")

    def save() -> None:
        job.ledger.rows = 12345
        save_ledger(world.directory, job.ledger)

    begun = world.attempt("second", watch=at_boundary(0, save, only=f"before claim {ATTEMPTS}"))
    assert begun.ledger.rows == 12345


def test_attempt_that_died_between_its_claim_and_its_ledger_is_passed_over(new_world: NewWorld) -> None:
    world = new_world(**SMALL)
    advance(world.attempt())

    class CrashedError(Exception):
        pass

    def crash() -> None:
        raise CrashedError

    for _ in range(3):
        with pytest.raises(CrashedError):
            world.attempt(watch=at_boundary(0, crash, only=f"after claim {ATTEMPTS}"))
    assert world.ledger.number == 1
    world.check_results(world.run())
    world.check_bought_once()
    assert len(list(world.location.glob(f"{ATTEMPTS}/*"))) == 1, "earlier ones are cleaned up"


def test_number_that_was_used_and_cleaned_up_is_not_used_again(new_world: NewWorld) -> None:
    world = new_world(**SMALL)
    advance(world.attempt("first"))

    def others() -> None:
        for number in range(3):
            world.attempt(f"other-{number}")

    late = world.attempt("late", watch=at_boundary(0, others, only=f"before claim {ATTEMPTS}/00002"))
    assert late.ledger.number == 5
    assert world.ledger.attempt == "late"


def test_copy_for_people_is_what_was_saved_last(new_world: NewWorld) -> None:
    world = new_world(**SMALL)
    world.run()
    (newest,) = world.location.glob(f"{ATTEMPTS}/*")
    assert (world.location / LEDGER).read_bytes() == newest.read_bytes()


def test_ledger_of_an_earlier_version_is_taken_up(new_world: NewWorld) -> None:
    world = new_world(**SMALL)
    advance(world.attempt())
    shutil.rmtree(world.location / ATTEMPTS)
    ledger = json.loads((world.location / LEDGER).read_text())
    for name in ("number", "first_shard", "earlier_manifest"):
        del ledger[name]
    ledger["version"] = 1
    (world.location / LEDGER).write_text(json.dumps(ledger))
    job = world.attempt(resuming=True)
    assert job.ledger.job_id == ledger["job_id"]
    (newest,) = world.location.glob(f"{ATTEMPTS}/*")
    assert json.loads(newest.read_text())["version"] == VERSION, "an earlier version has to keep off from here on"
    world.check_results(world.run(job))
    world.check_bought_once()
    assert world.calls("POST /v1/batches") == 2


def test_what_a_ledger_holds_changes_only_with_its_version() -> None:
    fields = [each.__struct_fields__ for each in (Ledger, Shard, Round, Refusal, Owner)]
    digest = hashlib.sha256(repr(fields).encode()).hexdigest()[:8]
    assert (VERSION, digest) == (3, "cec2ed51"), (
        "an earlier version would drop what is new with its first save: raise VERSION, and write both down here"
    )


# --- two tasks with one path ---------------------------------------------------------------------------------------


def test_two_tasks_that_meet_anywhere_lose_no_batch(new_world: NewWorld) -> None:
    number_of = boundaries(new_world, owner=FIRST)
    refused: set[Owner] = set()
    for number in range(number_of):
        first = new_world(**SMALL)
        second = new_world(location=first.location, rows=["other"])
        before = all_batches(first)

        def meet(second: World = second) -> None:
            try:
                advance(second.attempt("second", owner=SECOND))
            except LedgerError as error:
                assert "dag.task[0] of run run, not of dag.task[1]" in str(error)  # noqa: PT017
                refused.add(SECOND)

        try:
            advance(first.attempt("first", owner=FIRST, watch=at_boundary(number, meet)))
        except LedgerError as error:
            text = str(error)
            assert "dag.task[1] of run run has taken over" in text or "holds the job of dag.task[1]" in text
            refused.add(FIRST)
        ledger = json.loads((first.location / LEDGER).read_text())
        known = {each["batch_id"] for shard in ledger["shards"] for each in shard["rounds"]}
        assert set(all_batches(first)) - set(before) == known
    assert refused == {FIRST, SECOND}, "it depends on who has a plan first"


@pytest.mark.openai_batches_emulator(token_limits={"gpt-4o-mini": 100})
def test_directory_of_a_planned_job_that_waits_for_the_queue_is_not_free(new_world: NewWorld) -> None:
    full = new_world(rows=["x" * 100])
    advance(full.attempt())
    waiting = new_world(rows=["word " * 76])
    job = waiting.attempt(owner=FIRST)
    outcome = advance(job)
    while isinstance(outcome, Waiting) and outcome.batch_ids:
        waiting.pass_time(20)
        outcome = advance(job)
    other = new_world(rows=["other"], location=waiting.location)
    with pytest.raises(LedgerError, match=r"job of dag\.task\[0\].*1 rows in its plan and 0 batches going on.*delete"):
        other.attempt(owner=SECOND)
    assert isinstance(advance(waiting.attempt(owner=FIRST, resuming=True)), Waiting)


def test_task_that_is_refused_at_its_second_look_lets_the_owner_go_on(new_world: NewWorld) -> None:
    first = new_world(**SMALL)
    second = new_world(location=first.location, rows=["other"])
    job = first.attempt(owner=FIRST)
    claim = f"before claim {ATTEMPTS}/00002"
    with pytest.raises(LedgerError, match="holds the job of"):
        second.attempt(owner=SECOND, watch=at_boundary(0, lambda: advance(job), only=claim))
    assert isinstance(advance(job), Waiting)
    assert load_ledger(first.directory, FIRST) == job.ledger


# --- file systems without links ------------------------------------------------------------------------------------


@pytest.fixture
def no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none, as SMB and some FUSE ones."""
    link = os.link

    def refuse(source: Any, target: Any, **options: Any) -> None:
        if Path(target).is_relative_to(tmp_path):
            raise PermissionError(1, "Operation not permitted")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("no_links")
def test_job_runs_where_there_are_no_links(new_world: NewWorld, tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "claims")
    assert directory.claim("_job/claim", b"mine")
    assert not directory.claim("_job/claim", b"yours")
    assert directory.read("_job/claim") == b"mine"
    world = new_world(**SMALL)
    world.check_results(world.run())
    world.check_bought_once()


def test_claim_whose_maker_died_before_it_had_content_is_waited_for_and_replaced(new_world: NewWorld) -> None:
    class CrashedError(Exception):
        pass

    def crash() -> None:
        (world.location / "_job/shard-00000/round-1.create-1.json").touch()
        raise CrashedError

    world = new_world(rows=["a"])
    with pytest.raises(CrashedError):
        advance(world.attempt(watch=at_boundary(0, crash, only="before claim _job/shard-00000/round-1.create-1")))
    (world.location / f"{ATTEMPTS}/00002.json").touch()
    began = world.now
    world.check_results(world.run())
    assert world.bought() == {(0, 1): 1}
    assert world.now - began > 120, "its maker may have been alive"
