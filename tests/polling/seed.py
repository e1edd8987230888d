"""Put deferred tasks into a metadata database, as if a scheduler had run them: ``python -m tests.polling.seed``.

Reads a JSON list of ``[trigger class path, kwargs]`` from stdin; each becomes a mapped task instance of the one task
``load.wait`` in run ``run``, numbered on from those that are there.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.models.dag_version import DagVersion
from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import func, select

try:
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
except ImportError:  # Airflow 3.1
    from airflow.models.dagbag import DagBag, sync_bag_to_db

DAG_ID, TASK_ID, RUN_ID = "load", "wait", "run"


def register_dag() -> None:
    """Write the DAG to the database."""
    with DAG(DAG_ID, schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
        EmptyOperator(task_id=TASK_ID)
    dag.fileloc, dag.relative_fileloc = __file__, os.path.basename(__file__)
    bag = DagBag(dag_folder=os.devnull)
    bag.bag_dag(dag)
    with create_session() as session:
        DagBundlesManager().sync_bundles_to_db(session=session)
    with create_session() as session:
        sync_bag_to_db(bag, "dags-folder", None, session=session)


def start_run() -> None:
    """Make the DAG run, without task instances."""
    now = datetime.now(UTC)
    with create_session() as session:
        dag = DBDagBag().get_latest_version_of_dag(DAG_ID, session=session)
        assert dag is not None
        run = dag.create_dagrun(
            run_id=RUN_ID,
            logical_date=now,
            data_interval=(now, now),
            run_after=now,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            session=session,
        )
        session.flush()
        for ti in run.get_task_instances(session=session):
            session.delete(ti)


def add_deferred(triggers: list[tuple[str, dict[str, Any]]]) -> None:
    """Add one deferred task instance for each trigger."""
    with create_session() as session:
        dag = DBDagBag().get_latest_version_of_dag(DAG_ID, session=session)
        version = DagVersion.get_latest_version(DAG_ID, session=session)
        assert dag is not None
        assert version is not None
        taken = session.scalar(select(func.count()).select_from(TaskInstance).where(TaskInstance.dag_id == DAG_ID))
        for map_index, (classpath, kwargs) in enumerate(triggers, start=taken or 0):
            trigger = Trigger(classpath=classpath, kwargs=kwargs)
            session.add(trigger)
            session.flush()
            ti = TaskInstance(task=dag.get_task(TASK_ID), run_id=RUN_ID, map_index=map_index, dag_version_id=version.id)
            ti.state = TaskInstanceState.DEFERRED
            ti.try_number = 1
            ti.start_date = datetime.now(UTC)
            ti.next_method, ti.next_kwargs = "execute_complete", {}
            ti.trigger_id = trigger.id
            session.add(ti)
            if map_index % 200 == 0:
                # A triggerer that is running gives up on a SQLite that is locked for five seconds.
                session.commit()


def main() -> None:
    """Seed what stdin asks for."""
    with create_session() as session:
        is_new = session.scalar(select(DagRun.id).where(DagRun.dag_id == DAG_ID)) is None
    if is_new:
        register_dag()
        start_run()
    add_deferred(json.load(sys.stdin))


if __name__ == "__main__":
    main()
