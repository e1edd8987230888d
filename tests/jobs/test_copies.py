"""The service's copies of a job's files are gone when the job is over, if that was asked for, and else they stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_openai_batches.jobs.engine import Finished, Waiting, advance
from airflow_provider_openai_batches.testing import faults
from tests.jobs.doomed import killed
from tests.jobs.world import World

NewWorld = Callable[..., World]
UPLOAD = {"method": "POST", "path": "/files"}
LOOKS = "GET /v1/files"
TWO_SHARDS: dict[str, Any] = {"rows": ["a", "b"], "per_batch": 1, "delete_remote_files": True}


def test_delete_remote_files_leaves_none_behind_and_needs_no_look(new_world: NewWorld) -> None:
    world = new_world(delete_remote_files=True)
    world.add_faults(
        {"on": {"custom_id": "row-1"}, "do": {"outcome": "error"}, "times": 1},
        {"on": {"batch": {"metadata": {"airflow_shard": "1"}}}, "do": {"outcome": "file_not_found"}, "times": 4},
    )
    world.check_results(world.run())
    assert world.calls("POST /v1/files") == 4, "one of the three was uploaded anew"
    assert world.calls(LOOKS) == 0
    assert world.files() == []


def test_remote_files_stay_unless_told_otherwise(world: World) -> None:
    world.run()
    assert len(world.files()) == 6


@pytest.mark.parametrize("times", [1, 5])
def test_upload_whose_answer_is_lost_leaves_no_file(new_world: NewWorld, times: int) -> None:
    """Once, which the client gets over by itself; and as often as it tries, so that the job goes on later."""
    world = new_world(**TWO_SHARDS)
    world.add_faults({"on": UPLOAD, "do": {"drop": "after"}, "skip": 1, "times": times})
    world.check_results(world.run())
    assert world.calls("POST /v1/files") == 2 + times
    assert world.calls(LOOKS) == 1
    assert world.files() == []


def test_upload_whose_process_is_killed_leaves_no_file(new_world: NewWorld) -> None:
    seen: list[str] = []
    whole = new_world(**TWO_SHARDS)
    whole.watch = seen.append
    whole.run()
    uploads = [number for number, operation in enumerate(seen, start=1) if operation == "after POST files"]
    assert len(uploads) == 2
    for kill_at in uploads:
        world = new_world(**TWO_SHARDS)
        assert killed(world, TWO_SHARDS, kill_at)
        world.check_results(world.run())
        assert world.calls("POST /v1/files") == 3, "nobody was told of the first"
        assert world.files() == []


def test_files_of_other_jobs_and_of_others_stay(new_world: NewWorld) -> None:
    other = new_world(rows=["c"])
    other.run()
    kept = other.files()
    world = new_world(**TWO_SHARDS)
    world.add_faults({"on": UPLOAD, "do": {"drop": "after"}})
    world.run()
    assert other.files() == kept


def test_listing_that_another_job_cuts_short_is_walked_anew(new_world: NewWorld) -> None:
    """It does so by deleting the file behind which the next page begins; a service may refuse that cursor."""
    world = new_world(**TWO_SHARDS)
    world.add_faults(
        {"on": UPLOAD, "do": {"drop": "after"}},
        {"on": {"method": "GET", "path": "/files"}, "do": {"status": 400}, "times": 2},
    )
    world.run()
    assert world.files() == []


def test_listing_that_fails_leaves_the_job_finished(new_world: NewWorld, caplog: pytest.LogCaptureFixture) -> None:
    world = new_world(**TWO_SHARDS)
    world.add_faults(
        {"on": UPLOAD, "do": {"drop": "after"}},
        {"on": {"method": "GET", "path": "/files"}, "do": {"status": 403}},
    )
    assert isinstance(world.run(), Finished)
    assert "Could not look for files of uploads whose answers were lost" in caplog.text
    assert len(world.files()) == 1, "all that the job knows of are gone"


def test_job_that_is_planned_anew_in_the_middle_leaves_no_file(new_world: NewWorld) -> None:
    world = new_world(**TWO_SHARDS)
    assert isinstance(advance(world.attempt()), Waiting)
    world.rows = ["a", "c"]
    world.check_results(world.run(max_tries=1, replan="always"))
    assert world.ledger.generation == 2
    assert world.files() == []


def test_file_that_has_waited_for_its_batch_until_it_expires_is_uploaded_anew(new_world: NewWorld) -> None:
    lifetime_s = 2 * 86_400
    world = new_world(max_active_batches=1, files_expire_after=lifetime_s, delete_remote_files=True)
    world.add_faults(faults.batch_stuck("in_progress", hours=23, times=None))
    job = world.attempt()
    while isinstance(advance(job), Waiting):
        world.pass_time(3600)
        job = world.attempt(resuming=True)
    assert world.now > world.born + lifetime_s
    assert [batch.status for batch in world.batches()] == ["completed"] * 3, "none that looked for its file in vain"
    assert world.calls("POST /v1/files") == 4
    assert world.files() == []
