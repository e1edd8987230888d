"""`finish_synchronously_below` in a task: the last rows in the same attempt, and a task that is ended meanwhile."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_openai_batches.api.errors import InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
from airflow_provider_openai_batches.results import read_results
from airflow_provider_openai_batches.testing import faults
from tests.airflow.conftest import Attempts, register

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection", "no_pauses")]

PRICES = {"gpt-4o-mini": {"input": 0.075, "output": 0.30}}


@pytest.mark.openai_batches_emulator(keep_requests=True)
def test_three_rows_of_a_thousand_that_failed_in_passing_are_finished_in_the_same_attempt(
    emulator: Emulator, airflow_db: None, tmp_path: Path
) -> None:
    for row in (5, 500, 995):
        emulator.add_fault(faults.row_fails(f"row-{row}", 503))
    with DAG("last_rows", schedule=None, start_date=datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)) as dag:

        @task
        def without_a_batch(manifest: dict[str, Any]) -> list[str]:
            return [row["custom_id"] for row in read_results(manifest) if row["batch_id"] is None]

        job = OpenAIBatchOperator(
            task_id="label",
            requests=[f"say {row}" for row in range(1_000)],
            output_path=str(tmp_path),
            model="gpt-4o-mini",
            max_requests_per_batch=500,
            prices=PRICES,
            finish_synchronously_below=10,
        )
        without_a_batch(job.output)
    register(dag)
    run = dag.test()
    assert str(run.state) == "success"
    label, last = run.get_task_instance("label"), run.get_task_instance("without_a_batch")
    manifest = label.xcom_pull(task_ids="label")
    assert (manifest["requests"], manifest["succeeded"], len(manifest["batch_ids"])) == (1_000, 1_000, 2)
    assert last.xcom_pull(task_ids="without_a_batch") == ["row-5", "row-500", "row-995"]
    direct = manifest["direct"]
    assert direct["requests"] == emulator.count("POST", "/v1/chat/completions") == 3
    assert 0 < direct["cost"] < manifest["cost"]
    assert emulator.bought() == {f"row-{row}": 1 for row in range(1_000)}


@pytest.mark.openai_batches_emulator(keep_requests=True)
def test_killed_task_sends_no_more_rows_and_its_next_attempt_sends_the_rest(
    emulator: Emulator, attempts: Attempts, tmp_path: Path
) -> None:
    for row in range(40):
        emulator.add_fault(faults.row_fails(f"row-{row}", 503))
    emulator.add_fault(faults.slow(0.3, on=faults.CHAT, times=None))

    def operator() -> OpenAIBatchOperator:
        return OpenAIBatchOperator(
            task_id="label",
            requests=[f"say {row}" for row in range(40)],
            output_path=str(tmp_path),
            model="gpt-4o-mini",
            deferrable=False,
            poll_interval=0.05,
            finish_synchronously_below=40,
        )

    killed, context = operator(), attempts.next()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            killed.execute(context)
        except OpenAIBatchesError as error:
            raised.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    wait_until(lambda: list(tmp_path.glob("_job/shard-*/*.direct/*.answer.json")) or not worker.is_alive())
    killed.on_kill()
    worker.join(30)
    assert "ended from outside" in str(raised[0])
    sent = emulator.count("POST", "/v1/chat/completions")
    assert 1 <= sent < 40
    emulator.clear_faults()
    manifest = operator().execute(attempts.next())
    assert manifest["direct"]["requests"] == emulator.count("POST", "/v1/chat/completions") == 40
    assert emulator.bought() == {f"row-{row}": 1 for row in range(40)}


@pytest.mark.parametrize("value", [-1, 1_001, 0.5, True, "10"])
def test_number_of_last_rows_is_checked_when_the_dag_is_parsed(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="finish_synchronously_below: expected a whole number from 0 to 1,000"):
        OpenAIBatchOperator(task_id="label", requests=[], output_path="out", finish_synchronously_below=value)


def wait_until(condition: Callable[[], object], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
