"""The service's files after a DAG run: what nothing needs any more goes, what a failed run has paid for stays."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.operators.openai_batches import (
    OpenAIBatchCleanupOperator,
    OpenAIBatchSubmitOperator,
    OpenAIBatchUploadOperator,
)
from tests.airflow.conftest import Attempts, new_batch

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection", "no_pauses", "in_40_days")]

RunDag = Callable[[DAG], Any]
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def in_40_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the operator is far ahead of the emulator's."""
    later = time.time() + 40 * 86_400
    clock = SimpleNamespace(time=lambda: later)
    monkeypatch.setattr("airflow_provider_openai_batches.operators.cleanup.time", clock)


def file_ids() -> set[str]:
    return {file.id for file in OpenAIBatchesHook().list_files()}


def buys(dag_id: str, input_file: Any, run_dag: RunDag, *, fails: bool = False) -> set[str]:
    """Run a DAG that buys a batch; return the ids of its files."""
    before = file_ids()
    with DAG(dag_id, schedule=None, start_date=START) as dag:
        upload = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file))
        submit = OpenAIBatchSubmitOperator(
            task_id="submit",
            input_file_id=upload.output,
            endpoint="/v1/chat/completions",
            wait_for_completion=True,
            deferrable=False,
            poll_interval=0.05,
        )

        @task
        def use() -> None:
            if fails:
                raise RuntimeError("the results could not be used")

        submit >> use()
    run = run_dag(dag)
    assert run.state == ("failed" if fails else "success")
    made = file_ids() - before
    assert len(made) == 2, "an input and an output"
    return made


def cleans(dag_id: str, run_dag: RunDag, **options: Any) -> Any:
    """Run a DAG that cleans up; return the state of its run."""
    with DAG(dag_id, schedule=None, start_date=START) as dag:
        OpenAIBatchCleanupOperator(task_id="clean", **options)
    return run_dag(dag).state


def test_files_of_a_run_that_succeeded_go_and_those_of_one_that_failed_stay(
    run_dag: RunDag, input_file: Any, emulator: Emulator
) -> None:
    succeeded = buys("cleanup_bought", input_file, run_dag)
    failed = buys("cleanup_bought_and_failed", input_file, run_dag, fails=True)
    foreign = new_batch(emulator)
    unused = OpenAIBatchesHook().upload_file(input_file).id
    OpenAIBatchesHook().retrieve_batch(foreign)
    before = file_ids()
    assert cleans("cleanup_default", run_dag) == "success"
    assert file_ids() == before - succeeded
    assert failed <= file_ids()
    assert unused in file_ids()
    # By age alone: what this DAG's failed run bought goes too, what was made elsewhere does not.
    assert cleans("cleanup_by_age", run_dag, only_succeeded=False) == "success"
    assert file_ids() == before - succeeded - failed


def test_only_files_of_the_named_dags_go(run_dag: RunDag, input_file: Any) -> None:
    one, other = (buys(f"cleanup_named_{name}", input_file, run_dag) for name in ("one", "other"))
    assert cleans("cleanup_of_named", run_dag, dag_ids=["cleanup_named_one"]) == "success"
    assert not one & file_ids()
    assert other <= file_ids()


def test_young_files_stay(run_dag: RunDag, input_file: Any) -> None:
    files = buys("cleanup_young", input_file, run_dag)
    assert cleans("cleanup_of_old", run_dag, older_than=datetime.timedelta(days=60)) == "success"
    assert files <= file_ids()


def test_a_dry_run_deletes_nothing_and_counts(run_dag: RunDag, input_file: Any, emulator: Emulator) -> None:
    files = buys("cleanup_dry", input_file, run_dag)
    size = sum(file.bytes or 0 for file in OpenAIBatchesHook().list_files() if file.id in files)
    counted: list[dict[str, int]] = []
    with DAG("cleanup_dry_run", schedule=None, start_date=START) as dag:

        @task
        def note(found: dict[str, int]) -> None:
            counted.append(found)

        note(OpenAIBatchCleanupOperator(task_id="clean", dag_ids="cleanup_dry", dry_run=True).output)
    assert run_dag(dag).state == "success"
    assert counted == [{"files": 2, "bytes": size}]
    assert emulator.count("DELETE", "/v1/files/{file_id}") == 0


def test_a_file_that_cannot_be_deleted_saves_no_other_and_fails_the_task(
    run_dag: RunDag, input_file: Any, emulator: Emulator
) -> None:
    files = sorted(buys("cleanup_refused", input_file, run_dag))
    fault = {"on": {"method": "DELETE", "path": f"/v1/files/{files[0]}"}, "do": {"status": 403}}
    emulator.add_fault({**fault, "times": None})
    assert cleans("cleanup_refused_once", run_dag, dag_ids="cleanup_refused") == "failed"
    assert set(files) & file_ids() == {files[0]}


@pytest.mark.parametrize("dag_ids", ["", [""], ["label", ""], 5, [1], {"label": 1}, b"label"])
def test_a_name_that_is_none_deletes_nothing(emulator: Emulator, dag_ids: Any) -> None:
    operator = OpenAIBatchCleanupOperator(task_id="clean", dag_ids=dag_ids)
    with pytest.raises(OpenAIBatchesError, match="dag_ids: expected ids of DAGs"):
        operator.execute(Attempts(store=None).next())
    assert emulator.count("DELETE", "/v1/files/{file_id}") == 0
