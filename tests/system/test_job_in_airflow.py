"""A job through a real scheduler and triggerer, while the service, the worker and the triggerer fail."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import pytest

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.results import read_results
from demo.airflow import Airflow, TaskInstance
from demo.processes import Child, Processes, is_alive
from tests.system.dags.job_under_fire import ROWS

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DEFERRED, IN_ITS_WORKER = "job_under_fire", "job_in_its_worker"
FAILING_ROWS = random.Random(5).sample(range(ROWS), ROWS // 20)


@pytest.fixture(autouse=True)
def no_faults(service: Emulator) -> None:
    service.clear_faults()


class Run:
    """A run of the job, with one batch that expires and rows that fail at first."""

    def __init__(self, airflow: Airflow, service: Emulator, directory: Path, dag_id: str = DEFERRED) -> None:
        self.airflow = airflow
        self.dag_id = dag_id
        self.service = service
        self.directory = directory
        self.tries: set[int] = set()
        self.earlier = {batch["id"] for batch in service.batches()}
        service.add_fault({"on": {"batch": {"metadata": {"airflow_shard": "1"}}}, "do": {"outcome": "expire"}})
        for number in FAILING_ROWS:
            service.add_fault({"on": {"custom_id": f"row-{number}"}, "do": {"outcome": "server_error"}})
        self.run_id = airflow.trigger(self.dag_id, {"directory": str(directory)})

    def batches(self) -> list[dict[str, Any]]:
        return [batch for batch in self.service.batches() if batch["id"] not in self.earlier]

    def task(self) -> TaskInstance:
        [task] = self.airflow.task_instances(self.dag_id, self.run_id)
        return task

    def wait_until_deferred(self) -> None:
        self.airflow.processes.wait_for(
            lambda: self.task().state == "deferred", timeout_s=90, what="the task to be deferred"
        )

    def clear(self) -> None:
        """Clear the task, as a user does."""
        order = {"dry_run": False, "dag_run_id": self.run_id, "task_ids": ["label"], "only_failed": False}
        self.airflow.api("POST", f"/dags/{self.dag_id}/clearTaskInstances", order)

    def mistaken_deaths(self) -> int:
        """Count the tries that Airflow ended because the task was back before the executor had reported it gone.

        It happens when a deferral is shorter than a loop of the scheduler. Nobody but a test polls every second.
        """
        wanted = {"dag_id": self.dag_id, "run_id": self.run_id, "event": "state mismatch"}
        return int(self.airflow.api("GET", "/eventLogs", params=wanted)["total_entries"])

    def check(self, *, reads: int = 1) -> dict[str, Any]:
        """Wait for the end: green, each row answered in its place, and nothing bought twice.

        :param reads: how often the rows were read
        :return: the manifest
        """

        def on_poll(tasks: list[TaskInstance]) -> None:
            self.tries.update(task.try_number for task in tasks)
            self.service.advance(30)

        state = self.airflow.wait_for_run(self.dag_id, self.run_id, timeout_s=150, on_poll=on_poll)
        log = self.airflow.task_log(self.dag_id, self.run_id, "label", try_number=self.task().try_number)
        assert state == "success", log
        manifest = self.airflow.xcom(self.dag_id, self.run_id, "label")
        assert manifest is not None
        rows = list(read_results(manifest))
        assert [row["context"]["number"] for row in rows] == list(range(ROWS))
        assert {row["status"] for row in rows} == {"succeeded"}
        metadata = [batch["metadata"] for batch in self.batches()]
        bought = Counter((each["airflow_shard"], each["airflow_round"]) for each in metadata)
        assert set(bought.values()) == {1}, bought
        assert "expired" in {batch["status"] for batch in self.batches()}
        answers_bought = sum(batch["request_counts"]["completed"] for batch in self.batches())
        assert answers_bought == ROWS
        assert (self.directory / "reads").read_text() == "read\n" * reads
        return dict(manifest)


def test_every_row_is_answered_while_the_task_is_deferred(airflow: Airflow, service: Emulator, tmp_path: Path) -> None:
    run = Run(airflow, service, tmp_path)
    run.wait_until_deferred()
    bought = [batch["id"] for batch in reversed(run.batches())]
    assert airflow.xcom(DEFERRED, run.run_id, "label", key="batch_ids") == bought
    assert len(bought) == 3
    manifest = run.check()
    assert set(manifest["batch_ids"]) == {batch["id"] for batch in run.batches()}
    assert max(run.tries) == 1 + run.mistaken_deaths()

    run.clear()
    again = run.check(reads=2)
    assert (again["kept"], again["batch_ids"]) == (ROWS, [])


def test_killed_worker_and_killed_triggerer_cost_nothing(airflow: Airflow, service: Emulator, tmp_path: Path) -> None:
    run = hanging_run(airflow, service, tmp_path)
    worker = airflow.processes.wait_for(lambda: worker_of(run), timeout_s=10, what="the worker")
    worker.kill()

    run.wait_until_deferred()
    restart_triggerer(airflow.processes)
    assert run.task().state == "deferred"
    run.check()
    # The death of the killed worker is such an event, too.
    assert max(run.tries) == 1 + run.mistaken_deaths()


def test_running_task_that_is_marked_failed_cancels_its_batches_and_can_go_on(
    airflow: Airflow, service: Emulator, tmp_path: Path
) -> None:
    run = hanging_run(airflow, service, tmp_path)
    path = f"/dags/{DEFERRED}/dagRuns/{quote(run.run_id)}/taskInstances/label"
    airflow.api("PATCH", path, {"new_state": "failed"})

    def cancelled() -> bool:
        return {batch["status"] for batch in run.batches()} <= {"cancelling", "cancelled"}

    airflow.processes.wait_for(cancelled, timeout_s=60, what="the batch to be cancelled")
    airflow.processes.wait_for(lambda: not worker_of(run), timeout_s=30, what="the worker to be gone")
    assert len(run.batches()) == 1
    run.clear()
    run.check()


def test_an_evicted_worker_leaves_its_batches_to_the_next_attempt(
    airflow: Airflow, service: Emulator, tmp_path: Path
) -> None:
    run = Run(airflow, service, tmp_path, IN_ITS_WORKER)
    airflow.processes.wait_for(lambda: len(run.batches()) == 3, timeout_s=90, what="all batches")
    assert (run.task().state, run.task().try_number) == ("running", 1)
    worker = airflow.processes.wait_for(lambda: worker_of(run), timeout_s=10, what="the worker")
    worker.terminate()

    def attempts() -> int:
        return run.task().try_number

    airflow.processes.wait_for(lambda: attempts() == 2, timeout_s=60, what="the next attempt")
    assert not is_alive(worker)
    assert {batch["status"] for batch in run.batches()} <= {"validating", "in_progress"}
    run.check()
    assert max(run.tries) == 2


def hanging_run(airflow: Airflow, service: Emulator, directory: Path) -> Run:
    """A run whose worker has bought its first batch and hangs in the upload of its second shard."""
    service.add_fault({"on": {"method": "POST", "path": "/files"}, "do": {"delay": 60}, "skip": 1})
    run = Run(airflow, service, directory)
    airflow.processes.wait_for(run.batches, timeout_s=90, what="the first batch")
    assert len(run.batches()) == 1
    return run


def child_named(processes: Processes, name: str) -> Child:
    [child] = [child for child in processes._children if child.name == name]
    return child


def worker_of(run: Run) -> psutil.Process | None:
    """Find the process that runs the task: by its title, or where it has none, by its connection to the service.

    Newer Airflows let only root see its connections. On macOS it has no title.
    """
    task = run.airflow.api("GET", f"/dags/{run.dag_id}/dagRuns/{quote(run.run_id)}/taskInstances/label")
    port = urlsplit(run.service.base_url).port
    scheduler = child_named(run.airflow.processes, "scheduler")
    for process in psutil.Process(scheduler.popen.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).strip() == f"airflow worker -- {task['id']}":
                return process
            if any(each.raddr and each.raddr.port == port for each in process.net_connections(kind="tcp")):
                return process
    return None


def restart_triggerer(processes: Processes) -> None:
    """Kill the triggerer with all it has started, so that it can tell nobody, and start another."""
    child = child_named(processes, "triggerer")
    process = psutil.Process(child.popen.pid)
    family = [process, *process.children(recursive=True)]
    command, environment = process.cmdline(), process.environ()
    # From here on its death is no surprise.
    processes._children.remove(child)
    for each in family:
        each.kill()
    child.popen.wait()
    processes.wait_for(lambda: not any(map(is_alive, family)), timeout_s=10, what="the triggerer to be gone")
    processes.start("second-triggerer", command, env=environment)
