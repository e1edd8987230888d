"""Who may see and do what. Every answer is that of Airflow's own auth manager."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import Depends, Query, Request
from fastapi.security.utils import get_authorization_scheme_param

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.plugin import database
from airflow_provider_openai_batches.plugin.database import TaskPlace
from airflow_provider_openai_batches.plugin.errors import PageError, page_error

CONN_ID = r"^[\w#!()\-.:/\\]+$"
LONGEST_NAME = 250
ConnId = Annotated[str, Query(pattern=CONN_ID, max_length=LONGEST_NAME)]
"""What Airflow takes as the id of a connection."""

_Name = Annotated[str, Query(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=LONGEST_NAME)]
_LARGEST_MAP_INDEX = 2**31 - 1


def is_conn_id(text: str) -> bool:
    """Whether a connection could have this id."""
    return len(text) <= LONGEST_NAME and re.fullmatch(CONN_ID, text) is not None


class Caller:
    """A user who is logged in, and what they may do. Each question is asked once per request."""

    def __init__(self, user: Any) -> None:
        self._user = user
        self._may_edit_run: dict[str, bool] = {}

    @property
    def name(self) -> str:
        """Their name, for the audit log."""
        return str(self._user.get_name())

    def may_read_connection(self, conn_id: str) -> bool:
        """Whether they may see a connection, and so the batches behind it."""
        return self._may_connection("GET", conn_id)

    def may_edit_connection(self, conn_id: str) -> bool:
        """Whether they may change a connection, and so could do anything with its key."""
        return self._may_connection("PUT", conn_id)

    @cached_property
    def readable_dags(self) -> set[str]:
        """The DAGs they may see."""
        return get_auth_manager().get_authorized_dag_ids(user=self._user, method="GET")

    def may_edit_run(self, dag_id: str) -> bool:
        """Whether they may change the runs of a DAG."""
        if dag_id not in self._may_edit_run:
            self._may_edit_run[dag_id] = self._may_dag("PUT", DagAccessEntity.RUN, dag_id)
        return self._may_edit_run[dag_id]

    def may_read_task_instances(self, dag_id: str) -> bool:
        """Whether they may see the task instances of a DAG."""
        return self._may_dag("GET", DagAccessEntity.TASK_INSTANCE, dag_id)

    def _may_connection(self, method: Any, conn_id: str) -> bool:
        if database.is_of_a_team_by_name(conn_id):
            return False
        # With the team, as Airflow's own requires_access_connection asks.
        details = ConnectionDetails(conn_id=conn_id, team_name=database.connection_team(conn_id))
        return bool(get_auth_manager().is_authorized_connection(method=method, details=details, user=self._user))

    def _may_dag(self, method: Any, entity: DagAccessEntity, dag_id: str) -> bool:
        details = DagDetails(id=dag_id, team_name=database.dag_team(dag_id))
        return bool(
            get_auth_manager().is_authorized_dag(method=method, access_entity=entity, details=details, user=self._user)
        )


def _caller(user: GetUserDep) -> Caller:
    return Caller(user)


CallerDep = Annotated[Caller, Depends(_caller)]


class Scope:
    """What a caller sees and may do of the batches of one connection.

    What a batch's metadata says of its DAG is compared with the DAGs of this Airflow and never believed beyond that:
    whoever has the key can write there. A batch of a DAG that this Airflow does not have (it was deleted, or is
    another Airflow's) is seen and acted upon by those who could use the key themselves.
    """

    def __init__(self, caller: Caller, conn_id: str) -> None:
        self.caller, self.conn_id = caller, conn_id

    @cached_property
    def edits_connection(self) -> bool:
        """Whether the caller may change the connection."""
        return self.caller.may_edit_connection(self.conn_id)

    def admit(self, batches: Iterable[Batch]) -> list[Batch]:
        """Return the batches that the caller may see."""
        makers = [(batch, maker(batch)) for batch in batches]
        named = {place.dag_id for _, place in makers if place is not None}
        seen = named and named & self.caller.readable_dags
        unseen = named - seen
        if unseen and self.edits_connection:
            seen = seen | (unseen - database.known_dags(unseen))
        return [batch for batch, place in makers if place is None or place.dag_id in seen]

    def knows(self, place: TaskPlace) -> bool:
        """Whether a DAG is one of this Airflow that the caller may see."""
        return place.dag_id in self.caller.readable_dags

    def may_act(self, batch: Batch) -> bool:
        """Whether the caller may cancel a batch they see, and delete its files."""
        place = maker(batch)
        if place is not None and self.knows(place):
            return self.caller.may_edit_run(place.dag_id)
        return self.edits_connection


def maker(batch: Batch) -> TaskPlace | None:
    """Return the task instance that a batch says made it; None for one made outside Airflow."""
    said = batch.metadata
    if not said.get("airflow_dag_id"):
        return None
    index = said.get("airflow_map_index", "")
    mapped = index.isascii() and index.isdecimal() and len(index) < 11 and int(index) <= _LARGEST_MAP_INDEX
    return TaskPlace(
        said["airflow_dag_id"],
        said.get("airflow_run_id", ""),
        said.get("airflow_task_id", ""),
        int(index) if mapped else -1,
    )


# --- what routes depend on -------------------------------------------------------------------------------------------


def _scope(caller: CallerDep, conn_id: ConnId) -> Scope:
    if not caller.may_read_connection(conn_id):
        raise PageError(
            403,
            "forbidden",
            "You may not see this connection. Ask an admin of this Airflow for the permission to read connections.",
        )
    return Scope(caller, conn_id)


ScopeDep = Annotated[Scope, Depends(_scope)]
"""The connection that a request names; refused unless the caller may read it."""


def _place(
    caller: CallerDep,
    dag_id: _Name,
    run_id: _Name,
    task_id: _Name,
    map_index: Annotated[int, Query(ge=-1, le=_LARGEST_MAP_INDEX)] = -1,
) -> TaskPlace:
    if not caller.may_read_task_instances(dag_id):
        raise PageError(403, "forbidden", "You may not see this task. Ask an admin for the permission to read its DAG.")
    return TaskPlace(dag_id, run_id, task_id, map_index)


PlaceDep = Annotated[TaskPlace, Depends(_place)]
"""The task instance that a request names; refused unless the caller may read it."""


def from_our_page(request: Request) -> None:
    """Refuse a write that another site's page made a browser send: the login's cookie goes along with those.

    :raises PageError: it is one
    """
    scheme, token = get_authorization_scheme_param(request.headers.get("authorization"))
    if scheme.lower() == "bearer" and token:
        return  # No browser adds it by itself.
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is None and origin is not None:
        # Browsers before 2023. A proxy may have changed the scheme, but not the name.
        site = "same-origin" if origin.partition("://")[2] == request.headers.get("host") else "cross-site"
    if site not in (None, "same-origin", "none"):
        raise PageError(403, "cross_site", "This call comes from another site's page. Use the page in Airflow.")


# --- acting ----------------------------------------------------------------------------------------------------------


@contextmanager
def acting(event: str, scope: Scope, batch: Batch) -> Iterator[dict[str, Any]]:
    """Refuse whoever may not act on a batch, and write the attempt and its end to Airflow's audit log.

    The entry is there before anything happens: without it, nothing does.

    :param event: the entry's name
    :param batch: one that the caller sees
    :return: what the entry says besides; may be added to
    """
    place = maker(batch)
    known = place if place is not None and scope.knows(place) else None
    entry: dict[str, Any] = {"conn_id": scope.conn_id, "batch_id": batch.id, "outcome": "started"}
    number = database.begin_audit(event, scope.caller.name, known, entry)
    try:
        if not scope.may_act(batch):
            what = "the connection" if known is None else f"runs of the DAG {known.dag_id}"
            raise PageError(403, "forbidden", f"Only who may edit {what} may do this to the batch.")
        yield entry
        entry["outcome"] = "succeeded"
    except (OpenAIBatchesError, PageError) as error:
        problem = error if isinstance(error, PageError) else page_error(error)
        entry |= {"outcome": "refused" if problem.status == 403 else "failed", "code": problem.code}
        raise
    finally:
        database.end_audit(number, entry)
