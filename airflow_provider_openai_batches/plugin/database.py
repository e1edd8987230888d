"""All that the page asks of Airflow's metadata database. No other file here knows a table.

Airflow moves these tables between versions; what is wanted of them stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from airflow.configuration import conf
from airflow.models import Connection, DagModel, DagRun, Log
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook
from airflow.utils.session import create_session
from sqlalchemy import select

_DAG_ID = re.compile(r"[\w.-]{1,250}")
_LONGEST_NAME = 250


class TaskPlace(NamedTuple):
    """A task instance, by its names."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


# --- who owns what ---------------------------------------------------------------------------------------------------


def connections_of(types: Iterable[str]) -> dict[str, str]:
    """Return the types of the connections in the database that have one of these, by id."""
    with create_session() as session:
        rows = session.execute(
            select(Connection.conn_id, Connection.conn_type).where(Connection.conn_type.in_(list(types)))
        )
        return {row.conn_id: row.conn_type for row in rows}


def connection_team(conn_id: str) -> str | None:
    """Return the team a connection belongs to; None where Airflow has no teams, or does not use them."""
    team: str | None = Connection.get_team_name(conn_id) if _has_teams() else None
    return team


def is_of_a_team_by_name(conn_id: str) -> bool:
    """Whether an id spells out the environment variable of a team's connection, ``AIRFLOW_CONN__<TEAM>___<ID>``.

    The database knows nothing of those teams, so nobody could be asked who may see it.
    """
    return conn_id.startswith("_") and "___" in conn_id and _has_teams()


def connection(conn_id: str) -> Any:
    """Return a connection as the team that owns it has it. Its extra is not looked at.

    :raises AirflowNotFoundException: there is none
    :raises ValueError: there is one in the database, and Airflow cannot read it
    """
    team = connection_team(conn_id)
    try:
        if team is None:
            return BaseHook.get_connection(conn_id)
        # The other way asks for connections of nobody's team only.
        return Connection.get_connection_from_secrets(conn_id, team_name=team)
    except AirflowNotFoundException:
        with create_session() as session:
            if session.scalar(select(Connection.id).where(Connection.conn_id == conn_id)) is None:
                raise
        # Airflow skips one whose fields it refuses, and says that there is none.
        raise ValueError(
            f"connection {conn_id}: it is in Airflow's database, but Airflow cannot read it. Its extra has to be a "
            "JSON object, and its password encrypted with a key of this Airflow. Write it anew."
        ) from None


def _has_teams() -> bool:
    return bool(conf.getboolean("core", "multi_team", fallback=False))


def dag_team(dag_id: str) -> str | None:
    """Return the team a DAG belongs to; None where Airflow has no teams."""
    team: str | None = DagModel.get_team_name(dag_id)
    return team


def is_dag_id(text: str) -> bool:
    """Whether any DAG could have this id. What could not is not looked up: databases choke on some texts."""
    return _DAG_ID.fullmatch(text) is not None


def known_dags(dag_ids: Collection[str]) -> set[str]:
    """Return those ids that are DAGs of this Airflow, whoever may see them."""
    wanted = [dag_id for dag_id in dag_ids if is_dag_id(dag_id)]
    if not wanted:
        return set()
    with create_session() as session:
        return set(session.scalars(select(DagModel.dag_id).where(DagModel.dag_id.in_(wanted))))


def run_is_over(place: TaskPlace) -> bool:
    """Whether a DAG run is finished, or not there any more."""
    with create_session() as session:
        state = session.scalar(select(DagRun.state).where(DagRun.dag_id == place.dag_id, DagRun.run_id == place.run_id))
    return state is None or str(state) in ("success", "failed")


# --- what a task left behind -----------------------------------------------------------------------------------------


def xcoms(place: TaskPlace, keys: Collection[str]) -> dict[str, Any]:
    """Return a task instance's XComs of these keys. One that an XCom backend keeps elsewhere is what it left here."""
    with create_session() as session:
        rows = session.execute(
            select(XComModel.key, XComModel.value).where(
                XComModel.dag_id == place.dag_id,
                XComModel.run_id == place.run_id,
                XComModel.task_id == place.task_id,
                XComModel.map_index == place.map_index,
                XComModel.key.in_(list(keys)),
            )
        )
        return {key: _decoded(value) for key, value in rows}


def stored_state(place: TaskPlace, key: str) -> Any | None:
    """Return what a task instance keeps in Airflow's task_state_store under a key; None before Airflow 3.3."""
    try:
        from airflow.models.task_state_store import TaskStateStoreModel as Kept
    except ImportError:
        return None
    with create_session() as session:
        value = session.scalar(
            select(Kept.value).where(
                Kept.dag_id == place.dag_id,
                Kept.run_id == place.run_id,
                Kept.task_id == place.task_id,
                Kept.map_index == place.map_index,
                Kept.key == key,
            )
        )
    return _decoded(value)


def rendered_fields(place: TaskPlace) -> Mapping[str, Any]:
    """Return a task instance's template fields as they were rendered; empty if it never ran."""
    kept = RenderedTaskInstanceFields
    with create_session() as session:
        fields = session.scalar(
            select(kept.rendered_fields).where(
                kept.dag_id == place.dag_id,
                kept.run_id == place.run_id,
                kept.task_id == place.task_id,
                kept.map_index == place.map_index,
            )
        )
    return fields if isinstance(fields, Mapping) else {}


def operator_of(place: TaskPlace) -> str | None:
    """Return the class name of a task instance's operator; None if there is no such task instance."""
    with create_session() as session:
        operator: str | None = session.scalar(
            select(TaskInstance.operator).where(
                TaskInstance.dag_id == place.dag_id,
                TaskInstance.run_id == place.run_id,
                TaskInstance.task_id == place.task_id,
                TaskInstance.map_index == place.map_index,
            )
        )
    return operator


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


# --- the audit log ---------------------------------------------------------------------------------------------------


def begin_audit(event: str, user: str, place: TaskPlace | None, extra: Mapping[str, Any]) -> int:
    """Write an entry of Airflow's audit log; return its number for :func:`end_audit`.

    :param event: what was asked for
    :param user: who asked
    :param place: the task instance it is about; None for a batch that no DAG made
    :param extra: the rest, without secrets
    """
    where = {} if place is None else _storable(place)._asdict()
    with create_session() as session:
        entry = Log(event=event, owner=user, owner_display_name=user, extra=json.dumps(extra), **where)
        session.add(entry)
        session.flush()
        return int(entry.id)


def end_audit(number: int, extra: Mapping[str, Any]) -> None:
    """Replace the extra of an entry of the audit log."""
    with create_session() as session:
        entry = session.get(Log, number)
        if entry is not None:
            entry.extra = json.dumps(extra)


def _storable(place: TaskPlace) -> TaskPlace:
    """Names that a batch's metadata holds, as far as a database takes them."""
    dag_id, run_id, task_id = ("".join(filter(str.isprintable, name))[:_LONGEST_NAME] for name in place[:3])
    return place._replace(dag_id=dag_id, run_id=run_id, task_id=task_id)
