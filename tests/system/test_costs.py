"""What a job may cost is settled before anything is sent, in a real Airflow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from demo.airflow import Airflow
from tests.system.dags.costs import ROWS

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DAG_ID = "costs"


def test_an_estimate_buys_nothing_and_a_job_above_its_limit_fails_before_it_does(
    airflow: Airflow, service: Emulator, tmp_path: Path
) -> None:
    sent = service.count("POST", "/v1/files"), service.count("POST", "/v1/batches")

    run_id = airflow.trigger(DAG_ID, {"directory": str(tmp_path)})
    assert airflow.wait_for_run(DAG_ID, run_id, timeout_s=90) == "failed"

    assert {task.task_id: task.state for task in airflow.task_instances(DAG_ID, run_id)} == {
        "estimate": "success",
        "too_dear": "failed",
    }
    estimate = airflow.xcom(DAG_ID, run_id, "estimate")
    assert estimate is not None
    # A million tokens of answers cost 0.30 USD, and a prompt of five words next to nothing.
    assert 0.30 < estimate["estimated_cost"] < 0.31
    assert (estimate["requests"], estimate["succeeded"], estimate["batch_ids"]) == (ROWS, 0, [])
    log = airflow.task_log(DAG_ID, run_id, "too_dear")
    assert re.search(r"max_cost: the job is estimated at 0\.30\d* USD, more than 0\.05\. Nothing was sent\.", log)
    assert "raise max_cost" in log
    assert (service.count("POST", "/v1/files"), service.count("POST", "/v1/batches")) == sent
