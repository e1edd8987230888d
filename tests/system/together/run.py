"""A run of a DAG whose task `label` is a job, and the service it goes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from airflow_provider_openai_batches.emulator import Emulator
from demo.airflow import Airflow, TaskInstance


@dataclass(frozen=True)
class Run:
    """One run.

    :param service: where its job goes, and that of no other
    """

    airflow: Airflow
    service: Emulator
    dag_id: str
    params: dict[str, str]
    run_id: str

    @classmethod
    def begin(cls, airflow: Airflow, service: Emulator, dag_id: str, params: dict[str, str]) -> Self:
        """Trigger a run."""
        return cls(airflow, service, dag_id, params, airflow.trigger(dag_id, params))

    def begin_again(self) -> Self:
        """Trigger another run with the same parameters."""
        return self.begin(self.airflow, self.service, self.dag_id, self.params)

    def clear(self, task_ids: Sequence[str]) -> None:
        """Clear tasks, as a user does."""
        order = {"dry_run": False, "dag_run_id": self.run_id, "task_ids": list(task_ids), "only_failed": False}
        self.airflow.api("POST", f"/dags/{self.dag_id}/clearTaskInstances", order)

    def task(self) -> TaskInstance:
        """Look at the job."""
        [task] = [task for task in self._tasks() if task.task_id == "label"]
        return task

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        """Read what a task returned."""
        return self.airflow.xcom(self.dag_id, self.run_id, task_id, key)

    def finish(self) -> dict[str, Any]:
        """Wait until the run is over, and green.

        :return: the job's manifest
        """
        state = self.airflow.wait_for_run(self.dag_id, self.run_id, timeout_s=200)
        assert state == "success", [
            self.airflow.task_log(self.dag_id, self.run_id, task.task_id, try_number=task.try_number)
            for task in self._tasks()
            if task.state == "failed"
        ]
        manifest: dict[str, Any] = self.xcom("label")
        return manifest

    def statuses(self) -> list[int]:
        """List the HTTP statuses of all calls to the service."""
        return [call.status for call in self.service.calls]

    def _tasks(self) -> list[TaskInstance]:
        return self.airflow.task_instances(self.dag_id, self.run_id)
