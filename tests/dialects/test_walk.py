"""The same walk at every service: up, create, wait, list, cancel, down, a whole job, and an answer that is lost."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_openai_batches.api.errors import CreateOutcomeUnknownError, NotFoundError
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.jobs import engine, purchase
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator, OpenAIBatchSubmitOperator
from airflow_provider_openai_batches.results import read_results
from airflow_provider_openai_batches.testing import faults
from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger
from tests.airflow.conftest import Attempts, Store, request_lines
from tests.dialects.conftest import CHAT, new_batch

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("emulator", "no_pauses")]

NIGHT = datetime.datetime(2026, 11, 20, 2, tzinfo=datetime.UTC)
RunDag = Callable[[DAG], Any]
RunTrigger = Callable[..., list[Any]]


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job looks again soon after trouble."""
    monkeypatch.setattr(engine, "TROUBLE_WAIT_S", (0.1, 1.0))
    monkeypatch.setattr(purchase, "OWN_CLAIM_SETTLES_S", 0.1)


def job(tmp_path: Path, run_dag: RunDag, name: str, **parameters: Any) -> list[dict[str, Any]]:
    """Run a job of four rows in a DAG; return its result rows."""
    rows = ["a", "b", "c", "d"]
    with DAG(name, schedule=None, start_date=NIGHT) as dag:
        OpenAIBatchOperator(
            task_id="label", requests=rows, output_path=str(tmp_path), model="m", poll_interval=0.05, **parameters
        )
    run = run_dag(dag)
    [ti] = run.get_task_instances()
    assert str(run.state) == "success", ti.state
    return list(read_results(ti.xcom_pull(task_ids="label")))


def test_a_file_goes_up_and_comes_back(hook: OpenAIBatchesHook, tmp_path: Path) -> None:
    content = request_lines(3)
    file = hook.upload_file(content, filename="rows.jsonl")
    assert (file.filename, file.bytes) == ("rows.jsonl", len(content))
    assert hook.retrieve_file(file.id).id == file.id
    assert [each.id for each in hook.list_files()] == [file.id]
    assert hook.download_file(file.id, tmp_path / "copy") == len(content)
    assert (tmp_path / "copy").read_bytes() == content
    hook.delete_file(file.id)
    with pytest.raises(NotFoundError):
        hook.retrieve_file(file.id)


def test_a_batch_is_waited_for_by_the_hook_and_its_answers_are_read(hook: OpenAIBatchesHook) -> None:
    batch = hook.wait_for_batch(new_batch(hook), poll_interval=0.01)
    assert (batch.status, batch.is_terminal) == ("completed", True)
    assert batch.created_at is not None
    assert batch.output_file_id is not None
    lines = [json.loads(line) for line in hook.iter_lines(batch.output_file_id)]
    assert {line["custom_id"] for line in lines} == {"row-0", "row-1", "row-2"}
    if batch.error_file_id is not None:
        assert list(hook.iter_lines(batch.error_file_id)) == []


def test_batches_are_waited_for_by_the_trigger(hook: OpenAIBatchesHook, run_trigger: RunTrigger) -> None:
    batch_ids = [new_batch(hook) for _ in range(3)]
    trigger = OpenAIBatchTrigger(conn_id="openai_batches_default", batch_ids=batch_ids, poll_interval=0.05)
    [event] = run_trigger(trigger)
    assert {batch_id: batch["status"] for batch_id, batch in event["batches"].items()} == dict.fromkeys(
        batch_ids, "completed"
    )


def test_a_refused_batch_says_why(hook: OpenAIBatchesHook, emulator: Emulator) -> None:
    file = hook.upload_file(request_lines(1, body={"model": "no-such-model", "messages": []}))
    batch = hook.wait_for_batch(hook.create_batch(file.id, CHAT).id, poll_interval=0.01)
    assert batch.status == "failed"
    assert "no-such-model" in str(batch.errors[0])


def test_batches_are_listed_newest_first(hook: OpenAIBatchesHook, emulator: Emulator) -> None:
    made = []
    for _ in range(4):
        made.append(new_batch(hook))
        emulator.advance(5)
    assert [batch.id for batch in hook.list_batches()] == made[::-1]
    assert [batch.id for batch in hook.list_batches(limit=2)] == made[:1:-1]
    assert [batch.id for batch in hook.list_batches(after=made[2])] == made[1::-1]


def test_a_cancelled_batch_keeps_what_it_finished(hook: OpenAIBatchesHook, emulator: Emulator) -> None:
    emulator.seconds_per_look = 0
    batch_id = new_batch(hook, rows=4)
    emulator.advance(3 + 60)
    assert hook.cancel_batch(batch_id).status == "cancelling"
    emulator.advance(10)
    batch = hook.retrieve_batch(batch_id)
    assert batch.status == "cancelled"
    assert batch.output_file_id is not None
    assert len(list(hook.iter_lines(batch.output_file_id))) == 2
    assert hook.cancel_batch(batch_id).status == "cancelled"


def test_a_job_buys_no_row_twice_through_a_failed_row_and_an_expired_batch(
    run_dag: RunDag, tmp_path: Path, emulator: Emulator
) -> None:
    emulator.add_fault(faults.batch_expires(finished=0.5))
    emulator.add_fault(faults.row_fails("row-1", 400, code="invalid_value", message="no", times=None))
    rows = job(tmp_path, run_dag, f"job_{emulator.dialect.replace('-', '_')}", max_failed=1)
    assert [(row["custom_id"], row["status"]) for row in rows] == [
        ("row-0", "succeeded"),
        ("row-1", "failed"),
        ("row-2", "succeeded"),
        ("row-3", "succeeded"),
    ]
    assert rows[1]["error"]["code"] == "invalid_value"
    assert len(emulator.batches()) == 2
    assert emulator.bought() == {"row-0": 1, "row-2": 1, "row-3": 1}


def test_a_jobs_last_rows_are_finished_without_a_batch_where_the_model_answers(
    run_dag: RunDag, tmp_path: Path, emulator: Emulator
) -> None:
    emulator.add_fault(faults.row_fails("row-1", 500))
    name = f"direct_{emulator.dialect.replace('-', '_')}"
    rows = job(tmp_path, run_dag, name, finish_synchronously_below=2)
    assert {row["status"] for row in rows} == {"succeeded"}
    is_for_batches_alone = emulator.dialect.startswith("azure")
    assert [row["batch_id"] is None for row in rows] == [False, not is_for_batches_alone, False, False]
    assert len(emulator.batches()) == 1 + is_for_batches_alone
    assert rows[1]["attempts"] == 2
    assert emulator.bought() == {"row-0": 1, "row-1": 1, "row-2": 1, "row-3": 1}


def test_a_lost_create_answer_buys_one_batch_for_a_job(
    run_dag: RunDag, tmp_path: Path, emulator: Emulator, short_waits: None
) -> None:
    emulator.add_fault(faults.lost_create_response())
    rows = job(tmp_path, run_dag, f"lost_{emulator.dialect.replace('-', '_')}", max_requests_per_batch=2)
    assert {row["status"] for row in rows} == {"succeeded"}
    assert len(emulator.batches()) == 2
    assert emulator.bought() == {"row-0": 1, "row-1": 1, "row-2": 1, "row-3": 1}


def test_a_lost_create_answer_and_a_list_that_fails_buy_one_batch_for_a_job(
    run_dag: RunDag, tmp_path: Path, emulator: Emulator, short_waits: None
) -> None:
    emulator.add_fault(faults.lost_create_response())
    emulator.add_fault(faults.server_error(503, on=faults.LIST))
    job(tmp_path, run_dag, f"unseen_{emulator.dialect.replace('-', '_')}")
    assert len(emulator.batches()) == 1
    assert emulator.bought() == {"row-0": 1, "row-1": 1, "row-2": 1, "row-3": 1}


def test_a_lost_create_answer_buys_one_batch_for_the_hook(hook: OpenAIBatchesHook, emulator: Emulator) -> None:
    emulator.seconds_per_look = 0
    file_id = hook.upload_file(request_lines(1)).id
    first = hook.create_batch(file_id, CHAT)
    emulator.add_fault(faults.lost_create_response())
    second = hook.create_batch(file_id, CHAT)
    assert first.id != second.id, "the file's earlier batch is another purchase"
    assert len(emulator.batches()) == 2


def test_a_create_that_never_arrived_is_sent_again(hook: OpenAIBatchesHook, emulator: Emulator) -> None:
    emulator.add_fault(faults.lost_call(on=faults.CREATE))
    new_batch(hook)
    assert len(emulator.batches()) == 1


@pytest.mark.parametrize("has_store", [True, False], ids=["store", "no store"])
def test_a_retried_submit_finds_its_batch_after_a_lost_answer(
    hook: OpenAIBatchesHook, emulator: Emulator, has_store: bool
) -> None:
    emulator.seconds_per_look = 0
    file_id = hook.upload_file(request_lines(1)).id
    attempts = Attempts(store=Store() if has_store else None)

    def submit() -> str:
        operator = OpenAIBatchSubmitOperator(task_id="submit", input_file_id=file_id, endpoint=CHAT)
        return str(operator.execute(attempts.next()))

    emulator.add_fault(faults.lost_create_response())
    # A look before the create, where the service keeps no metadata, may pass.
    before = 0 if hook.get_conn().settings.dialect.keeps_metadata else 1
    emulator.add_fault(faults.server_error(503, on=faults.LIST, times=None, skip=before))
    with pytest.raises(CreateOutcomeUnknownError):
        submit()
    emulator.clear_faults()
    [batch] = hook.list_batches()
    assert submit() == batch.id
    assert len(emulator.batches()) == 1
