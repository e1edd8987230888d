"""Retries, clears and other people's directories: what a next attempt does with what is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from pydantic import BaseModel, Field

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.engine import ShardRefusedError, Stopped, Waiting, advance
from airflow_provider_openai_batches.jobs.ledger import VERSION, LedgerError, Owner
from airflow_provider_openai_batches.jobs.ownership import LEDGER
from airflow_provider_openai_batches.jobs.parts import read_results, write_parts
from tests.jobs.world import BATCH_S, World

NewWorld = Callable[..., World]


def row(custom_id: str, prompt: str) -> dict:
    return {"custom_id": custom_id, "prompt": prompt, "context": {"prompt": prompt}}


def cleared(world: World, rows: list[dict] | list[str] | None = None, max_tries: int = 1, **options: str) -> dict:
    """Clear the finished task, perhaps with other rows, and run it; return the manifest."""
    if rows is not None:
        world.rows = rows
    outcome = world.run(max_tries=max_tries, **options)
    world.check_results(outcome)
    return outcome.manifest


def test_cleared_task_with_the_same_rows_buys_nothing(world: World) -> None:
    before = world.check_results(world.run())
    outcome = world.run(max_tries=1)
    assert world.check_results(outcome) == before
    assert (outcome.manifest["kept"], outcome.manifest["batch_ids"]) == (25, [])
    assert len(world.batches()) == 3
    assert world.plans == 2


def test_retry_of_a_finished_job_does_not_even_read_the_source(world: World) -> None:
    manifest = world.run().manifest
    assert world.run().manifest == manifest
    assert world.plans == 1


def test_clear_buys_changed_new_and_failed_rows_and_drops_removed_ones(new_world: NewWorld) -> None:
    world = new_world(rows=[row(name, f"say {name}") for name in "abcdef"], max_attempts=1)
    world.add_faults({"on": {"custom_id": "f"}, "do": {"outcome": "error"}})
    assert world.run().manifest["failed"] == 1
    rows = [
        row("new", "say new"),
        row("e", "say e"),
        row("a", "say a, but otherwise"),
        row("f", "say f"),
        row("c", "say c"),
    ]
    manifest = cleared(world, rows)
    assert (manifest["requests"], manifest["succeeded"], manifest["kept"]) == (5, 5, 2)
    assert world.sent() == {"a": 2, "b": 1, "c": 1, "d": 1, "e": 1, "f": 2, "new": 1}


def test_kept_rows_take_the_place_and_the_context_that_they_have_now(new_world: NewWorld) -> None:
    world = new_world(rows=[{"custom_id": name, "prompt": name, "context": {"old": name}} for name in "ab"])
    world.run()
    world.rows = [{"custom_id": name, "prompt": name, "context": {"new": name}} for name in "ba"]
    outcome = world.run(max_tries=1)
    results = read_results(outcome.manifest)
    assert [(each["index"], each["custom_id"], each["context"]) for each in results] == [
        (0, "b", {"new": "b"}),
        (1, "a", {"new": "a"}),
    ]
    assert len(world.batches()) == 1


def test_answers_are_kept_over_several_clears(new_world: NewWorld) -> None:
    world = new_world(rows=[row("a", "say a")])
    world.run()
    for number, added in enumerate("bcd", start=1):
        manifest = cleared(world, [*world.rows, row(added, f"say {added}")], max_tries=number)
        assert (manifest["kept"], manifest["requests"]) == (number, number + 1)
    assert set(world.sent().values()) == {1}
    leftovers = {path.name.split("-")[0] for path in world.location.glob("_job/*")}
    assert leftovers == {"attempts", "job.json", "plan", "shard"}
    assert len(list(world.location.glob("_job/plan-*"))) == 2, "earlier plans are gone"


def test_fewer_result_files_replace_more_of_them(new_world: NewWorld) -> None:
    world = new_world(rows=["a"], output_format="jsonl")
    world.run()
    stale = world.location / "results" / "part-00001.jsonl"
    stale.write_text("{}\n")
    (world.location / "results" / "part-00000.parquet").write_text("")
    cleared(world, [row("b", "say b")])
    assert [path.name for path in (world.location / "results").iterdir()] == ["part-00000.jsonl"]


def test_fewer_result_files_replace_more_of_them_though_the_worker_dies_meanwhile(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DiedError(Exception):
        pass

    def die(operation: str) -> None:
        if operation == "after delete results/part-00002.jsonl":
            raise DiedError

    monkeypatch.setitem(write_parts.__kwdefaults__, "rows_per_part", 5)
    world = new_world()
    world.run()
    world.rows = world.rows[:10]
    with pytest.raises(DiedError):
        world.run(max_tries=1, watch=die)
    manifest = world.run(max_tries=1).manifest
    assert [path.name for path in sorted((world.location / "results").iterdir())] == [
        "part-00000.jsonl",
        "part-00001.jsonl",
    ]
    assert len(list(read_results(str(world.location)))) == len(list(read_results(manifest))) == 10


def test_another_output_type_in_the_middle_buys_no_row_again_that_cannot_follow_it(new_world: NewWorld) -> None:
    class Label(BaseModel):
        label: str

    class Score(BaseModel):
        score: int

    world = new_world(rows=["a", "b"], output_type=Label)
    advance(world.attempt())
    changed = new_world(rows=["a", "b"], output_type=Score, location=world.location)
    manifest = changed.run(max_tries=1).manifest
    assert manifest["by_status"] == {"invalid_output": 2}
    assert set(world.answered().values()) == {1}
    [first, _] = read_results(manifest)
    assert "asked for another output_type" in first["error"]["message"]
    again = changed.run(max_tries=2).manifest
    assert again["by_status"] == {"succeeded": 2}


def test_a_harmless_change_of_the_output_type_in_the_middle_changes_nothing(new_world: NewWorld) -> None:
    class Label(BaseModel):
        label: str

    class Described(BaseModel):
        label: str = Field(description="One word.")

    world = new_world(rows=["a", "b"], output_type=Label)
    advance(world.attempt())
    described = new_world(rows=["a", "b"], output_type=Described, location=world.location)
    assert described.run().manifest["by_status"] == {"succeeded": 2}


def test_several_texts_of_a_row_are_kept_through_both_formats(new_world: NewWorld) -> None:
    pytest.importorskip("pyarrow")
    world = new_world(rows=["a"], body={"n": 2})
    outputs = []
    for number, form in enumerate(("jsonl", "parquet", "parquet", "jsonl")):
        world.settings = replace(world.settings, output_format=form)
        outputs += [each["output"] for each in read_results(world.run(max_tries=number).manifest)]
    assert outputs == [outputs[0]] * 4
    assert isinstance(outputs[0], list)
    assert len(world.batches()) == 1


def test_replan_never_keeps_a_finished_job_as_it_is(world: World) -> None:
    manifest = world.run().manifest
    assert cleared(world, ["other"] * 3, replan="never") == manifest
    assert world.plans == 1


def test_clear_of_an_unfinished_job_goes_on_with_its_plan(world: World) -> None:
    advance(world.attempt())
    manifest = cleared(world, ["other"] * 3)
    assert manifest["requests"] == 25
    assert world.plans == 1
    assert set(world.bought().values()) == {1}


NO_MODEL = {"outcome": "failed", "errors": [{"code": "model_not_found", "message": "No such model."}]}


def test_clear_of_a_job_that_the_service_refused_takes_the_corrected_rows(world: World) -> None:
    world.add_faults({"on": {"batch": {"metadata": {"airflow_shard": "0"}}}, "do": NO_MODEL})
    with pytest.raises(ShardRefusedError, match=r"correct the DAG and clear the task"):
        world.run()
    rows = [f"say it better {n}" if n < 10 else f"say {n}" for n in range(25)]
    manifest = cleared(world, rows)
    assert (manifest["succeeded"], manifest["kept"], world.plans) == (25, 15, 2)
    assert set(world.sent().values()) == {1}


def test_retry_of_a_job_that_the_service_refused_sends_the_same(world: World) -> None:
    world.add_faults({"on": {"batch": {"metadata": {"airflow_shard": "0"}}}, "do": NO_MODEL, "times": 1})
    with pytest.raises(ShardRefusedError):
        world.run()
    world.rows = ["other"] * 3
    assert world.run().manifest["succeeded"] == 25
    assert world.plans == 1


def test_clear_while_other_shards_of_a_refused_job_go_on_keeps_to_the_plan(world: World) -> None:
    world.add_faults({"on": {"batch": {"metadata": {"airflow_shard": "0"}}}, "do": NO_MODEL, "times": 1})
    advance(world.attempt())
    world.pass_time(30)
    advance(world.attempt())
    assert [shard.refusal is not None for shard in world.ledger.shards] == [True, False, False]
    assert cleared(world, ["other"] * 3)["requests"] == 25
    assert world.plans == 1


def test_replan_always_keeps_what_an_unfinished_job_has_bought(world: World) -> None:
    advance(world.attempt())
    world.pass_time(60)
    rows = [*(f"say {n}" for n in range(25)), "and one more"]
    manifest = cleared(world, rows, replan="always")
    assert (manifest["requests"], manifest["succeeded"]) == (26, 26)
    assert 0 < manifest["kept"] < 25
    assert sum(world.sent().values()) == 26 + 25 - manifest["kept"]
    assert max(world.sent().values()) == 2


def test_replan_always_survives_a_retry_in_the_middle(world: World) -> None:
    advance(world.attempt())
    world.rows = ["other"] * 4
    assert isinstance(advance(world.attempt(max_tries=1, replan="always")), Waiting)
    outcome = world.run(max_tries=1, replan="always")
    assert len(world.check_results(outcome)) == 4


def test_replan_always_waits_for_a_batch_that_reads_do_not_show_for_a_moment(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    advance(world.attempt())
    world.pass_time(BATCH_S)
    world.add_faults(
        # Its answers cannot be fetched at first, so that it is looked at once more.
        {"on": {"method": "GET", "path": "/files/*/content"}, "do": {"status": 500}, "times": 5},
        {"on": {"method": "GET", "path": "/batches/*"}, "do": {"status": 404}, "skip": 1},
    )
    outcome = world.run(max_tries=1, replan="always")
    assert outcome.manifest["kept"] == 2
    assert set(world.sent().values()) == {1}, "what is paid for is not bought again"


def test_replan_always_buys_nothing_again_while_answers_are_refused(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    advance(world.attempt())
    world.pass_time(BATCH_S)
    world.add_faults({"on": {"method": "GET", "path": "/files/*/content"}, "do": {"status": 400}})
    with pytest.raises(ShardRefusedError, match="HTTP 400"):
        world.run(max_tries=1, replan="always")
    assert world.run(max_tries=1, replan="always").manifest["kept"] == 2
    assert set(world.sent().values()) == {1}


def test_clear_after_a_plan_that_failed_keeps_the_answers_of_the_run_before(world: World) -> None:
    world.run()
    world.rows = [{"bad": 1}]
    with pytest.raises(InvalidInputError):
        world.run(max_tries=1)
    assert cleared(world, [f"say {n}" for n in range(20)], max_tries=2)["kept"] == 20
    assert set(world.sent().values()) == {1}


@pytest.mark.parametrize("gone", ["results/part-00000.jsonl", "_job/plan-*.keys.bin"])
def test_clear_buys_nothing_again_while_a_file_with_answers_is_gone(world: World, gone: str) -> None:
    manifest = world.run().manifest
    (path,) = world.location.glob(gone)
    aside = path.rename(world.location / "aside")
    for max_tries in (1, 2):
        with pytest.raises(LedgerError, match=rf"{path.name} is not there\. .*Put it back.*replan='never'"):
            world.run(max_tries=max_tries)
    assert world.run(max_tries=3, replan="never").manifest == manifest
    aside.rename(path)
    assert cleared(world, max_tries=4)["kept"] == 25
    assert len(world.batches()) == 3


def test_replan_never_does_not_take_a_job_that_was_planned_anew_in_the_middle_for_finished(world: World) -> None:
    advance(world.attempt())
    world.rows = [{"bad": 1}]
    with pytest.raises(InvalidInputError):
        world.run(max_tries=1, replan="always")
    assert world.ledger.generation == 2
    assert cleared(world, ["other"] * 3, max_tries=2, replan="never")["requests"] == 3


def test_answers_are_kept_when_the_whole_directory_was_moved(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    world.run()
    moved = world.location.rename(world.location.parent / "moved")
    assert cleared(new_world(location=moved, rows=["a", "b", "c"]))["kept"] == 2


def test_dry_run_of_a_cleared_task_leaves_its_results_and_answers_alone(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    before = world.check_results(world.run())
    dry = new_world(location=world.location, rows=["a", "c", "d"], dry_run=True)
    manifest = dry.run(max_tries=1).manifest
    assert (manifest["requests"], manifest["kept"], manifest["results"]) == (3, 1, [])
    path = world.location / "results" / "part-00000.jsonl"
    assert [msgspec.json.decode(line) for line in path.open("rb")] == before
    assert cleared(world, ["a", "b"], max_tries=2)["kept"] == 2


def test_next_attempt_after_a_timeout_has_a_deadline_of_its_own(world: World) -> None:
    assert isinstance(world.run(world.attempt(timeout_s=30)), Stopped)
    job = world.attempt(timeout_s=1000)
    assert job.ledger.deadline == pytest.approx(world.now + 1000, abs=1)
    assert not job.ledger.stopping


def test_other_endpoint_is_refused_while_the_job_is_unfinished(new_world: NewWorld) -> None:
    world = new_world()
    advance(world.attempt())
    other = new_world(location=world.location, endpoint="/v1/responses")
    with pytest.raises(LedgerError, match=r"/v1/chat/completions.*/v1/responses"):
        other.attempt()


# --- directories that are not ours ---------------------------------------------------------------------------------


def test_other_tasks_directory_is_refused_by_name(world: World) -> None:
    world.run()
    with pytest.raises(LedgerError, match=r"dag\.task of run run, not of dag\.task\[3\] of run run"):
        world.attempt(owner=Owner("dag", "task", "run", 3))


def test_directory_of_a_job_that_bought_nothing_is_free(new_world: NewWorld) -> None:
    world = new_world(rows=[row("a", "one"), row("a", "again")])
    with pytest.raises(InvalidInputError, match="custom_id"):
        advance(world.attempt(owner=Owner("dag", "task", "earlier run")))
    mended = new_world(location=world.location, rows=[row("a", "one"), row("b", "two")])
    outcome = mended.run()
    assert outcome.manifest["succeeded"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable"),
        (b'{"job_id": "x"', "not readable"),
        (b'{"version": 1, "attempt": "a"}', "damaged"),
        (b'{"version": %d, "attempt": "a", "everything": "else"}' % (VERSION + 1), "newer version.*Update"),
        (b"[]", "not readable"),
    ],
)
def test_ledger_that_cannot_be_understood_is_never_taken_for_none(world: World, content: bytes, message: str) -> None:
    world.directory.write(LEDGER, content)
    with pytest.raises(LedgerError, match=message):
        world.attempt()
    assert world.directory.read(LEDGER) == content
    assert world.calls("POST /v1/files") == 0


def test_missing_ledger_is_an_error_after_a_deferral(world: World) -> None:
    with pytest.raises(LedgerError, match=r"storage that all workers share.*Nothing more was submitted"):
        world.attempt(resuming=True)


def test_missing_ledger_is_an_error_if_the_job_was_begun_elsewhere(world: World) -> None:
    with pytest.raises(LedgerError, match="It was begun at /other/path"):
        world.attempt(began_at="/other/path")


def test_ledger_of_this_version_is_read_back_as_it_was_written(world: World) -> None:
    advance(world.attempt())
    written = world.ledger
    assert msgspec.json.decode(msgspec.json.encode(written), type=type(written)) == written
