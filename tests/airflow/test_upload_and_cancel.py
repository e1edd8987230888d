"""Upload and cancel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath, TaskDeferred

from airflow_provider_openai_batches.api.errors import (
    InvalidInputError,
    NotFoundError,
    OpenAIBatchesError,
    WaitTimeoutError,
)
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.operators.openai_batches import (
    OpenAIBatchCancelOperator,
    OpenAIBatchUploadOperator,
)
from tests.airflow.conftest import Attempts, EmulatorTime, new_batch

pytestmark = pytest.mark.usefixtures("connection", "clock")


def upload(source: Any, attempts: Attempts, **options: Any) -> str:
    return OpenAIBatchUploadOperator(task_id="upload", source=source, **options).execute(attempts.next())


@pytest.fixture
def attempts() -> Attempts:
    return Attempts(store=None)


class TestUpload:
    def test_returns_the_file_id_and_pushes_it(self, input_file: Path, attempts: Attempts) -> None:
        file_id = upload(str(input_file), attempts, filename="july.jsonl", expires_after=7200)
        file = OpenAIBatchesHook().retrieve_file(file_id)
        assert attempts.xcoms == {"file_id": file_id}
        assert file.filename == "july.jsonl"
        assert file.expires_at == (file.created_at or 0) + 7200

    def test_object_storage(self, input_file: Path, attempts: Attempts) -> None:
        assert upload(ObjectStoragePath(str(input_file)), attempts)

    @pytest.mark.parametrize(
        ("source", "options", "message"),
        [
            ("/nowhere/in.jsonl", {}, "source: /nowhere/in.jsonl does not exist, or this worker cannot see it"),
            ("", {}, "source: the path is empty"),
            ("a\0b", {}, "source: .* Take it out"),
            ("{input_file}", {"filename": 5}, "filename: expected a text, got 5"),
            ("{input_file}", {"filename": "\ud800"}, r"filename: '\\ud800' has the character '\\ud800'. Take it out"),
            ("{input_file}", {"filename": "a\0b"}, r"filename: 'a\\x00b' has the character '\\x00'. Take it out"),
            ("{input_file}", {"expires_after": 60}, "expires_after: expected 3,600 to 2,592,000 seconds"),
            ("{input_file}", {"expires_after": "1d"}, "expires_after: expected 3,600 to 2,592,000 seconds"),
        ],
    )
    def test_bad_input_sends_nothing(
        self,
        input_file: Path,
        attempts: Attempts,
        emulator: Emulator,
        source: str,
        options: dict[str, Any],
        message: str,
    ) -> None:
        with pytest.raises(InvalidInputError, match=message):
            upload(source.format(input_file=input_file), attempts, **options)
        assert emulator.calls == []

    def test_file_refused_by_the_service_says_why(
        self, input_file: Path, attempts: Attempts, emulator: Emulator
    ) -> None:
        emulator.add_fault({"on": {"method": "POST", "path": "/files"}, "do": {"status": 413, "body": "<h1>No</h1>"}})
        with pytest.raises(OpenAIBatchesError, match=r"HTTP 413.*Split the input into smaller files"):
            upload(str(input_file), attempts)


@pytest.fixture
def batch_id(connection: Any, emulator: Emulator) -> str:
    return new_batch(emulator)


def canceller(batch_id: Any, **options: Any) -> OpenAIBatchCancelOperator:
    return OpenAIBatchCancelOperator(**{"task_id": "cancel", "batch_id": batch_id, "deferrable": False, **options})


class TestCancel:
    def test_running_batch_is_being_cancelled(self, batch_id: str, emulator: Emulator, attempts: Attempts) -> None:
        emulator.advance(10)
        batch = canceller(batch_id).execute(attempts.next())
        assert (batch["id"], batch["status"]) == (batch_id, "cancelling")
        assert attempts.xcoms == {"batch_id": batch_id}

    def test_batch_that_is_over_is_returned_as_it_is(
        self, batch_id: str, emulator: Emulator, attempts: Attempts
    ) -> None:
        emulator.advance(200)
        assert canceller(batch_id).execute(attempts.next())["status"] == "completed"
        assert emulator.count("POST", "/v1/batches/{batch_id}/cancel") == 1

    def test_again_is_fine(self, batch_id: str, emulator: Emulator, attempts: Attempts) -> None:
        emulator.advance(10)
        canceller(batch_id).execute(attempts.next())
        emulator.advance(900)
        assert canceller(batch_id).execute(attempts.next())["status"] == "cancelled"

    def test_waits_until_the_finished_answers_can_be_fetched(
        self, batch_id: str, emulator: Emulator, attempts: Attempts, clock: EmulatorTime
    ) -> None:
        emulator.advance(60)
        batch = canceller(batch_id, wait_for_cancellation=True).execute(attempts.next())
        assert batch["status"] == "cancelled"
        assert batch["output_file_id"]
        assert 0 < clock.slept <= 615

    def test_waits_in_the_triggerer(
        self, batch_id: str, emulator: Emulator, attempts: Attempts, run_trigger: Callable[..., list[Any]]
    ) -> None:
        emulator.advance(60)
        options = {"wait_for_cancellation": True, "deferrable": True, "poll_interval": 0.01}
        with pytest.raises(TaskDeferred) as deferred:
            canceller(batch_id, **options).execute(attempts.next())
        emulator.advance(900)
        [event] = run_trigger(deferred.value.trigger)
        batch = canceller(batch_id, **options).execute_complete({}, event)
        assert (batch["id"], batch["status"]) == (batch_id, "cancelled")

    def test_does_not_wait_for_a_batch_that_is_over(
        self, batch_id: str, emulator: Emulator, attempts: Attempts
    ) -> None:
        emulator.advance(200)
        done = canceller(batch_id, wait_for_cancellation=True, deferrable=True).execute(attempts.next())
        assert done["status"] == "completed"

    def test_batch_that_hangs_in_cancelling_does_not_hold_the_task(
        self, emulator: Emulator, attempts: Attempts, clock: EmulatorTime
    ) -> None:
        batch_id = new_batch(emulator, {"outcome": "stuck", "status": "cancelling"})
        emulator.advance(10)
        with pytest.raises(WaitTimeoutError):
            canceller(batch_id, wait_for_cancellation=True).execute(attempts.next())
        assert clock.slept == pytest.approx(3600)

    def test_deferred_wait_ends_after_an_hour(
        self, emulator: Emulator, attempts: Attempts, clock: EmulatorTime, run_trigger: Callable[..., list[Any]]
    ) -> None:
        batch_id = new_batch(emulator, {"outcome": "stuck", "status": "cancelling"})
        emulator.advance(10)
        waiting = canceller(batch_id, wait_for_cancellation=True, deferrable=True, poll_interval=0.01)
        with pytest.raises(TaskDeferred) as deferral:
            waiting.execute(attempts.next())
        assert deferral.value.trigger.deadline == pytest.approx(clock.time() + 3600)
        deferral.value.trigger.deadline -= 3600
        [event] = run_trigger(deferral.value.trigger)
        with pytest.raises(OpenAIBatchesError, match="was cancelled, but not seen to end: The deadline passed"):
            waiting.execute_complete(attempts.next(), event)

    def test_error_event_raises(self, batch_id: str) -> None:
        event = {"status": "error", "batches": {batch_id: None}, "message": "the key was revoked"}
        with pytest.raises(OpenAIBatchesError, match="was cancelled, but not seen to end: the key was revoked"):
            canceller(batch_id).execute_complete({}, event)

    def test_unknown_batch_is_named(self, attempts: Attempts) -> None:
        with pytest.raises(NotFoundError, match="batch_nowhere"):
            canceller("batch_nowhere").execute(attempts.next())

    @pytest.mark.parametrize("name", ["wait_for_cancellation", "deferrable"])
    @pytest.mark.parametrize("value", ["False", None, 1, float("nan")])
    def test_flags_are_true_or_false(self, name: str, value: Any) -> None:
        with pytest.raises(InvalidInputError, match=f"{name}: expected True or False"):
            canceller("batch_1", **{name: value})

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [*((missing, "expected an id") for missing in (None, "", "None")), ("\ud800", ".* Take it out")],
    )
    def test_what_is_no_id_is_refused(self, wrong: Any, message: str, emulator: Emulator, attempts: Attempts) -> None:
        with pytest.raises(InvalidInputError, match=f"batch_id: {message}"):
            canceller(wrong).execute(attempts.next())
        assert emulator.calls == []
        assert attempts.xcoms == {}
