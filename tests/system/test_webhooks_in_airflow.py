"""Webhooks of the service, sent to a real API server: one that is signed wakes a job and starts a DAG."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.assets import webhook_asset
from airflow_provider_openai_batches.emulator import Emulator
from demo.airflow import Airflow
from tests.conftest import API_KEY
from tests.system.dags.webhooks import LIED_TO, TOLD

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DAG_ID = "wait_for_an_hour"
SECRET, FORGED = (
    "whsec_" + base64.b64encode(key).decode() for key in (b"known to both sides.....", b"made up.................")
)


@pytest.fixture
def behind(airflow: Airflow) -> Iterator[Callable[[str, str], Emulator]]:
    """Start a service that sends webhooks signed with a secret, behind a new connection whose secret is SECRET."""
    with contextlib.ExitStack() as stack:

        def start(conn_id: str, signs_with: str) -> Emulator:
            url = f"{airflow.url}/openai-batches/webhooks/{conn_id}"
            emulator = stack.enter_context(
                Emulator(speed=0, api_key=API_KEY, webhook_url=url, webhook_secret=signs_with)
            )
            connection = {"conn_type": "openai_batches", "host": emulator.base_url, "password": API_KEY}
            extra = json.dumps({"webhook_secret": SECRET})
            airflow.api("POST", "/connections", {"connection_id": conn_id, "extra": extra, **connection})
            return emulator

        yield start


class Job:
    """A run of the job that looks for its batch when it begins to wait, and again in an hour."""

    def __init__(self, airflow: Airflow, service: Emulator, conn_id: str, directory: Path) -> None:
        self.airflow = airflow
        self.service = service
        self.conn_id = conn_id
        self.run_id = airflow.trigger(DAG_ID, {"directory": str(directory), "conn_id": conn_id})

    def state(self) -> str:
        [task] = self.airflow.task_instances(DAG_ID, self.run_id)
        return task.state

    def has_looked_and_waits(self) -> bool:
        looks = self.service.count("GET", "/v1/batches/{batch_id}") + self.service.count("GET", "/v1/batches")
        return bool(self.service.batches()) and looks > 0 and self.state() == "deferred"

    def asset_events(self) -> list[dict[str, Any]]:
        """What the webhooks of its connection have led to."""
        asset = webhook_asset(self.conn_id)
        [known] = self.airflow.api("GET", "/assets", params={"uri_pattern": asset.uri})["assets"]
        return list(self.airflow.api("GET", "/assets/events", params={"asset_id": known["id"]})["asset_events"])

    def started_runs(self) -> list[str]:
        runs = self.airflow.api("GET", f"/dags/started_by_{self.conn_id}/dagRuns")["dag_runs"]
        return [run["dag_run_id"] for run in runs]


def test_a_signed_webhook_wakes_a_job_and_starts_a_dag_and_a_forged_one_does_nothing(
    airflow: Airflow, behind: Callable[[str, str], Emulator], tmp_path: Path
) -> None:
    wait_for = airflow.processes.wait_for
    for conn_id in (TOLD, LIED_TO):
        wait_for(lambda conn_id=conn_id: airflow._knows(f"started_by_{conn_id}"), timeout_s=60, what="the DAGs")
    told = Job(airflow, behind(TOLD, SECRET), TOLD, tmp_path)
    lied_to = Job(airflow, behind(LIED_TO, FORGED), LIED_TO, tmp_path)
    for job in (told, lied_to):
        wait_for(job.has_looked_and_waits, timeout_s=60, what="the job to wait")

    # The forged webhook first, so that it has had more time.
    for job in (lied_to, told):
        job.service.advance(200)

    assert airflow.wait_for_run(DAG_ID, told.run_id, timeout_s=60) == "success"
    manifest = airflow.xcom(DAG_ID, told.run_id, "label")
    assert manifest is not None
    assert manifest["succeeded"] == 5
    [run_id] = wait_for(told.started_runs, timeout_s=30, what="the DAG that webhooks start")
    assert airflow.wait_for_run("started_by_told", run_id, timeout_s=60) == "success"
    [event] = told.asset_events()
    assert [run["run_id"] for run in event["created_dagruns"]] == [run_id]
    assert [event["extra"]["batch_id"]] == manifest["batch_ids"]
    assert airflow.xcom("started_by_told", run_id, "note") == [event["extra"]]
    assert told.started_runs() == [run_id]

    api_server = airflow.processes.log_dir / "api-server.log"
    wait_for(
        lambda: re.search(rf"webhooks/{LIED_TO}\b.*\b401\b", api_server.read_text()),
        timeout_s=10,
        what="the forged webhook to be refused",
    )
    assert [batch["status"] for batch in lied_to.service.batches()] == ["completed"]
    assert (lied_to.state(), lied_to.asset_events(), lied_to.started_runs()) == ("deferred", [], [])
