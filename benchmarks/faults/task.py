"""One task instance, run as Airflow's task runner does."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class _Store(dict[str, Any]):
    """Airflow's task_state_store: it survives attempts."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


class TaskInstance:
    """A task with one retry.

    :param operator: makes the operator, anew for each process Airflow would run it in
    :param event: waits for the first event of a trigger, as the triggerer does
    :param pause: waits between attempts
    :param now: unix time of the DAG run
    :param run_id: of the DAG run
    """

    def __init__(
        self,
        operator: Callable[[], Any],
        event: Callable[[Any], Any],
        pause: Callable[[], None],
        now: float,
        run_id: str = "run",
    ) -> None:
        self._operator, self._event, self._pause = operator, event, pause
        self._store = _Store()
        self._run_after = datetime.datetime.fromtimestamp(now, datetime.UTC)
        self._run_id = run_id
        self._try_number, self._max_tries = 0, 1
        self.value: Any = None
        self.messages: list[str] = []
        self.xcoms: list[Any] = []
        self.waited_for: list[Any] = []

    def clear(self) -> None:
        """Do what a user's clear does: the task gets its retries anew."""
        self._max_tries = self._try_number + 1

    def run(self) -> bool:
        """Run it until it succeeds or has no attempt left; return whether it succeeded."""
        from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout

        while True:
            self._try_number += 1
            try:
                self.value = self._attempt()
            except Exception as error:  # noqa: BLE001 - as Airflow does: whatever it is, the attempt has failed
                self.messages.append(str(error) or type(error).__name__)
                if isinstance(error, (AirflowFailException, AirflowSensorTimeout)):
                    return False
            else:
                return True
            if self._try_number > self._max_tries:
                return False
            self._pause()

    def _attempt(self) -> Any:
        from airflow.providers.common.compat.sdk import TaskDeferred

        context = self._context()

        def rendered() -> Any:
            task = self._operator()
            task.render_template_fields(context)
            return task

        method, arguments = "execute", dict[str, Any]()
        while True:
            try:
                return getattr(rendered(), method)(context, **arguments)
            except TaskDeferred as deferral:
                self.waited_for.append(deferral.trigger.serialize()[1])
                method, arguments = deferral.method_name, {"event": self._event(deferral.trigger)}

    def _context(self) -> dict[str, Any]:
        ti = SimpleNamespace(
            dag_id="dag",
            task_id="label",
            run_id=self._run_id,
            map_index=-1,
            try_number=self._try_number,
            max_tries=self._max_tries,
            xcom_push=lambda key, value: self.xcoms.append(value),
        )
        return {
            "ti": ti,
            "task_instance": ti,
            "task": SimpleNamespace(retries=1),
            "dag_run": SimpleNamespace(run_after=self._run_after),
            "task_state_store": self._store,
        }
