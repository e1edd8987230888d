"""DAGs that start when batches end and when results are there, in a real scheduler and triggerer that restarts."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.airflow import Airflow
from demo.processes import is_alive
from tests.collector import Collector
from tests.system.test_job_in_airflow import child_named

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

# Whether a watcher goes on where the one before it stopped.
KEEPS = find_spec("airflow.models.asset_state_store") is not None
PRODUCER, ON_RESULTS, ON_BATCHES = "label_tickets", "count_ticket_labels", "note_ended_batches"


def returned(airflow: Airflow, dag_id: str, task_id: str) -> list[Any]:
    """What this task of the DAG's successful runs returned, oldest run first."""
    query = {"state": "success", "order_by": "run_after", "limit": 100}
    runs = airflow.api("GET", f"/dags/{dag_id}/dagRuns", params=query)["dag_runs"]
    return [airflow.xcom(dag_id, run["dag_run_id"], task_id) for run in runs]


def asset_id(airflow: Airflow, name: str) -> int:
    found = airflow.api("GET", "/assets", params={"name_pattern": name})["assets"]
    return int(next(asset["id"] for asset in found if asset["name"] == name))


def noted(airflow: Airflow) -> dict[str, Any]:
    """What the triggerer keeps of the batches it has told (Airflow 3.3); nothing before its first look."""
    entries = airflow.api("GET", f"/assets/{asset_id(airflow, 'ticket_batches_ended')}/state-store")
    [kept] = entries["asset_state_store"] or [{"value": {}}]
    return dict(kept["value"])


def told(airflow: Airflow) -> list[str]:
    """The batches of all events, oldest first."""
    query = {"asset_id": asset_id(airflow, "ticket_batches_ended"), "order_by": "timestamp"}
    events = airflow.api("GET", "/assets/events", params=query)["asset_events"]
    return [event["extra"]["payload"]["batch_id"] for event in events]


def label(airflow: Airflow, directory: Path) -> str:
    """Run the job; return its batch."""
    run_id = airflow.trigger(PRODUCER, {"outbox": str(directory)})
    assert airflow.wait_for_run(PRODUCER, run_id, timeout_s=120) == "success"
    manifest = airflow.xcom(PRODUCER, run_id, "label")
    assert manifest is not None
    [batch_id] = manifest["batch_ids"]
    return str(batch_id)


def restart_triggerer(airflow: Airflow) -> None:
    """Stop the triggerer as a deployment does, and start another."""
    processes = airflow.processes
    child = child_named(processes, "triggerer")
    process = psutil.Process(child.popen.pid)
    family, command, environment = process.children(recursive=True), process.cmdline(), process.environ()
    # From here on its end is no surprise.
    processes._children.remove(child)
    process.terminate()
    child.popen.wait(60)
    processes.wait_for(lambda: not any(map(is_alive, family)), timeout_s=20, what="the triggerer to be gone")
    processes.start("triggerer", command, env=environment)


def test_ended_batches_and_results_start_dags_once_each(airflow: Airflow, collector: Collector, tmp_path: Path) -> None:
    wait_for = airflow.processes.wait_for

    def looks() -> int:
        conn_id = "openai_batches_default"
        return collector.metrics("openai_batches.poll_calls", "conn_id", conn_id=conn_id)[conn_id]

    looks_before = looks()
    for dag_id in (ON_RESULTS, ON_BATCHES):
        wait_for(lambda dag_id=dag_id: airflow._knows(dag_id), timeout_s=60, what=f"the DAG {dag_id}")
        airflow.api("PATCH", f"/dags/{dag_id}", {"is_paused": False})
    # A watcher's trigger is made when the file is read, which has both DAGs.
    airflow.api("PUT", f"/parseDagFile/{airflow.api('GET', f'/dags/{ON_BATCHES}')['file_token']}")
    wait_for(lambda: looks() > looks_before, timeout_s=60, what="the first look")
    if KEEPS:
        wait_for(lambda: "since" in noted(airflow), timeout_s=60, what="it to be noted")

    first = label(airflow, tmp_path)
    wait_for(lambda: returned(airflow, ON_RESULTS, "count") == [3], timeout_s=60, what="the run for the results")
    wait_for(
        lambda: returned(airflow, ON_BATCHES, "note") == [{first: "completed"}],
        timeout_s=60,
        what="the run for a batch",
    )
    if KEEPS:
        wait_for(lambda: first in noted(airflow)["done"], timeout_s=30, what="the triggerer to note what it told")
        restart_triggerer(airflow)

    second = label(airflow, tmp_path)
    wait_for(
        lambda: returned(airflow, ON_BATCHES, "note") == [{first: "completed"}, {second: "completed"}],
        timeout_s=60,
        what="the run for the second batch",
    )
    wait_for(lambda: returned(airflow, ON_RESULTS, "count") == [3, 3], timeout_s=60, what="the second results")
    assert told(airflow) == [first, second]
