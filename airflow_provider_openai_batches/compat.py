"""Where Airflow versions differ beyond what common-compat covers. Features are probed, not versions."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.triggers.base import BaseTrigger

log = logging.getLogger(__name__)

ENDED_TASK_STATES = frozenset({"success", "failed", "skipped", "removed", "upstream_failed"})
"""A task instance in one of these has no further attempt of its own."""


def task_state_store(context: Mapping[str, Any]) -> Any | None:
    """Return the store that survives a task's retries and clears (Airflow 3.3), or None."""
    return context.get("task_state_store")


def read_metadata_database() -> None:
    """Let the connections of this process come from the metadata database too, as `airflow connections test` does.

    Since Airflow 3.2 a process that says nothing of itself sees only those of the environment and of secrets backends.
    Has to be called before the first connection is read.
    """
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")


@functools.cache
def let_metrics_out() -> None:
    """Let the metrics of this process be sent, as a task's are. To be called in a triggerer, before the first.

    Airflow 3.2 and 3.3 set up what providers count with where a task runs. In another process it drops what it is
    given, unless something happens to be imported that sets it up (https://github.com/apache/airflow/issues/69172).
    """
    from airflow.providers.common.compat.sdk import conf

    try:
        from airflow.sdk.observability import stats
        from airflow.sdk.observability.metrics import stats_utils
    except ImportError:
        return
    if hasattr(stats, "initialize"):
        legacy_names = conf.getboolean("metrics", "legacy_names_on")
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=legacy_names)
    else:
        stats.Stats.initialize(factory=stats_utils.get_stats_factory(stats.Stats))  # type: ignore[call-arg]


async def task_state(trigger: BaseTrigger) -> str | None:
    """Return the state of the task instance a trigger works for, e.g. ``deferred``; None if it cannot be found."""
    ti = trigger.task_instance
    return None if ti is None else await asyncio.to_thread(_state_of, ti)


def has_ended(ti: Any, *, within_s: float = 2.5) -> bool:
    """Whether Airflow says that a task instance is over; False if it cannot say so in time.

    A task is stopped for many reasons. After a worker's eviction or a clear it has another attempt, and only a task
    that a user ended has none. Safe to call in a signal's handler: the signal may have interrupted another question to
    Airflow, whose lock would then never be released, so that a thread asks.

    :param ti: the context's task instance, or None
    :param within_s: seconds to wait for the answer; Airflow kills a task five seconds after it asked it to stop
    """
    states: list[str | None] = []

    def ask() -> None:
        try:
            states.append(_state_of(ti))
        except Exception:
            log.warning("Airflow does not say whether the task is over.", exc_info=True)

    if ti is not None:
        asking = threading.Thread(target=ask, name="task-state", daemon=True)
        asking.start()
        asking.join(within_s)
    return bool(states) and states[0] in ENDED_TASK_STATES


def has_succeeded(dag_id: str, run_id: str) -> bool:
    """Whether Airflow knows a DAG run, and says that it succeeded. To be called in a running task.

    :param dag_id: of the DAG
    :param run_id: of its run
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    # To count finds nothing where to ask for the run's state is an error: a run that was deleted, or another Airflow's.
    return RuntimeTaskInstance.get_dr_count(dag_id=dag_id, run_ids=[run_id], states=["success"]) > 0


def _state_of(ti: Any) -> str | None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
    )
    # The key is the task's id, with the map index appended for a mapped one.
    return next(iter(states.get(ti.run_id, {}).values()), None)
