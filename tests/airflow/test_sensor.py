"""The sensor: any status, in every mode."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_openai_batches.api import retry
from airflow_provider_openai_batches.api.errors import AuthenticationError, InvalidInputError, NotFoundError
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.sensors.openai_batches import OpenAIBatchSensor
from airflow_provider_openai_batches.testing import faults
from tests.airflow.conftest import CONNECTION_VARIABLE, new_batch

pytestmark = pytest.mark.usefixtures("connection", "openai_batches_clock", "no_pauses")

SOON = 0.01
DONE_AFTER_S = 200
FAILED = {"outcome": "failed", "errors": [{"code": "empty_file", "line": 7}]}


@pytest.fixture
def batch_id(connection: Any, emulator: Emulator) -> str:
    return new_batch(emulator)


def sensor(batch_id: str, **options: Any) -> OpenAIBatchSensor:
    options = {"task_id": "wait", "deferrable": False, "poll_interval": SOON, "timeout": 20, **options}
    return OpenAIBatchSensor(batch_id=batch_id, **options)


def deferred(waiting: OpenAIBatchSensor) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        waiting.execute({})
    return raised.value


def resumed(waiting: OpenAIBatchSensor, event: Any) -> Any:
    """Go on after the deferral as Airflow does, which is where it applies soft_fail and never_fail."""
    return waiting.resume_execution("execute_complete", {"event": event}, {})


class TestPoke:
    def test_returns_the_batch_when_it_is_over(self, batch_id: str, emulator: Emulator) -> None:
        waiting = sensor(batch_id)
        assert not waiting.poke({})
        emulator.advance(DONE_AFTER_S)
        batch = waiting.execute({})
        assert (batch["id"], batch["status"]) == (batch_id, "completed")
        assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}

    def test_expired_batch_will_do(self, emulator: Emulator) -> None:
        batch_id = new_batch(emulator, {"outcome": "expire"})
        emulator.advance(2 * 86_400)
        assert sensor(batch_id).execute({})["status"] == "expired"

    def test_cancelled_batch_will_do(self, batch_id: str, emulator: Emulator) -> None:
        emulator.advance(10)
        OpenAIBatchesHook().cancel_batch(batch_id)
        emulator.advance(900)
        assert sensor(batch_id).execute({})["status"] == "cancelled"

    @pytest.mark.parametrize(
        ("seconds", "status"), [(0, "validating"), (10, "in_progress"), (124, "finalizing"), (200, "completed")]
    )
    def test_waits_for_any_status(self, batch_id: str, emulator: Emulator, seconds: int, status: str) -> None:
        waiting = sensor(batch_id, target_statuses=[status])
        emulator.advance(seconds)
        assert waiting.execute({})["status"] == status

    def test_status_passed_between_two_looks_counts(self, batch_id: str, emulator: Emulator) -> None:
        emulator.advance(DONE_AFTER_S)
        assert sensor(batch_id, target_statuses=["in_progress"]).execute({})["status"] == "completed"

    def test_status_that_can_no_longer_come_fails_at_once(self, batch_id: str, emulator: Emulator) -> None:
        emulator.advance(DONE_AFTER_S)
        waiting = sensor(batch_id, target_statuses=["expired", "cancelled"])
        with pytest.raises(AirflowFailException, match="is completed and can no longer become expired, cancelled"):
            waiting.execute({})

    def test_failed_batch_fails_at_once_with_every_entry(self, emulator: Emulator) -> None:
        batch_id = new_batch(emulator, FAILED)
        emulator.advance(DONE_AFTER_S)
        with pytest.raises(AirflowFailException, match="line 7: empty_file"):
            sensor(batch_id).execute({})

    def test_completed_batch_whose_requests_all_failed_fails_at_once(self, emulator: Emulator) -> None:
        batch_id = new_batch(emulator, {"outcome": "all_failed"})
        emulator.advance(DONE_AFTER_S)
        with pytest.raises(AirflowFailException, match=r"all 3 requests failed\. The reasons are in error file file-"):
            sensor(batch_id).execute({})

    def test_completed_batch_whose_requests_all_failed_can_be_waited_for(self, emulator: Emulator) -> None:
        batch_id = new_batch(emulator, {"outcome": "all_failed"})
        emulator.advance(DONE_AFTER_S)
        assert sensor(batch_id, target_statuses=["completed"]).execute({})["request_counts"]["failed"] == 3

    def test_expired_batch_with_nothing_finished_will_do(self, emulator: Emulator) -> None:
        batch_id = new_batch(emulator, {"outcome": "expire", "finished": 0})
        emulator.advance(2 * 86_400)
        assert sensor(batch_id).execute({})["status"] == "expired"

    def test_failed_can_be_waited_for(self, emulator: Emulator) -> None:
        batch_id = new_batch(emulator, FAILED)
        emulator.advance(DONE_AFTER_S)
        assert sensor(batch_id, target_statuses=["failed"]).execute({})["status"] == "failed"

    def test_failed_statuses_fail_before_the_end(self, batch_id: str, emulator: Emulator) -> None:
        emulator.advance(10)
        OpenAIBatchesHook().cancel_batch(batch_id)
        with pytest.raises(AirflowFailException, match="is cancelling, one of failed_statuses"):
            sensor(batch_id, failed_statuses=["cancelling", "cancelled"]).execute({})

    def test_outage_does_not_fail_a_poke(self, batch_id: str, emulator: Emulator) -> None:
        emulator.advance(DONE_AFTER_S)
        for effect in ({"status": 503}, {"status": 429}, {"drop": "before"}):
            emulator.add_fault({"on": {"path": "/batches/*"}, "do": effect, "times": 10})
        assert sensor(batch_id).execute({})["status"] == "completed"

    def test_wrong_key_fails_a_poke(self, batch_id: str, connection: Callable[..., None]) -> None:
        connection(password="sk-wrong-0123456789")
        with pytest.raises(AuthenticationError):
            sensor(batch_id).execute({})

    def test_batch_that_cannot_be_seen_yet_is_waited_for(self, batch_id: str, emulator: Emulator) -> None:
        emulator.advance(DONE_AFTER_S)
        emulator.add_fault(faults.batch_not_found(times=2))
        assert sensor(batch_id).execute({})["status"] == "completed"

    def test_batch_that_is_not_there_fails_when_patience_is_over(
        self, batch_id: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retry, "UNKNOWN_BATCH_GRACE_S", 0.05)
        emulator.add_fault(faults.batch_not_found(times=None))
        with pytest.raises(NotFoundError):
            sensor(batch_id).execute({})

    @pytest.mark.parametrize("refusal", [401, 403, 404])
    def test_refusal_during_the_wait_is_waited_out(self, batch_id: str, emulator: Emulator, refusal: int) -> None:
        waiting = sensor(batch_id)
        assert not waiting.poke({})
        emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"status": refusal}, "times": 3})
        emulator.advance(DONE_AFTER_S)
        assert waiting.execute({})["status"] == "completed"

    def test_connection_is_read_again_after_a_refusal(
        self, batch_id: str, emulator: Emulator, connection: Callable[..., None]
    ) -> None:
        waiting = sensor(batch_id)
        assert not waiting.poke({})
        emulator.advance(DONE_AFTER_S)
        emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"status": 401}})
        assert not waiting.poke({})
        connection(password="sk-wrong-0123456789")
        assert not waiting.poke({})
        connection()
        assert waiting.poke({})

    def test_connection_that_cannot_be_read_during_an_outage_ends_no_wait(
        self, batch_id: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waiting = sensor(batch_id)
        assert not waiting.poke({})
        monkeypatch.setenv(CONNECTION_VARIABLE, "{not json")
        emulator.advance(DONE_AFTER_S)
        emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"status": 503}, "times": 10})
        assert waiting.execute({})["status"] == "completed"

    def test_timeout(self, batch_id: str) -> None:
        with pytest.raises(AirflowSensorTimeout):
            sensor(batch_id, timeout=0.05).execute({})

    @pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
    def test_failed_batch_is_a_skip_if_asked_for(self, emulator: Emulator, option: str) -> None:
        batch_id = new_batch(emulator, FAILED)
        emulator.advance(DONE_AFTER_S)
        with pytest.raises(AirflowSkipException):
            sensor(batch_id, **{option: True}).execute({})

    def test_watching_cancels_nothing(self, batch_id: str, emulator: Emulator) -> None:
        with pytest.raises(AirflowSensorTimeout):
            sensor(batch_id, timeout=0.05).execute({})
        assert emulator.count("POST", "/v1/batches/{batch_id}/cancel") == 0


def test_reschedule_does_not_look_for_ever_for_a_batch_that_is_not_there(batch_id: str, emulator: Emulator) -> None:
    emulator.add_fault(faults.batch_not_found(times=None))
    with pytest.raises(NotFoundError):
        sensor(batch_id, mode="reschedule").poke({})


def test_reschedule_gives_the_worker_back(batch_id: str, emulator: Emulator) -> None:
    waiting = sensor(batch_id, mode="reschedule", poll_interval=datetime.timedelta(minutes=5), timeout=3600)
    context = {"ti": SimpleNamespace(get_first_reschedule_date=lambda context: None)}
    with pytest.raises(AirflowRescheduleException) as raised:
        waiting.execute(context)
    wait_s = (raised.value.reschedule_date - datetime.datetime.now(datetime.UTC)).total_seconds()
    assert 295 < wait_s <= 300
    emulator.advance(DONE_AFTER_S)
    assert waiting.execute(context)["status"] == "completed"


class TestDeferral:
    def test_goes_through_the_trigger_to_the_end(
        self, batch_id: str, emulator: Emulator, run_trigger: Callable[..., list[Any]]
    ) -> None:
        waiting = deferred(sensor(batch_id, deferrable=True))
        emulator.advance(DONE_AFTER_S)
        [event] = run_trigger(waiting.trigger)
        batch = resumed(sensor(batch_id, deferrable=True), event)
        assert (batch["id"], batch["status"]) == (batch_id, "completed")

    def test_wakes_for_target_and_failed_statuses(self, batch_id: str) -> None:
        waiting = sensor(batch_id, deferrable=True, target_statuses=["in_progress"], failed_statuses=["cancelling"])
        assert deferred(waiting).trigger.target_statuses == ["cancelling", "in_progress"]

    def test_trigger_gets_plain_values(self, batch_id: str) -> None:
        half_an_hour = datetime.timedelta(minutes=30)
        waiting = sensor(batch_id, deferrable=True, poll_interval=half_an_hour, timeout=2 * half_an_hour)
        arguments = deferred(waiting).trigger.serialize()[1]
        assert arguments["poll_interval"] == 1800
        assert {type(status) for status in arguments["target_statuses"]} == {str}
        assert arguments["cancel_on_kill"] is False

    def test_does_not_defer_for_a_batch_that_is_over(self, batch_id: str, emulator: Emulator) -> None:
        emulator.advance(DONE_AFTER_S)
        assert sensor(batch_id, deferrable=True).execute({})["status"] == "completed"

    def test_outage_at_the_first_look_defers(self, batch_id: str, emulator: Emulator) -> None:
        emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"status": 503}, "times": None})
        assert deferred(sensor(batch_id, deferrable=True)).trigger.batch_ids == [batch_id]

    def test_batch_that_cannot_be_seen_yet_is_left_to_the_trigger(self, batch_id: str, emulator: Emulator) -> None:
        emulator.add_fault(faults.batch_not_found(times=None))
        assert deferred(sensor(batch_id, deferrable=True)).trigger.batch_ids == [batch_id]

    def test_timeout_is_a_sensor_timeout(self, batch_id: str, run_trigger: Callable[..., list[Any]]) -> None:
        waiting = deferred(sensor(batch_id, deferrable=True, timeout=0.2))
        [event] = run_trigger(waiting.trigger)
        assert event["status"] == "timeout"
        with pytest.raises(AirflowSensorTimeout):
            resumed(sensor(batch_id, timeout=0.2), event)

    def test_batch_that_was_over_at_the_deadline_counts(self, batch_id: str, emulator: Emulator) -> None:
        emulator.advance(DONE_AFTER_S)
        event = {"status": "timeout", "batches": {batch_id: None}, "message": ""}
        assert resumed(sensor(batch_id), event)["status"] == "completed"

    def test_batch_that_cannot_be_seen_at_the_deadline_is_a_sensor_timeout(
        self, batch_id: str, emulator: Emulator
    ) -> None:
        emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"status": 503}, "times": None})
        event = {"status": "timeout", "batches": {batch_id: None}, "message": ""}
        with pytest.raises(AirflowSensorTimeout, match=f"Batch {batch_id} did not get there within 20 seconds"):
            resumed(sensor(batch_id), event)

    def test_failed_batch_fails_without_a_retry(self, emulator: Emulator) -> None:
        event = failed_event(emulator)
        with pytest.raises(AirflowFailException, match="line 7: empty_file"):
            resumed(sensor(*event["batches"]), event)

    def test_error_event_may_be_retried(self, batch_id: str) -> None:
        event = {"status": "error", "batches": {batch_id: None}, "message": "the key was revoked"}
        with pytest.raises(AirflowException, match="the key was revoked") as raised:
            resumed(sensor(batch_id), event)
        assert not isinstance(raised.value, AirflowFailException)

    @pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
    @pytest.mark.parametrize("status", ["failed", "timeout", "error"])
    def test_every_failure_is_a_skip_if_asked_for(self, emulator: Emulator, option: str, status: str) -> None:
        event: dict[str, Any] = {"status": status, "batches": {"batch_1": None}, "message": "no"}
        if status == "failed":
            event = failed_event(emulator)
        with pytest.raises(AirflowSkipException):
            resumed(sensor("batch_1", **{option: True}), event)

    @pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
    def test_failure_at_the_first_look_is_a_skip_if_asked_for(self, emulator: Emulator, option: str) -> None:
        batch_id = new_batch(emulator, FAILED)
        emulator.advance(DONE_AFTER_S)
        with pytest.raises(AirflowSkipException):
            sensor(batch_id, deferrable=True, **{option: True}).execute({})


def failed_event(emulator: Emulator) -> dict[str, Any]:
    batch_id = new_batch(emulator, FAILED)
    emulator.advance(DONE_AFTER_S)
    batch = OpenAIBatchesHook().retrieve_batch(batch_id)
    return {"status": "reached", "batches": {batch_id: batch.to_dict()}, "message": ""}


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"target_statuses": "completed"}, r"target_statuses takes a list of these: validating.*it has \['comp"),
            ({"target_statuses": ["done"]}, r"target_statuses takes .* it has \['done'\]"),
            ({"failed_statuses": ["error"]}, r"failed_statuses takes .* it has \['error'\]"),
            ({"target_statuses": []}, "target_statuses is empty"),
            ({"target_statuses": 5}, r"target_statuses takes .* it has \[5\]"),
            ({"target_statuses": [["failed"], 1]}, r"target_statuses takes .* it has \[\['failed'\], 1\]"),
            ({"failed_statuses": b"failed"}, r"failed_statuses takes .* it has \[b'failed'\]"),
            ({"failed_statuses": {}}, r"failed_statuses takes .* it has \[\{\}\]"),
        ],
    )
    def test_status_that_does_not_exist_is_refused(
        self, options: dict[str, Any], message: str, emulator: Emulator
    ) -> None:
        with pytest.raises(AirflowFailException, match=message):
            sensor("batch_1", **options).execute({})
        assert emulator.calls == []

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            *(("deferrable", value) for value in ("False", None, 1)),
            *(("poll_interval", value) for value in (0, "60", None, float("nan"))),
            *(("timeout", value) for value in (-1, "60", float("inf"))),
        ],
    )
    def test_parameter_that_cannot_work_is_refused_when_the_dag_is_parsed(self, parameter: str, value: Any) -> None:
        with pytest.raises(InvalidInputError, match=f"^{parameter}: "):
            OpenAIBatchSensor(task_id="wait", batch_id="batch_1", **{parameter: value})

    @pytest.mark.parametrize("missing", [None, "", "None"])
    def test_missing_id_is_refused(self, missing: Any, emulator: Emulator) -> None:
        with pytest.raises(InvalidInputError, match="batch_id: expected an id"):
            sensor(missing).execute({})
        assert emulator.calls == []

    def test_space_around_the_id_does_not_matter(self, batch_id: str, emulator: Emulator) -> None:
        assert deferred(sensor(f"{batch_id}\n", deferrable=True)).trigger.batch_ids == [batch_id]
