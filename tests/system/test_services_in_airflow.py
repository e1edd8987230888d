"""A job at each of the services, in a real Airflow. All their runs go on beside each other."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.emulator.dialects import DIALECTS
from airflow_provider_openai_batches.results import read_results
from demo.airflow import Airflow, TaskInstance
from tests.identity import Identity
from tests.system.conftest import TOKEN, NewService
from tests.system.dags.anywhere import ROWS
from tests.system.test_job_in_airflow import child_named

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DAG_ID = "anywhere"
SERVICES = [name for name in DIALECTS if name != "openai"]
WITH_IDENTITY = ["azure", "azure-classic"]
STREAMING = ["doubleword"]
OTHER_KEY = "sk-emulator-abcdefghij9876543210"


@dataclass(frozen=True)
class Run:
    """A run of the job, and the service it was sent to."""

    airflow: Airflow
    service: Emulator
    conn_id: str
    run_id: str

    def task(self) -> TaskInstance:
        [task] = self.airflow.task_instances(DAG_ID, self.run_id)
        return task

    def is_deferred(self) -> bool:
        return self.task().state == "deferred"

    def statuses(self) -> list[int]:
        return [call.status for call in self.service.calls]

    def check(self) -> list[dict[str, Any]]:
        """Wait for the end: green, each row answered in its place, and each bought once, in two batches.

        :return: the result rows
        """
        state = self.airflow.wait_for_run(DAG_ID, self.run_id, timeout_s=200)
        assert state == "success", self.airflow.task_log(
            DAG_ID, self.run_id, "label", try_number=self.task().try_number
        )
        manifest = self.airflow.xcom(DAG_ID, self.run_id, "label")
        assert manifest is not None
        assert (manifest["requests"], manifest["succeeded"], len(manifest["batch_ids"])) == (ROWS, ROWS, 2)
        rows = list(read_results(manifest))
        assert [row["context"]["number"] for row in rows] == list(range(ROWS))
        assert {row["status"] for row in rows} == {"succeeded"}
        assert len(self.service.batches()) == 2
        assert self.service.bought() == {f"row-{number}": 1 for number in range(ROWS)}
        return rows


@pytest.fixture(scope="module")
def runs(airflow: Airflow, new_service: NewService, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One at each service, by its name; at those of Azure another without a key; and one whose batches stand still."""
    directory = tmp_path_factory.mktemp("anywhere")

    def start(conn_id: str, dialect: str, extra: dict[str, object] | None = None, **options: object) -> Run:
        extra = {"dialect": dialect.removesuffix("-classic"), **(extra or {})}
        service = new_service(conn_id, extra, dialect=dialect, **options)
        conf = {"directory": str(directory / conn_id), "conn_id": conn_id}
        return Run(airflow, service, conn_id, airflow.trigger(DAG_ID, conf))

    return {
        # The first that is asked for.
        **{f"{name}-slow": start(f"{name}-slow", name, speed=0, batch_seconds=120) for name in STREAMING},
        **{name: start(name, name) for name in SERVICES},
        **{f"{name}-id": start(f"{name}-id", name, {"auth": "entra"}, api_key=TOKEN) for name in WITH_IDENTITY},
    }


@pytest.mark.parametrize("name", STREAMING)
def test_answers_are_read_and_the_key_is_rotated_while_a_job_is_deferred(
    airflow: Airflow, runs: dict[str, Run], name: str
) -> None:
    run = runs[f"{name}-slow"]
    service, wait_for = run.service, airflow.processes.wait_for
    wait_for(run.is_deferred, timeout_s=90, what="the task to be deferred")
    first, _ = batch_ids = airflow.xcom(DAG_ID, run.run_id, "label", key="batch_ids")
    service.advance(3 + 60)
    command = ["results", first, "--conn-id", run.conn_id, "--partial"]
    lines, said = openai_batches(airflow, *command)
    assert len(lines) == ROWS // 4
    assert f"{ROWS // 4} answers from number 0 on; go on with --offset {ROWS // 4}." in said

    service.api_key = OTHER_KEY
    wait_for(lambda: 401 in run.statuses(), timeout_s=30, what="the triggerer to be refused")
    new = {"connection_id": run.conn_id, "conn_type": "openai_batches", "password": OTHER_KEY}
    airflow.api("PATCH", f"/connections/{run.conn_id}", new, params={"update_mask": ["password"]})
    refused = len(run.statuses())
    wait_for(lambda: 200 in run.statuses()[refused:], timeout_s=60, what="the triggerer to use the new key")
    assert (run.task().state, run.task().try_number) == ("deferred", 1)

    service.advance(35)
    more, _ = openai_batches(airflow, *command, "--offset", str(len(lines)))
    assert len(more) == 1
    service.advance(200)
    rows = run.check()
    assert run.task().try_number == 1
    assert {row["batch_id"] for row in rows} == set(batch_ids)
    outputs = {row["custom_id"]: row["output"] for row in rows if row["batch_id"] == first}
    read = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines + more}
    assert len(read) == 3
    assert read.items() <= outputs.items()


@pytest.mark.parametrize("name", SERVICES)
def test_a_job_is_done_in_a_real_airflow(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    run.check()
    assert set(run.statuses()) <= {200, 201, 302}


@pytest.mark.parametrize("name", WITH_IDENTITY)
def test_a_job_is_done_in_a_real_airflow_without_a_key(runs: dict[str, Run], identity: Identity, name: str) -> None:
    runs[f"{name}-id"].check()
    assert set(identity.asked) == {"https://cognitiveservices.azure.com"}


def openai_batches(airflow: Airflow, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """Run the command where Airflow is installed; return the lines it prints, and what it says beside."""
    environment = psutil.Process(child_named(airflow.processes, "scheduler").popen.pid).environ()
    argv = [sys.executable, "-m", "airflow_provider_openai_batches.cli", *arguments]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr
