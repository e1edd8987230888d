"""The operators and the sensor in DAG runs of a real Airflow, triggers included."""

from __future__ import annotations

import datetime
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.operators.openai_batches import (
    OpenAIBatchCancelOperator,
    OpenAIBatchDownloadOperator,
    OpenAIBatchSubmitOperator,
    OpenAIBatchUploadOperator,
)
from airflow_provider_openai_batches.sensors.openai_batches import OpenAIBatchSensor

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection", "no_pauses")]

RunDag = Callable[[DAG], Any]
ENDPOINT = "/v1/chat/completions"
SOON = 0.05
AT_ONCE = datetime.timedelta(0)

still = pytest.mark.usefixtures("openai_batches_clock")
"""For tests that move the emulator's time themselves."""


@pytest.fixture
def dag(request: pytest.FixtureRequest) -> DAG:
    """A DAG of the test's own: all tests share one metadata database."""
    name = "".join(char if char.isalnum() else "_" for char in request.node.name)
    return DAG(name, schedule=None, start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), params={"rows": 3})


@pytest.fixture
def database(airflow_home: Path, airflow_db: None) -> Iterator[sqlite3.Connection]:
    """The metadata database, read past Airflow."""
    with sqlite3.connect(f"file:{airflow_home}/airflow.db?mode=ro", uri=True) as connection:
        yield connection


def xcoms(database: sqlite3.Connection, dag: DAG, task_id: str, *, map_index: int = -1) -> dict[str, Any]:
    """What a task has pushed, by key."""
    query = "SELECT key, value FROM xcom WHERE dag_id = ? AND task_id = ? AND map_index = ?"
    return {key: json.loads(value) for key, value in database.execute(query, (dag.dag_id, task_id, map_index))}


def rendered(database: sqlite3.Connection, dag: DAG, task_id: str) -> dict[str, Any]:
    query = "SELECT rendered_fields FROM rendered_task_instance_fields WHERE dag_id = ? AND task_id = ?"
    [(fields,)] = database.execute(query, (dag.dag_id, task_id))
    found: dict[str, Any] = json.loads(fields)
    return found


def states(run: Any) -> dict[str, str]:
    return {instance.task_id: str(instance.state) for instance in run.get_task_instances()}


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "poke"])
def test_file_to_answers(
    dag: DAG, run_dag: RunDag, database: sqlite3.Connection, input_file: Path, tmp_path: Path, deferrable: bool
) -> None:
    waits = {"deferrable": deferrable, "poll_interval": SOON}
    with dag:
        upload = OpenAIBatchUploadOperator(
            task_id="upload",
            source=f"{input_file.parent}/{{{{ 'requests' }}}}.jsonl",
            filename="{{ dag.dag_id }}.jsonl",
            conn_id="openai_batches_{{ 'default' }}",
        )
        submit = OpenAIBatchSubmitOperator(
            task_id="submit",
            input_file_id=upload.output,
            endpoint="/v1/{{ 'chat' }}/completions",
            completion_window="{{ 24 }}h",
            metadata={"rows": "{{ params.rows }}"},
            conn_id="openai_batches_{{ 'default' }}",
        )
        wait = OpenAIBatchSensor(
            task_id="wait", batch_id=submit.output, conn_id="openai_batches_{{ 'default' }}", timeout=60, **waits
        )
        download = OpenAIBatchDownloadOperator(
            task_id="download",
            batch_id="{{ ti.xcom_pull(task_ids='submit', key='batch_id') }}",
            output_path=f"{tmp_path}/{{{{ dag.dag_id }}}}",
            conn_id="openai_batches_{{ 'default' }}",
        )
        wait >> download
    assert run_dag(dag).state == "success"

    file_id = xcoms(database, dag, "upload")["return_value"]
    batch_id = xcoms(database, dag, "submit")["return_value"]
    page = f"/plugin/openai-batches?conn_id=openai_batches_default&batch={batch_id}"
    # The dashboard of OpenAI knows nothing of another service's batches, nor a browser a worker's directory.
    links = {"openai_batch_link": "", "openai_batches_page_link": page}
    output_path = str(tmp_path / dag.dag_id / f"{batch_id}.output.jsonl")
    assert xcoms(database, dag, "upload") == {"return_value": file_id, "file_id": file_id}
    assert xcoms(database, dag, "submit") == {
        "return_value": batch_id,
        "batch_id": batch_id,
        **links,
    }
    assert xcoms(database, dag, "wait")["return_value"]["status"] == "completed"
    assert links.items() <= xcoms(database, dag, "wait").items()
    assert xcoms(database, dag, "download")["return_value"]["output_path"] == output_path
    assert (links | {"openai_batch_results_link": ""}).items() <= xcoms(database, dag, "download").items()
    assert len(Path(output_path).read_bytes().splitlines()) == 3
    assert rendered(database, dag, "submit") == {
        "input_file_id": file_id,
        "endpoint": ENDPOINT,
        "completion_window": "24h",
        "metadata": {"rows": "3"},
        "conn_id": "openai_batches_default",
    }
    assert rendered(database, dag, "upload")["filename"] == f"{dag.dag_id}.jsonl"


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "on the worker"])
def test_submit_waits_and_cancel_finds_it_over(
    dag: DAG, run_dag: RunDag, database: sqlite3.Connection, input_file: Path, deferrable: bool
) -> None:
    waits = {"deferrable": deferrable, "poll_interval": SOON}
    with dag:
        upload = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file))
        submit = OpenAIBatchSubmitOperator(
            task_id="submit", input_file_id=upload.output, endpoint=ENDPOINT, wait_for_completion=True, **waits
        )
        OpenAIBatchCancelOperator(task_id="cancel", batch_id=submit.output, wait_for_cancellation=True, **waits)
    assert run_dag(dag).state == "success"
    assert xcoms(database, dag, "cancel")["return_value"]["status"] == "completed"


@still
def test_id_and_link_are_there_while_the_task_is_deferred(
    dag: DAG, run_dag: RunDag, airflow_home: Path, emulator: Emulator, input_file: Path
) -> None:
    with dag:
        upload = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file))
        OpenAIBatchSubmitOperator(
            task_id="submit",
            input_file_id=upload.output,
            endpoint=ENDPOINT,
            wait_for_completion=True,
            deferrable=True,
            poll_interval=SOON,
        )
    while_deferred: dict[str, Any] = {}
    over = threading.Event()

    def look_and_let_the_batch_end() -> None:
        # The trigger looks at the batch, so the task is deferred.
        while not over.wait(0.02):
            if emulator.count("GET", "/v1/batches/{batch_id}"):
                with sqlite3.connect(f"file:{airflow_home}/airflow.db?mode=ro", uri=True) as own_connection:
                    while_deferred.update(xcoms(own_connection, dag, "submit"))
                break
        emulator.advance(200)

    onlooker = threading.Thread(target=look_and_let_the_batch_end)
    onlooker.start()
    try:
        assert run_dag(dag).state == "success"
    finally:
        over.set()
        onlooker.join()
    batch_id = emulator.batches()[0]["id"]
    assert while_deferred == {
        "batch_id": batch_id,
        "openai_batch_link": "",
        "openai_batches_page_link": f"/plugin/openai-batches?conn_id=openai_batches_default&batch={batch_id}",
    }


def test_retry_after_a_lost_create_buys_one_batch(
    dag: DAG, run_dag: RunDag, database: sqlite3.Connection, emulator: Emulator, input_file: Path
) -> None:
    emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "after"}})
    emulator.add_fault({"on": {"method": "GET", "path": "/batches"}, "do": {"status": 503}, "times": 20})
    with dag:
        upload = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file))
        OpenAIBatchSubmitOperator(
            task_id="submit", input_file_id=upload.output, endpoint=ENDPOINT, retries=1, retry_delay=AT_ONCE
        )
    run = run_dag(dag)
    assert run.state == "success"
    assert run.get_task_instance("submit").try_number == 2
    assert [batch["id"] for batch in emulator.batches()] == [xcoms(database, dag, "submit")["batch_id"]]


def test_mapped_tasks_buy_one_batch_each_and_keep_it_on_a_retry(
    dag: DAG, run_dag: RunDag, database: sqlite3.Connection, emulator: Emulator, input_file: Path
) -> None:
    # The three are created, but the answer to the second is lost, and so are all looks of its first attempt.
    emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "after"}, "skip": 1})
    emulator.add_fault({"on": {"method": "GET", "path": "/batches"}, "do": {"status": 503}, "times": 20})
    with dag:
        upload = OpenAIBatchUploadOperator.partial(task_id="upload").expand(source=[str(input_file)] * 3)
        OpenAIBatchSubmitOperator.partial(task_id="submit", endpoint=ENDPOINT, retries=1, retry_delay=AT_ONCE).expand(
            input_file_id=upload.output
        )
    assert run_dag(dag).state == "success"
    submitted = [xcoms(database, dag, "submit", map_index=index)["batch_id"] for index in range(3)]
    assert sorted(submitted) == sorted(batch["id"] for batch in emulator.batches())
    for index, batch_id in enumerate(submitted):
        [batch] = [batch for batch in emulator.batches() if batch["id"] == batch_id]
        assert batch["metadata"]["airflow_map_index"] == str(index)


def test_clear_of_a_finished_task_submits_the_file_anew(
    dag: DAG, run_dag: RunDag, database: sqlite3.Connection, emulator: Emulator, input_file: Path
) -> None:
    with dag:
        upload = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file))
        OpenAIBatchSubmitOperator(
            task_id="submit",
            input_file_id=upload.output,
            endpoint=ENDPOINT,
            wait_for_completion=True,
            deferrable=False,
            poll_interval=SOON,
            retries=2,
        )
    run = run_dag(dag)
    first = xcoms(database, dag, "submit")["batch_id"]
    run_again_after_clear(dag, run, "submit")
    second = xcoms(database, dag, "submit")["batch_id"]
    assert second != first
    assert len(emulator.batches()) == 2


@still
def test_clear_while_the_batch_runs_goes_on_with_it(
    dag: DAG, run_dag: RunDag, database: sqlite3.Connection, emulator: Emulator, input_file: Path
) -> None:
    with dag:
        upload = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file))
        OpenAIBatchSubmitOperator(task_id="submit", input_file_id=upload.output, endpoint=ENDPOINT)
    run = run_dag(dag)
    run_again_after_clear(dag, run, "submit")
    assert [batch["id"] for batch in emulator.batches()] == [xcoms(database, dag, "submit")["batch_id"]]


def run_again_after_clear(dag: DAG, run: Any, task_id: str) -> None:
    """Clear one task as the UI does, and run its next attempt as the scheduler does."""
    from airflow.models.taskinstance import clear_task_instances
    from airflow.sdk.definitions.dag import _run_task
    from airflow.utils.session import create_session

    with create_session() as session:
        # The run is left as it is: what a clear would queue, the scheduler starts before any of its tasks.
        clear_task_instances([run.get_task_instance(task_id, session=session)], session, dag_run_state=False)
    with create_session() as session:
        instance = run.get_task_instance(task_id, session=session)
        instance.try_number += 1
        session.flush()
        session.expunge(instance)
    _run_task(ti=instance, task=dag.get_task(task_id), run_triggerer=True)


def test_sensor_that_soft_fails_skips_the_rest(
    dag: DAG, run_dag: RunDag, emulator: Emulator, input_file: Path, tmp_path: Path
) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": [{"code": "empty_file"}]}})
    with dag:
        upload = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file))
        submit = OpenAIBatchSubmitOperator(task_id="submit", input_file_id=upload.output, endpoint=ENDPOINT)
        wait = OpenAIBatchSensor(
            task_id="wait", batch_id=submit.output, deferrable=True, poll_interval=SOON, soft_fail=True, timeout=60
        )
        wait >> OpenAIBatchDownloadOperator(task_id="download", batch_id=submit.output, output_path=str(tmp_path))
    assert states(run_dag(dag)) == {"upload": "success", "submit": "success", "wait": "skipped", "download": "skipped"}


@pytest.mark.parametrize("emulator", [500_000], indirect=True, ids=["a day in an instant"])
def test_finished_rows_are_not_bought_again_by_retries(
    dag: DAG, run_dag: RunDag, emulator: Emulator, input_file: Path
) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "expire", "finished": 0.7}, "times": None})
    with dag:
        upload = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file))
        OpenAIBatchSubmitOperator(
            task_id="submit",
            input_file_id=upload.output,
            endpoint=ENDPOINT,
            wait_for_completion=True,
            deferrable=True,
            poll_interval=SOON,
            retries=5,
            retry_delay=AT_ONCE,
        )
    run = run_dag(dag)
    assert run.state == "failed"
    assert run.get_task_instance("submit").try_number == 1
    assert len(emulator.batches()) == 1
