"""An auth manager that knows more than four roles: permissions by DAG and connection, as larger deployments have them.

Users with an entry in `GRANTS` may do exactly what it says; all others have the role of Airflow's simple auth manager.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

DAG, OTHER_DAG = "made_by_us", "made_by_others"

GRANTS: dict[str, set[tuple[str, str, str | None]]] = {
    # Sees the connection and one DAG, and may change neither.
    "reader": {("GET", "connection", None), ("GET", "dag", DAG)},
    # May change the runs of one DAG, besides.
    "editor": {("GET", "connection", None), ("GET", "dag", DAG), ("PUT", "dag", DAG)},
    # Keeps the key, and has nothing to do with DAGs.
    "keeper": {("GET", "connection", None), ("PUT", "connection", None)},
    # Sees one of two connections.
    "half": {("GET", "connection", "openai_batches_default")},
    # Sees all DAGs, and the same one connection.
    "narrow": {("GET", "connection", "openai_batches_default"), ("GET", "dag", None)},
    # Sees the connections of one team, and those of nobody's.
    "member": {("GET", "team", "ours"), ("GET", "team", None)},
}
USERS = {"admin": "admin", "op": "op", "user": "user", "viewer": "viewer", **dict.fromkeys(GRANTS, "viewer")}


class GrantingAuthManager(SimpleAuthManager):
    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        if user.username not in GRANTS:
            return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)
        return _is_granted(user, method, "dag", details.id if details else None)

    def is_authorized_connection(self, *, method: Any, user: Any, details: Any = None) -> bool:
        if user.username not in GRANTS:
            return super().is_authorized_connection(method=method, user=user, details=details)
        conn_id, team = (details.conn_id, details.team_name) if details else (None, None)
        if user.username == "member":
            return (method, "team", team) in GRANTS[user.username]
        return _is_granted(user, method, "connection", conn_id)


def _is_granted(user: Any, method: str, kind: str, name: str | None) -> bool:
    return not {(method, kind, None), (method, kind, name)}.isdisjoint(GRANTS[user.username])
