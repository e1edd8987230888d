"""An Airflow of nine processes: two Celery workers and two triggerers, each of which can be killed and begun anew."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import requests

from demo.airflow import Airflow
from demo.openai_server import CONNECTION_VARIABLE
from demo.processes import HOST, Processes
from tests.conftest import API_KEY
from tests.distributed.killing import bury, child_of, family, kill
from tests.distributed.services import Services

REPOSITORY = Path(__file__).resolve().parents[2]
WORKERS = ("worker-1", "worker-2")
TRIGGERERS = ("triggerer", "triggerer-2")
SLOTS = 3
"""Tasks at a time in each worker."""
START_TIMEOUT_S = 120

# How long a part may be silent before it counts as dead: minutes by default, and this is a test.
QUICK_TO_NOTICE = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "3",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    # A message that a dead worker had fetched is not delivered again: the scheduler queues the task anew.
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "3",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
}


class Cluster:
    """The running Airflow. :meth:`start` makes one; it ends with the processes it was started through.

    :param airflow: its REST API
    """

    def __init__(self, airflow: Airflow) -> None:
        self.airflow = airflow
        self.processes = airflow.processes
        self._environment = psutil.Process(child_of(self.processes, TRIGGERERS[0]).popen.pid).environ()
        self._triggerer_jobs: dict[str, int] = {}
        self._note_job_of(TRIGGERERS[0])

    @classmethod
    def start(cls, processes: Processes, home: Path, services: Services, service_port: int) -> Cluster:
        """Start all of it and wait until it is healthy and both workers are ready.

        :param home: AIRFLOW_HOME; must not exist yet
        :param service_port: of 127.0.0.1, where the Batch API is
        """
        connection = {
            "conn_type": "openai_batches",
            "host": f"http://{HOST}:{service_port}/v1",
            "password": API_KEY,
            # A service that is cut off says nothing: this is how long it is listened to.
            "extra": {"timeout": 10},
        }
        environment = {
            CONNECTION_VARIABLE: json.dumps(connection),
            "AIRFLOW_CONN_S3_TEST": services.s3_connection(),
            "PYTHONPATH": str(REPOSITORY),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{services.postgresql}",
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__PARALLELISM": "16",
            "AIRFLOW__CELERY__BROKER_URL": services.redis,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+postgresql+psycopg2://{services.postgresql}",
        }
        dags = Path(__file__).parent / "dags"
        airflow = Airflow.start(processes, home, dags, env=environment | QUICK_TO_NOTICE)
        cluster = cls(airflow)
        cluster._start(TRIGGERERS[1], "triggerer", "--skip-serve-logs")
        cluster._note_job_of(TRIGGERERS[1])
        for name in WORKERS:
            options = ("--celery-hostname", name, "--concurrency", str(SLOTS), "--skip-serve-logs")
            cluster._start(name, "celery", "worker", *options)
        for name in WORKERS:
            cluster.wait_until_ready(name)
        return cluster

    def _start(self, name: str, *words: str) -> None:
        self.processes.start(name, [sys.executable, "-m", "airflow", *words], env=self._environment)

    def wait_until_ready(self, worker: str) -> None:
        """Wait until a worker takes tasks."""
        log = child_of(self.processes, worker).log
        self.processes.wait_for(
            lambda: "ready." in log.read_text(errors="replace"), timeout_s=START_TIMEOUT_S, what=f"{worker} to be ready"
        )

    def kill(self, name: str) -> int:
        """Kill a component with all it has started, so that it can tell nobody, and start it anew.

        :return: how many processes died
        """
        child, dead = kill(self.processes, name)
        self.processes.start(name, child.popen.args, env=self._environment)
        return dead

    def restart_dead(self) -> list[str]:
        """Start anew what has ended by itself, as a supervisor would, and name it."""
        dead = [child for child in self.processes._children if child.lasting and child.popen.poll() is not None]
        for child in dead:
            bury(self.processes, child)
            self.processes.start(child.name, child.popen.args, env=self._environment)
        return [child.name for child in dead]

    def is_healthy(self) -> bool:
        """Whether the API server answers, and says that all parts are healthy."""
        try:
            return self.airflow._is_healthy()
        except requests.RequestException:  # An error page, while there is no database.
            return False

    def worker_with(self, pid: int) -> str | None:
        """Name the worker of which a process is part."""
        for name in WORKERS:
            if pid in {each.pid for each in family(child_of(self.processes, name))}:
                return name
        return None

    def tasks(self, runs: dict[str, tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
        """Return what the REST API tells of each task, by names of run and task.

        :param runs: DAG id and run id by the run's name
        """
        found = {}
        for name, (dag_id, run_id) in runs.items():
            path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances"
            for task in self.airflow.api("GET", path)["task_instances"]:
                found[name, task["task_id"]] = task
        return found

    def memory_mib(self) -> float:
        """Sum up what all processes of this run hold, shared pages counted once (PSS)."""
        total = 0
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(OSError, psutil.Error):
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return total / 1024

    def triggerer_with(self, triggers: Counter[int]) -> tuple[str, int]:
        """Name the triggerer that has the most triggers, and its job.

        :param triggers: how many triggers each triggerer job has
        """
        name = max(self._triggerer_jobs, key=lambda name: triggers[self._triggerer_jobs[name]])
        return name, self._triggerer_jobs[name]

    def _note_job_of(self, triggerer: str) -> None:
        """Wait until a triggerer that was just started has told Airflow of itself; by that id its triggers name it."""
        known = set(self._triggerer_jobs.values())

        def new_job() -> int | None:
            wanted = {"job_type": "TriggererJob", "is_alive": True, "limit": 100}
            jobs = self.airflow.api("GET", "/jobs", params=wanted)["jobs"]
            return max((int(job["id"]) for job in jobs if int(job["id"]) not in known), default=None)

        self._triggerer_jobs[triggerer] = self.processes.wait_for(
            new_job, timeout_s=START_TIMEOUT_S, what=f"the job of {triggerer}"
        )
