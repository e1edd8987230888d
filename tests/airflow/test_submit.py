"""Submit: one purchase per task, whatever happens between the attempts."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_openai_batches.api.errors import (
    BatchFailedError,
    BatchUnfinishedError,
    CreateOutcomeUnknownError,
    InvalidInputError,
    NoRequestSucceededError,
    OpenAIBatchesError,
    WaitTimeoutError,
)
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchSubmitOperator
from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger
from tests.airflow.conftest import Attempts, EmulatorTime, Store

pytestmark = pytest.mark.usefixtures("connection", "clock")

ENDPOINT = "/v1/chat/completions"
LONG_ENOUGH_S = 200
DAY_S = 86_400
NAMELESS = {"request_counts": None, "output_file_id": None, "error_file_id": None}
"""A batch at a service without counts, before it names the files."""


@pytest.fixture
def file_id(connection: Any, input_file: Path) -> str:
    return OpenAIBatchesHook().upload_file(input_file).id


def submit(file_id: str, **options: Any) -> OpenAIBatchSubmitOperator:
    """A fresh operator, as every attempt gets one."""
    return OpenAIBatchSubmitOperator(
        **{"task_id": "submit", "input_file_id": file_id, "endpoint": ENDPOINT, "deferrable": False, **options}
    )


def resume(file_id: str, event: Mapping[str, Any], **options: Any) -> str:
    """Resume after a deferral, on a fresh operator."""
    return submit(file_id, wait_for_completion=True, **options).execute_complete({}, event)


def creates(emulator: Emulator) -> int:
    return emulator.count("POST", "/v1/batches")


class TestOnePurchase:
    def test_returns_the_id_and_pushes_it_before_it_waits(self, file_id: str, attempts: Attempts) -> None:
        with pytest.raises(TaskDeferred):
            submit(file_id, wait_for_completion=True, deferrable=True).execute(attempts.next())
        [batch] = OpenAIBatchesHook().list_batches()
        assert attempts.xcoms == {"batch_id": batch.id}

    def test_batch_says_which_task_instance_made_it(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        submit(file_id, metadata={"team": "search"}).execute(attempts.next())
        metadata = emulator.batches()[0]["metadata"]
        assert metadata.pop("idempotency_token")
        assert metadata == {
            "team": "search",
            "airflow_dag_id": "dag",
            "airflow_task_id": "submit",
            "airflow_run_id": "run",
            "airflow_map_index": "-1",
            "airflow_max_tries": "2",
        }

    def test_retry_goes_on_with_the_batch_of_the_attempt_before(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        first = submit(file_id).execute(attempts.next())
        assert submit(file_id).execute(attempts.next()) == first
        assert attempts.xcoms == {"batch_id": first}
        assert creates(emulator) == 1

    def test_retry_takes_a_completed_batch(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        first = submit(file_id).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        assert submit(file_id, wait_for_completion=True).execute(attempts.next()) == first
        assert creates(emulator) == 1

    def test_first_attempt_looks_for_nothing(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        submit(file_id).execute(attempts.next())
        assert emulator.count("GET", "/v1/batches") == 0

    def test_lost_create_response_buys_one_batch(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "after"}})
        batch_id = submit(file_id).execute(attempts.next())
        assert [batch["id"] for batch in emulator.batches()] == [batch_id]

    def test_retry_finds_the_batch_whose_create_response_was_lost(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "after"}})
        emulator.add_fault({"on": {"method": "GET", "path": "/batches"}, "do": {"status": 503}, "times": None})
        with pytest.raises(CreateOutcomeUnknownError):
            submit(file_id).execute(attempts.next())
        emulator.clear_faults()
        batch_id = submit(file_id).execute(attempts.next())
        assert [batch["id"] for batch in emulator.batches()] == [batch_id]

    def test_retry_after_a_create_that_never_arrived_creates(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": {"status": 400}})
        with pytest.raises(OpenAIBatchesError):
            submit(file_id).execute(attempts.next())
        submit(file_id).execute(attempts.next())
        assert len(emulator.batches()) == 1

    def test_retry_leaves_a_create_that_may_be_under_way_to_a_later_one(self, file_id: str, emulator: Emulator) -> None:
        attempts = Attempts(store=Store())
        emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "before"}, "times": None})
        with pytest.raises(OpenAIBatchesError):
            submit(file_id).execute(attempts.next())
        emulator.clear_faults()
        with pytest.raises(OpenAIBatchesError, match="may still be under way; a later retry decides") as raised:
            submit(file_id).execute(attempts.next())
        assert raised.value.transient
        assert emulator.batches() == []
        assert attempts.store is not None
        attempts.store["openai_batch"]["sent_at"] -= 150
        submit(file_id).execute(attempts.next())
        assert len(emulator.batches()) == 1

    def test_mapped_task_instances_do_not_take_each_others_batches(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        makes_store = Store if attempts.store is not None else lambda: None
        instances = [Attempts(store=makes_store(), map_index=index) for index in range(3)]
        first = [submit(file_id).execute(instance.next()) for instance in instances]
        assert len(set(first)) == 3
        assert [submit(file_id).execute(instance.next()) for instance in instances] == first
        assert creates(emulator) == 3

    def test_runs_do_not_take_each_others_batches(self, file_id: str, emulator: Emulator) -> None:
        submit(file_id).execute(Attempts(store=None, run_id="monday").next())
        tuesday = Attempts(store=None, run_id="tuesday")
        tuesday.next()  # died before it bought anything
        submit(file_id).execute(tuesday.next())
        assert creates(emulator) == 2

    def test_another_input_file_is_another_purchase(
        self, file_id: str, attempts: Attempts, emulator: Emulator, input_file: Path
    ) -> None:
        first = submit(file_id).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        other = OpenAIBatchesHook().upload_file(input_file).id
        assert submit(other).execute(attempts.next()) != first
        assert [batch["status"] for batch in emulator.batches()] == ["validating", "completed"]

    def test_batch_of_an_input_file_that_was_replaced_is_cancelled(
        self, file_id: str, attempts: Attempts, emulator: Emulator, input_file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = submit(file_id).execute(attempts.next())
        input_file.write_bytes(input_file.read_bytes().replace(b"Hello", b"Salut"))
        other = OpenAIBatchesHook().upload_file(input_file).id
        attempts.clear()
        assert submit(other).execute(attempts.next()) != first
        assert [batch["status"] for batch in emulator.batches()] == ["validating", "cancelling"]
        assert f"Batch {first} was going on for input file {file_id}" in caplog.text

    def test_upload_and_submit_cleared_together_go_on_with_the_batch(
        self, file_id: str, emulator: Emulator, input_file: Path
    ) -> None:
        attempts = Attempts(store=Store())
        first = submit(file_id).execute(attempts.next())
        again = OpenAIBatchesHook().upload_file(input_file).id
        attempts.clear()
        assert submit(again).execute(attempts.next()) == first
        emulator.advance(LONG_ENOUGH_S)
        assert submit(again).execute(attempts.next()) == first
        assert creates(emulator) == 1

    def test_batch_of_a_gateway_without_counts_is_not_bought_again(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        first = submit(file_id).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        for path in ("/batches", "/batches/*"):
            fault = {"on": {"method": "GET", "path": path}, "do": {"set": {"request_counts": None}}, "times": None}
            emulator.add_fault(fault)
        assert submit(file_id).execute(attempts.next()) == first
        assert creates(emulator) == 1


class TestBatchThatCannotBeSeen:
    """Batches cannot be deleted, so a 404 never proves that there is none."""

    @pytest.fixture
    def not_found(self) -> dict[str, Any]:
        return {"on": {"method": "GET", "path": "/batches/*"}, "do": {"status": 404}, "times": None}

    @pytest.fixture
    def stored(self) -> Attempts:
        return Attempts(store=Store())

    def age(self, attempts: Attempts, seconds: float) -> None:
        assert attempts.store is not None
        attempts.store["openai_batch"]["intent_at"] -= seconds

    def hide_from_lists(self, emulator: Emulator) -> None:
        empty = {"status": 200, "body": {"object": "list", "data": [], "has_more": False}}
        emulator.add_fault({"on": {"method": "GET", "path": "/batches"}, "do": empty, "times": None})

    def test_is_found_by_its_token(
        self, file_id: str, stored: Attempts, emulator: Emulator, not_found: dict[str, Any]
    ) -> None:
        first = submit(file_id).execute(stored.next())
        emulator.add_fault(not_found)
        assert submit(file_id).execute(stored.next()) == first
        assert submit(file_id).execute(stored.next()) == first
        assert creates(emulator) == 1

    def test_is_left_to_a_later_retry_while_it_is_young(
        self, file_id: str, stored: Attempts, emulator: Emulator, not_found: dict[str, Any]
    ) -> None:
        first = submit(file_id).execute(stored.next())
        emulator.add_fault(not_found)
        self.hide_from_lists(emulator)
        with pytest.raises(OpenAIBatchesError, match=f"{first} .*cannot be seen yet") as raised:
            submit(file_id).execute(stored.next())
        assert raised.value.transient
        emulator.clear_faults()
        assert submit(file_id).execute(stored.next()) == first
        assert creates(emulator) == 1

    def test_is_only_bought_again_after_a_clear(
        self, file_id: str, stored: Attempts, emulator: Emulator, not_found: dict[str, Any]
    ) -> None:
        first = submit(file_id).execute(stored.next())
        emulator.add_fault(not_found)
        self.hide_from_lists(emulator)
        self.age(stored, 300)
        with pytest.raises(AirflowFailException, match=f"{first} .*Check the connection's project.*Clear the task"):
            submit(file_id).execute(stored.next())
        assert creates(emulator) == 1
        stored.clear()
        assert submit(file_id).execute(stored.next()) != first
        assert creates(emulator) == 2


KILLED_ATTEMPT = """
import json, sys
from tests.airflow.conftest import Attempts, Store
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchSubmitOperator

class FileStore(Store):
    def set(self, key, value):
        super().set(key, value)
        with open(sys.argv[2], "w") as file:
            json.dump(self, file)

attempts = Attempts(store=FileStore() if sys.argv[2] else None)
OpenAIBatchSubmitOperator(task_id="submit", input_file_id=sys.argv[1], endpoint="/v1/chat/completions").execute(
    attempts.next()
)
raise SystemExit("survived")
"""


def test_worker_killed_between_create_and_answer_buys_one_batch(
    file_id: str, attempts: Attempts, emulator: Emulator, tmp_path: Path
) -> None:
    stored = tmp_path / "store.json" if attempts.store is not None else None
    # The batch is made, but its answer is never read: the process is killed while it waits for it.
    emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "after"}})
    emulator.add_fault({"on": {"method": "GET", "path": "/batches"}, "do": {"delay": 60}})
    command = [sys.executable, "-c", KILLED_ATTEMPT, file_id, str(stored or "")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], env={**os.environ}) as worker:
        while not emulator.batches():
            assert worker.poll() is None
        worker.send_signal(signal.SIGKILL)
    emulator.clear_faults()
    if attempts.store is not None and stored is not None:
        attempts.store.update(json.loads(stored.read_text()))
    attempts.next()  # the attempt that was killed
    batch_id = submit(file_id).execute(attempts.next())
    assert [batch["id"] for batch in emulator.batches()] == [batch_id]


class TestAfterTheEnd:
    def test_failed_batch_raises_with_every_entry(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        errors = [
            {"code": "invalid_json_line", "message": "This line is not parseable as valid JSON.", "line": 2},
            {"code": "model_not_found", "message": "No such model.", "line": 3, "param": "body.model"},
        ]
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": errors}})
        with pytest.raises(BatchFailedError) as raised:
            submit(file_id, wait_for_completion=True).execute(attempts.next())
        for expected in ("line 2", "invalid_json_line", "not parseable", "line 3", "model_not_found", "body.model"):
            assert expected in str(raised.value)

    def test_failed_batch_is_bought_anew_on_a_retry(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "token_limit_exceeded"}})
        with pytest.raises(BatchFailedError, match="token_limit_exceeded"):
            submit(file_id, wait_for_completion=True).execute(attempts.next())
        second = submit(file_id, wait_for_completion=True).execute(attempts.next())
        assert [batch["status"] for batch in emulator.batches()] == ["completed", "failed"]
        assert emulator.batches()[0]["id"] == second

    @pytest.mark.parametrize("ending", ["expired", "cancelled"])
    def test_finished_rows_are_not_bought_again_by_a_retry(
        self, file_id: str, attempts: Attempts, emulator: Emulator, ending: str
    ) -> None:
        batch_id = end_early(file_id, attempts, emulator, ending, finished=2)
        with pytest.raises(AirflowFailException) as raised:
            submit(file_id).execute(attempts.next())
        assert creates(emulator) == 1
        for expected in (batch_id, ending, "2 of 3", "Clear the task", "OpenAIBatchOperator"):
            assert expected in str(raised.value)

    def test_refused_retry_still_tells_which_batch_has_the_finished_rows(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        batch_id = end_early(file_id, attempts, emulator, "cancelled", finished=2)
        operator = submit(file_id)
        with pytest.raises(AirflowFailException):
            operator.execute(attempts.next())
        assert attempts.xcoms == {"batch_id": batch_id}
        assert operator.batch_id == batch_id, "the task's links show it"

    @pytest.mark.parametrize("ending", ["expired", "cancelled"])
    def test_finished_rows_are_bought_again_after_a_clear(
        self, file_id: str, attempts: Attempts, emulator: Emulator, ending: str
    ) -> None:
        batch_id = end_early(file_id, attempts, emulator, ending, finished=2)
        attempts.clear()
        assert submit(file_id).execute(attempts.next()) != batch_id
        assert creates(emulator) == 2

    @pytest.mark.parametrize("ending", ["expired", "cancelled"])
    def test_batch_that_finished_nothing_is_bought_anew(
        self, file_id: str, attempts: Attempts, emulator: Emulator, ending: str
    ) -> None:
        batch_id = end_early(file_id, attempts, emulator, ending, finished=0)
        assert submit(file_id).execute(attempts.next()) != batch_id
        assert creates(emulator) == 2

    def test_all_rows_failed_raises(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "all_failed"}})
        with pytest.raises(NoRequestSucceededError, match="all 3 requests failed"):
            submit(file_id, wait_for_completion=True).execute(attempts.next())

    def test_completed_without_counts_or_output_file_is_not_green(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        shown = {"status": "completed", "request_counts": None, "output_file_id": None, "error_file_id": "file-errors"}
        emulator.add_fault({"on": {"method": "GET", "path": "/batches/*"}, "do": {"set": shown}, "times": None})
        with pytest.raises(NoRequestSucceededError, match=r"names no output file.*file-errors"):
            submit(file_id, wait_for_completion=True).execute(attempts.next())

    def test_completed_batch_that_names_its_files_late_is_not_bought_again_by_a_retry(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        first = submit(file_id).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        for path in ("/batches", "/batches/*"):
            emulator.add_fault({"on": {"method": "GET", "path": path}, "do": {"set": NAMELESS}})
        assert submit(file_id, wait_for_completion=True).execute(attempts.next()) == first
        assert creates(emulator) == 1

    def test_completed_batch_that_names_its_files_late_is_waited_for_after_a_deferral(
        self, file_id: str, attempts: Attempts, emulator: Emulator, run_trigger: Callable[..., list[Any]]
    ) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            submit(file_id, wait_for_completion=True, deferrable=True).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        emulator.add_fault({"on": {"method": "GET", "path": "/batches/*"}, "do": {"set": NAMELESS}, "times": 2})
        [event] = run_trigger(deferred.value.trigger)
        assert event["batches"][emulator.batches()[0]["id"]].get("output_file_id") is None
        assert resume(file_id, event) == emulator.batches()[0]["id"]

    @pytest.mark.parametrize("attempts", ["no store"], indirect=True)
    def test_listing_that_leaves_out_what_was_answered_buys_nothing_again(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        batch_id = end_early(file_id, attempts, emulator, "cancelled", finished=2)
        emulator.add_fault({"on": {"method": "GET", "path": "/batches"}, "do": {"set": NAMELESS}, "times": None})
        with pytest.raises(AirflowFailException, match=batch_id):
            submit(file_id).execute(attempts.next())
        assert creates(emulator) == 1

    def test_partial_failures_pass(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        emulator.add_fault({"on": {"custom_id": "row-1"}, "do": {"outcome": "error"}})
        batch_id = submit(file_id, wait_for_completion=True).execute(attempts.next())
        assert emulator.batches()[0]["id"] == batch_id
        assert emulator.batches()[0]["request_counts"] == {"total": 3, "completed": 2, "failed": 1}

    def test_expired_while_waited_for_fails_without_a_retry(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "expire", "finished": 0.67}})
        with pytest.raises(AirflowFailException, match="expired with 2 of 3"):
            submit(file_id, wait_for_completion=True, poll_interval=3600).execute(attempts.next())

    def test_expired_without_an_answer_may_be_retried(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "expire", "finished": 0}})
        with pytest.raises(BatchUnfinishedError, match="Nothing was finished"):
            submit(file_id, wait_for_completion=True, poll_interval=3600).execute(attempts.next())

    def test_batch_being_cancelled_is_decided_by_a_later_retry(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "stuck", "status": "cancelling"}})
        batch_id = submit(file_id).execute(attempts.next())
        emulator.advance(60)
        OpenAIBatchesHook().cancel_batch(batch_id)
        with pytest.raises(OpenAIBatchesError, match="still being cancelled") as raised:
            submit(file_id).execute(attempts.next())
        assert raised.value.transient
        assert creates(emulator) == 1
        assert attempts.xcoms == {"batch_id": batch_id}


def end_early(file_id: str, attempts: Attempts, emulator: Emulator, ending: str, *, finished: int) -> str:
    """The first attempt's batch expires or is cancelled when some of its three requests are finished."""
    if ending == "expired":
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "expire", "finished": (finished + 0.1) / 3}})
    batch_id = submit(file_id).execute(attempts.next())
    if ending == "expired":
        emulator.advance(2 * DAY_S)
    else:
        emulator.advance(3 + 120 * (finished + 0.5) / 3)
        OpenAIBatchesHook().cancel_batch(batch_id)
        emulator.advance(900)
    [batch] = emulator.batches()
    assert (batch["status"], batch["request_counts"]["completed"]) == (ending, finished)
    return batch_id


class TestClear:
    def test_task_cleared_while_its_batch_runs_goes_on_with_it(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        first = submit(file_id).execute(attempts.next())
        attempts.clear()
        assert submit(file_id).execute(attempts.next()) == first
        assert creates(emulator) == 1

    def test_completed_and_cleared_task_submits_the_file_anew(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        first = submit(file_id).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        attempts.clear()
        assert submit(file_id).execute(attempts.next()) != first
        assert creates(emulator) == 2

    def test_batch_taken_over_after_a_clear_is_not_bought_again_by_the_retry(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        first = submit(file_id).execute(attempts.next())
        attempts.clear()
        submit(file_id).execute(attempts.next())  # takes it over, then its worker dies
        emulator.advance(LONG_ENOUGH_S)
        assert submit(file_id).execute(attempts.next()) == first
        assert creates(emulator) == 1

    def test_retry_after_a_clear_goes_on_with_what_was_bought_after_it(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        submit(file_id).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        attempts.clear()
        second = submit(file_id).execute(attempts.next())
        assert submit(file_id).execute(attempts.next()) == second
        assert creates(emulator) == 2

    def test_failure_before_the_purchase_does_not_undo_the_clear(self, file_id: str, emulator: Emulator) -> None:
        attempts = Attempts(store=Store())
        submit(file_id).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        attempts.clear()
        emulator.add_fault({"on": {"path": "/**"}, "do": {"status": 401}})
        with pytest.raises(OpenAIBatchesError):
            submit(file_id).execute(attempts.next())
        submit(file_id).execute(attempts.next())
        assert creates(emulator) == 2


class TestTimeout:
    def test_batch_is_cancelled_and_the_task_fails(
        self, file_id: str, attempts: Attempts, emulator: Emulator, clock: EmulatorTime
    ) -> None:
        with pytest.raises(WaitTimeoutError, match=r"not over 50 seconds after its submission and is cancelling"):
            submit(file_id, wait_for_completion=True, timeout=50, poll_interval=60).execute(attempts.next())
        assert clock.slept <= 51
        assert emulator.batches()[0]["status"] in ("cancelling", "cancelled")

    def test_counts_from_the_submission_not_from_the_attempt(
        self, file_id: str, attempts: Attempts, emulator: Emulator, clock: EmulatorTime
    ) -> None:
        submit(file_id).execute(attempts.next())
        clock.sleep(40)
        with pytest.raises(WaitTimeoutError):
            submit(file_id, wait_for_completion=True, timeout=50).execute(attempts.next())
        assert clock.slept <= 51

    def test_deferred_deadline_counts_from_the_submission(
        self, file_id: str, attempts: Attempts, emulator: Emulator, clock: EmulatorTime
    ) -> None:
        submit(file_id).execute(attempts.next())
        clock.sleep(40)
        with pytest.raises(TaskDeferred) as deferred:
            submit(file_id, wait_for_completion=True, timeout=50, deferrable=True).execute(attempts.next())
        assert deferred.value.trigger.deadline == pytest.approx(emulator.batches()[0]["created_at"] + 50, abs=5)

    def test_clock_of_the_service_does_not_matter(self, file_id: str, emulator: Emulator, clock: EmulatorTime) -> None:
        """A service whose clock is two hours behind: its batch is as young as ours says."""
        behind = {"patch": {"created_at": int(time.time()) - 7200}}
        emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": behind, "times": None})
        emulator.add_fault({"on": {"method": "GET", "path": "/batches/*"}, "do": behind, "times": None})
        attempts = Attempts(store=Store())
        for _ in range(2):
            with pytest.raises(TaskDeferred) as deferred:
                submit(file_id, wait_for_completion=True, timeout=3600, deferrable=True).execute(attempts.next())
            assert deferred.value.trigger.deadline == pytest.approx(time.time() + 3600, abs=60)

    def test_batch_that_was_over_when_the_retry_came_too_late_is_taken(
        self, file_id: str, attempts: Attempts, emulator: Emulator, clock: EmulatorTime
    ) -> None:
        first = submit(file_id).execute(attempts.next())
        clock.sleep(LONG_ENOUGH_S)
        again = submit(file_id, wait_for_completion=True, timeout=50)
        assert again.execute(attempts.next()) == first

    def test_timedelta_is_understood(self, file_id: str) -> None:
        assert submit(file_id, timeout=datetime.timedelta(hours=2)).timeout == 7200

    @pytest.mark.parametrize("name", ["timeout", "poll_interval"])
    @pytest.mark.parametrize("value", [0, -1, "60", float("nan"), True])
    def test_odd_durations_are_refused_when_the_dag_is_read(self, name: str, value: Any) -> None:
        with pytest.raises(InvalidInputError, match=f"{name}: expected a positive number of seconds"):
            submit("file-1", **{name: value})

    @pytest.mark.parametrize("name", ["wait_for_completion", "deferrable", "cancel_on_kill"])
    @pytest.mark.parametrize("value", ["False", None, 1, float("nan")])
    def test_flags_are_true_or_false(self, name: str, value: Any) -> None:
        with pytest.raises(InvalidInputError, match=f"{name}: expected True or False"):
            submit("file-1", **{name: value})


class TestDeferral:
    def test_trigger_gets_all_it_needs(self, file_id: str, attempts: Attempts) -> None:
        operator = submit(file_id, wait_for_completion=True, deferrable=True, poll_interval=30, cancel_on_kill=False)
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute(attempts.next())
        assert isinstance(deferred.value.trigger, OpenAIBatchTrigger)
        assert deferred.value.method_name == "execute_complete"
        assert deferred.value.kwargs in (None, {})
        assert deferred.value.trigger.serialize()[1] == {
            "conn_id": "openai_batches_default",
            "batch_ids": [attempts.xcoms["batch_id"]],
            "poll_interval": 30,
            "deadline": None,
            "until": "all",
            "target_statuses": None,
            "cancel_on_kill": False,
        }

    def test_goes_through_the_trigger_to_the_end(
        self, file_id: str, attempts: Attempts, emulator: Emulator, run_trigger: Callable[..., list[Any]]
    ) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            submit(file_id, wait_for_completion=True, deferrable=True, poll_interval=0.01).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        [event] = run_trigger(deferred.value.trigger)
        assert event["status"] == "reached"
        assert resume(file_id, event) == emulator.batches()[0]["id"]

    def test_does_not_defer_for_a_batch_that_is_over(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        first = submit(file_id).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        assert submit(file_id, wait_for_completion=True, deferrable=True).execute(attempts.next()) == first

    def test_reached_but_failed_raises(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": [{"code": "empty_file"}]}})
        event = event_of(submit(file_id).execute(attempts.next()), emulator)
        with pytest.raises(BatchFailedError):
            resume(file_id, event)

    def test_error_event_fails_the_attempt_and_leaves_the_batch(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        batch_id = submit(file_id).execute(attempts.next())
        event = {"status": "error", "batches": {batch_id: None}, "message": "the key was revoked"}
        with pytest.raises(OpenAIBatchesError, match=f"Batch {batch_id} goes on.*the key was revoked"):
            resume(file_id, event)
        assert emulator.count("POST", "/v1/batches/{batch_id}/cancel") == 0

    def test_timeout_event_cancels_and_fails(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        batch_id = submit(file_id).execute(attempts.next())
        event = {"status": "timeout", "batches": {batch_id: None}, "message": ""}
        with pytest.raises(WaitTimeoutError, match="is cancelling"):
            resume(file_id, event, timeout=50)
        assert emulator.batches()[0]["status"] == "cancelling"

    def test_timeout_event_after_the_timeout_was_taken_out_of_the_dag(self, file_id: str, attempts: Attempts) -> None:
        event = {"status": "timeout", "batches": {submit(file_id).execute(attempts.next()): None}, "message": ""}
        with pytest.raises(WaitTimeoutError, match="not over in time and is cancelling"):
            resume(file_id, event)

    def test_timeout_event_of_a_batch_that_just_completed_is_a_success(
        self, file_id: str, attempts: Attempts, emulator: Emulator
    ) -> None:
        batch_id = submit(file_id).execute(attempts.next())
        emulator.advance(LONG_ENOUGH_S)
        event = {"status": "timeout", "batches": {batch_id: None}, "message": ""}
        assert resume(file_id, event, timeout=50) == batch_id


def event_of(batch_id: str, emulator: Emulator) -> dict[str, Any]:
    """The event of a trigger that saw the batch end."""
    emulator.advance(LONG_ENOUGH_S)
    return {"status": "reached", "batches": {batch_id: OpenAIBatchesHook().retrieve_batch(batch_id).to_dict()}}


ENDED = ["failed", "success", "skipped", "removed"]
GOES_ON = ["running", "restarting", "up_for_retry", None]


@contextmanager
def sigterm_after(operator: OpenAIBatchSubmitOperator, arrives: Callable[[], bool]) -> Iterator[None]:
    """Send SIGTERM to this process once something is the case, and handle it as Airflow does."""
    over = threading.Event()

    def kill() -> None:
        while not arrives() and not over.wait(0.01):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, frame: operator.on_kill())
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()
        signal.signal(signal.SIGTERM, before)


class TestKill:
    @pytest.mark.parametrize("state", ENDED)
    def test_task_that_is_over_takes_its_batch_along(
        self, file_id: str, attempts: Attempts, emulator: Emulator, task_is: Callable[[str | None], None], state: str
    ) -> None:
        operator = submit(file_id)
        operator.execute(attempts.next())
        task_is(state)
        operator.on_kill()
        assert emulator.batches()[0]["status"] == "cancelling"

    @pytest.mark.parametrize("state", GOES_ON)
    def test_next_attempt_goes_on_with_the_batch_of_a_stopped_one(
        self,
        file_id: str,
        attempts: Attempts,
        emulator: Emulator,
        task_is: Callable[[str | None], None],
        state: str | None,
    ) -> None:
        operator = submit(file_id)
        first = operator.execute(attempts.next())
        task_is(state)
        operator.on_kill()
        assert submit(file_id).execute(attempts.next()) == first
        assert emulator.batches()[0]["status"] == "validating"

    def test_airflow_that_does_not_answer_holds_up_no_kill(
        self, file_id: str, attempts: Attempts, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operator, answered = submit(file_id), threading.Event()
        operator.execute(attempts.next())
        monkeypatch.setattr(
            "airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states", lambda **ti: answered.wait()
        )
        started = time.monotonic()
        operator.on_kill()
        answered.set()
        assert time.monotonic() - started < 4
        assert emulator.batches()[0]["status"] == "validating"

    def test_kill_before_there_is_a_batch_does_nothing(
        self, file_id: str, emulator: Emulator, task_is: Callable[[str | None], None]
    ) -> None:
        task_is("failed")
        submit(file_id).on_kill()
        assert emulator.count("POST", "/v1/batches/{batch_id}/cancel") == 0

    def test_batch_is_left_alone_if_asked_for(
        self, file_id: str, attempts: Attempts, emulator: Emulator, task_is: Callable[[str | None], None]
    ) -> None:
        task_is("failed")
        operator = submit(file_id, cancel_on_kill=False)
        operator.execute(attempts.next())
        operator.on_kill()
        assert emulator.batches()[0]["status"] == "validating"

    @pytest.mark.parametrize("state", ["failed", "running"])
    @pytest.mark.parametrize("moment", ["a call", "a pause"])
    def test_sigterm_ends_the_wait(
        self,
        file_id: str,
        attempts: Attempts,
        emulator: Emulator,
        task_is: Callable[[str | None], None],
        monkeypatch: pytest.MonkeyPatch,
        state: str,
        moment: str,
    ) -> None:
        monkeypatch.setattr("airflow_provider_openai_batches.operators.openai_batches.time", time)
        task_is(state)
        operator = submit(file_id, wait_for_completion=True, poll_interval=0.1 if moment == "a call" else 100)
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "stuck", "status": "in_progress"}})
        if moment == "a call":
            emulator.add_fault({"on": {"method": "GET", "path": "/batches/*"}, "do": {"delay": 0.5}, "times": None})
        with (
            sigterm_after(operator, lambda: emulator.count("GET", "/v1/batches/{batch_id}") > 0),
            pytest.raises(OpenAIBatchesError, match="next attempt goes on") as raised,
        ):
            operator.execute(attempts.next())
        assert not isinstance(raised.value, AirflowFailException)
        assert (emulator.batches()[0]["status"] == "cancelling") == (state == "failed")

    @pytest.mark.parametrize("state", ["failed", "running"])
    @pytest.mark.parametrize("deferrable", [True, False])
    def test_sigterm_during_the_create_leaves_no_batch_without_a_task(
        self,
        file_id: str,
        attempts: Attempts,
        emulator: Emulator,
        task_is: Callable[[str | None], None],
        state: str,
        deferrable: bool,
    ) -> None:
        task_is(state)
        operator = submit(file_id, wait_for_completion=True, deferrable=deferrable)
        emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": {"delay": 1}})
        context, in_the_middle = attempts.next(), time.monotonic() + 0.4
        with (
            sigterm_after(operator, lambda: time.monotonic() > in_the_middle),
            pytest.raises(OpenAIBatchesError, match="next attempt goes on"),
        ):
            operator.execute(context)
        [batch] = emulator.batches()
        assert (batch["status"] == "cancelling") == (state == "failed")


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"endpoint": "chat"}, "endpoint: expected a path like '/v1/chat/completions', got 'chat'"),
            ({"completion_window": "soon"}, "completion_window: expected a number of hours or days like '24h'"),
            ({"metadata": {"rows": 3}}, r"metadata: 'rows': 3 must both be texts; convert with str\(\)"),
            ({"metadata": {"airflow_dag_id": "x"}}, "metadata: 'airflow_dag_id' is the provider's own key"),
            ({"metadata": {"idempotency_token": "x"}}, "metadata: 'idempotency_token' is the provider's own key"),
            ({"metadata": {"k" * 65: "v"}}, "must have 1 to 64 characters"),
            ({"metadata": {"k": "\ud800"}}, "metadata: .* Take it out"),
            ({"metadata": {"k": "v" * 513}}, "the value of 'k' has 513 characters, at most 512 fit"),
            ({"metadata": {f"k{n}": "v" for n in range(11)}}, "11 pairs are too many: at most 10; 6 of the API's 16"),
            ({"output_expires_after": 60}, "output_expires_after: expected 3,600 to 2,592,000 seconds"),
            ({"input_file_id": None}, "input_file_id: expected an id, got None. Did the upstream task push one?"),
            ({"input_file_id": "None"}, "input_file_id: expected an id"),
            ({"input_file_id": ""}, "input_file_id: expected an id"),
            ({"input_file_id": "\ud800"}, r"input_file_id: '\\ud800' has the character '\\ud800'. Take it out"),
            ({"input_file_id": "a\0b"}, "input_file_id: .* Take it out"),
        ],
    )
    def test_names_field_and_remedy_and_sends_nothing(
        self, attempts: Attempts, emulator: Emulator, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidInputError, match=message):
            submit(**{"file_id": "file-1", **options}).execute(attempts.next())
        assert emulator.calls == []

    def test_ten_pairs_of_metadata_fit(self, file_id: str, attempts: Attempts, emulator: Emulator) -> None:
        submit(file_id, metadata={f"k{n}": "v" for n in range(10)}).execute(attempts.next())
        assert len(emulator.batches()[0]["metadata"]) == 16
