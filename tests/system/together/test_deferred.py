"""What can be done while a job is deferred, in a real Airflow."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import psutil
import pytest

from demo.airflow import Airflow
from tests.system.test_job_in_airflow import child_named
from tests.system.together.conftest import STREAMING
from tests.system.together.run import Run
from tests.system.together.test_services import check

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

OTHER_KEY = "sk-emulator-abcdefghij9876543210"


@pytest.mark.parametrize("name", STREAMING)
def test_answers_are_read_and_the_key_is_rotated_while_a_job_is_deferred(
    airflow: Airflow, slow: dict[str, Run], name: str
) -> None:
    run = slow[name]
    service, conn_id, wait_for = run.service, run.params["conn_id"], airflow.processes.wait_for
    wait_for(lambda: run.task().state == "deferred", timeout_s=90, what="the task to be deferred")
    first, _ = batch_ids = run.xcom("label", key="batch_ids")
    service.advance(3 + 60)
    command = ["results", first, "--conn-id", conn_id, "--partial"]
    lines, said = openai_batches(airflow, *command)
    assert len(lines) == 2
    assert "2 answers from number 0 on; go on with --offset 2." in said

    service.api_key = OTHER_KEY
    wait_for(lambda: 401 in run.statuses(), timeout_s=30, what="the triggerer to be refused")
    new = {"connection_id": conn_id, "conn_type": "openai_batches", "password": OTHER_KEY}
    airflow.api("PATCH", f"/connections/{conn_id}", new, params={"update_mask": ["password"]})
    refused = len(run.statuses())
    wait_for(lambda: 200 in run.statuses()[refused:], timeout_s=60, what="the triggerer to use the new key")
    assert (run.task().state, run.task().try_number) == ("deferred", 1)

    service.advance(35)
    more, _ = openai_batches(airflow, *command, "--offset", "2")
    assert len(more) == 1
    service.advance(200)
    rows = check(run)
    assert run.task().try_number == 1
    assert {row["batch_id"] for row in rows} == set(batch_ids)
    outputs = {row["custom_id"]: row["output"] for row in rows if row["batch_id"] == first}
    read = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines + more}
    assert len(read) == 3
    assert read.items() <= outputs.items()


def openai_batches(airflow: Airflow, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """Run the command where Airflow is installed; return the lines it prints, and what it says beside."""
    environment = psutil.Process(child_named(airflow.processes, "scheduler").popen.pid).environ()
    argv = [sys.executable, "-m", "airflow_provider_openai_batches.cli", *arguments]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr
