"""What happens to the Airflow while it works: each part dies at a moment that is chosen by a condition."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from demo.airflow import FINISHED_STATES
from tests.distributed.chronicle import Chronicle
from tests.distributed.cluster import Cluster
from tests.distributed.evidence import Service
from tests.distributed.network import Network
from tests.distributed.services import Services
from tests.distributed.workload import BY_DAG, IN_TASK, RUNS

MOMENT_TIMEOUT_S = 150
END_TIMEOUT_S = 420
MEMORY_EVERY_S = 5.0
POLL_S = 0.5
AWAY_S = 5.0
"""How long a service is away: what is begun meanwhile meets nobody."""

Tasks = dict[tuple[str, str], dict[str, Any]]


@dataclass(frozen=True)
class Ended:
    """A job's end.

    :param state: Airflow's, of its task
    :param tries: how many it took
    :param manifest: what it returned
    """

    state: str
    tries: int
    manifest: dict[str, Any]
    log: str


class Story:
    """One run of everything. Each method is a chapter, and goes on when what it waits for has happened."""

    def __init__(
        self, cluster: Cluster, services: Services, service: Service, network: Network, chronicle: Chronicle
    ) -> None:
        self._cluster = cluster
        self._services = services
        self._airflow = cluster.airflow
        self._service = service
        self._network = network
        self._chronicle = chronicle
        self._runs: dict[str, tuple[str, str]] = {}
        self._weighed_at = 0.0
        self._ended: list[str] | None = None
        """Components that ended by themselves and were begun anew; None as long as none may."""

    def begin(self, *names: str) -> None:
        """Start runs."""
        for name in names:
            self._runs[name] = RUNS[name], self._airflow.trigger(RUNS[name], {"name": name})

    def kill_worker(self) -> None:
        """Kill the worker that waits for its job, in the midst of buying it; other jobs are in its hands, too."""
        self._until(lambda: self._batches("first"), "the first job's first batch")
        self.begin("second", "third")
        self._until(lambda: len(self._batches("second") + self._batches("third")) >= 2, "batches of other jobs")
        assert len(self._batches("first")) == 1, "The first job should hang in its second upload."
        task = self._tasks()["first", "label"]
        name = self._until(lambda: self._cluster.worker_with(task["pid"]), "the worker of the first job")
        hands = self._running_on(name)
        event = self._chronicle.note(
            f"kill -9 of Celery worker `{name}`",
            f"its job had bought 1 of {IN_TASK.shards} batches; it was running {hands} tasks",
        )
        dead = self._cluster.kill(name)
        self._until(
            lambda: (
                self._tasks()["first", "label"]["try_number"] > task["try_number"]
                and self._tasks()["first", "label"]["state"] == "running"
            ),
            "a second try of the first job",
        )
        event.saw(f"{_processes(dead)} gone; a second try after {{s}}")
        self._until(lambda: len(self._batches("first")) >= IN_TASK.shards, "the first job's other batches")
        event.seen += ", which bought the 3 batches that were missing"

    def kill_triggerer(self) -> None:
        """Kill the triggerer in which most tasks wait."""

        def waiting_tasks() -> dict[tuple[str, str], int] | None:
            found = {task: triggerer for task, triggerer in self._triggers().items() if triggerer is not None}
            return found if len(found) >= 2 else None

        before = self._until(waiting_tasks, "two tasks that wait in a triggerer")
        name, job = self._cluster.triggerer_with(Counter(before.values()))
        waiting = {task for task, triggerer in before.items() if triggerer == job}
        event = self._chronicle.note(
            f"kill -9 of `{name}`", f"{len(waiting)} of {len(before)} deferred tasks waited in it"
        )
        dead = self._cluster.kill(name)
        self._until(
            lambda: not any(self._triggers().get(task, 0) in (job, None) for task in waiting),
            "the triggers to be taken over",
        )
        event.saw(f"{_processes(dead)} gone; all taken over after {{s}}")

    def kill_scheduler(self) -> None:
        """Kill the scheduler while some jobs are in their second round."""
        self._until(lambda: self._batches(round_number="2"), "a second round")
        event = self._chronicle.note("kill -9 of the scheduler", f"the first second round was bought; {self._states()}")
        dead = self._cluster.kill("scheduler")
        # A new run needs a scheduler.
        self.begin("fourth", "fifth")
        self._until(lambda: self._batches("fourth"), "a batch of a run that began without a scheduler")
        event.saw(f"{_processes(dead)} gone; a run begun meanwhile bought its first batch after {{s}}")

    def cut_network(self, seconds: float) -> None:
        """Cut the way to the service in the midst of buying, and mend it after a while."""
        wanted = sum(work.shards for work in BY_DAG["fleet"])
        bought = len(self._batches("fourth"))
        active = self._active()
        event = self._chronicle.note(
            f"network to the service cut for {seconds:.0f} s",
            f"run `fourth` had bought {bought} of {wanted} batches; of all runs, {len(active)} were going on",
        )
        self._network.cut()
        self._until(lambda: self._network.cut_for_s >= seconds, "the end of the cut", timeout_s=seconds + 30)
        stranded, ended = self._network.stranded, len(active - self._active())
        self._network.mend()
        batches = len(self._service.batches())
        self._until(lambda: len(self._service.batches()) > batches, "a batch after the cut")
        event.saw(
            f"{stranded} connections got no answer, {ended} batches ended unseen; the next was bought after {{s}}"
        )

    def kill_api_server(self) -> None:
        """Kill the API server, by which running tasks talk to Airflow, while one of them is buying."""
        self.begin("sixth")
        self._until(lambda: self._batches("sixth"), "the sixth job's first batch")
        event = self._chronicle.note(
            "kill -9 of the API server",
            f"run `sixth` had bought {len(self._batches('sixth'))} of {IN_TASK.shards} batches; {self._states()}",
        )
        dead = self._cluster.kill("api-server")
        self._until(self._cluster.is_healthy, "the API server to answer again")
        event.saw(f"{_processes(dead)} gone; it answered again after {{s}}")
        self._until(lambda: len(self._batches("sixth")) >= IN_TASK.shards, "the sixth job's other batches")
        event.seen += f"; the job bought the rest in its try {self._tasks()['sixth', 'label']['try_number']}"

    def kill_redis(self) -> None:
        """Kill Celery's broker, and begin a run while it is away."""
        event = self._chronicle.note(f"kill -9 of Redis, back after {AWAY_S:.0f} s", self._states())
        dead = self._services.kill("redis")
        self.begin("seventh")
        self._stay_away("redis")
        self._services.start_again(dead)
        self._until(lambda: self._batches("seventh"), "a batch of a run that began without Redis")
        event.saw("a run begun meanwhile bought its first batch after {s}")

    def kill_postgresql(self) -> None:
        """Kill the database in the midst of buying. What ends by itself for lack of it is begun anew."""
        wanted = sum(work.shards for work in BY_DAG["fleet"])
        event = self._chronicle.note(
            f"kill -9 of PostgreSQL, back after {AWAY_S:.0f} s",
            f"run `seventh` had bought {len(self._batches('seventh'))} of {wanted} batches; {self._states()}",
        )
        dead = self._services.kill("postgresql")
        self._stay_away("postgresql")
        self._services.start_again(dead)
        self._ended = []
        self._until(self._cluster.is_healthy, "all of Airflow to be healthy again")
        event.saw("all healthy again after {s}")
        self._until(lambda: len(self._batches("seventh", "1")) >= wanted, "the seventh run's other batches")
        ended = ", ".join(f"`{name}`" for name in self._ended) or "none"
        event.seen += f"; parts that ended without it and were begun anew: {ended}"

    def finish(self) -> dict[tuple[str, str], Ended]:
        """Wait until all runs are over, and return how each job ended."""
        self._until(self._all_over, "the end of all runs", timeout_s=END_TIMEOUT_S)
        ended = {}
        for (name, task_id), task in self._tasks().items():
            dag_id, run_id = self._runs[name]
            log = self._airflow.task_log(dag_id, run_id, task_id, try_number=task["try_number"])
            manifest = self._airflow.xcom(dag_id, run_id, task_id) or {}
            ended[name, task_id] = Ended(task["state"], task["try_number"], manifest, log)
        return ended

    def _until(self, condition: Any, what: str, timeout_s: float = MOMENT_TIMEOUT_S) -> Any:
        def weighed() -> Any:
            if time.monotonic() - self._weighed_at > MEMORY_EVERY_S:
                self._chronicle.peak_mib = max(self._chronicle.peak_mib, self._cluster.memory_mib())
                self._weighed_at = time.monotonic()
            if self._ended is not None:
                self._ended += self._cluster.restart_dead()
            return condition()

        # One of them gives up as soon as a component has ended by itself.
        processes = self._cluster.processes if self._ended is None else self._services.processes
        return processes.wait_for(weighed, timeout_s=timeout_s, what=what, poll_s=POLL_S)

    def _stay_away(self, service: str) -> None:
        """Let the time pass in which a service is away, and whoever needs it may end."""
        began = time.monotonic()
        self._services.processes.wait_for(
            lambda: time.monotonic() - began >= AWAY_S, timeout_s=2 * AWAY_S, what=f"{service} to have been away"
        )

    def _states(self) -> str:
        return f"tasks: {_list(Counter(task['state'] for task in self._tasks().values()))}"

    def _tasks(self) -> Tasks:
        return self._cluster.tasks(self._runs)

    def _all_over(self) -> bool:
        paths = [f"/dags/{dag_id}/dagRuns/{run_id}" for dag_id, run_id in self._runs.values()]
        return all(self._airflow.api("GET", path)["state"] in FINISHED_STATES for path in paths)

    def _triggers(self) -> dict[tuple[str, str], int | None]:
        """Return the triggerer's job of each deferred task."""
        deferred = {key: task for key, task in self._tasks().items() if task["state"] == "deferred" and task["trigger"]}
        return {key: task["trigger"]["triggerer_id"] for key, task in deferred.items()}

    def _running_on(self, worker: str) -> int:
        running = [task["pid"] for task in self._tasks().values() if task["state"] == "running" and task["pid"]]
        return sum(self._cluster.worker_with(pid) == worker for pid in running)

    def _batches(self, run: str | None = None, round_number: str | None = None) -> list[dict[str, Any]]:
        def wanted(metadata: dict[str, str]) -> bool:
            of_run = run is None or metadata["airflow_run_id"] == self._runs[run][1]
            return of_run and round_number in (None, metadata["airflow_round"])

        return [batch for batch in self._service.batches() if wanted(batch["metadata"])]

    def _active(self) -> set[str]:
        going_on = ("validating", "in_progress", "finalizing")
        return {batch["id"] for batch in self._service.batches() if batch["status"] in going_on}


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.most_common())


def _processes(number: int) -> str:
    return f"{number} process{'es' if number > 1 else ''}"
