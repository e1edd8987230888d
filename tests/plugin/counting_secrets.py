"""A secrets backend that counts what it is asked for, as those do that send a bill."""

from __future__ import annotations

from airflow.secrets import BaseSecretsBackend

ASKED: list[str] = []


class CountingSecrets(BaseSecretsBackend):
    """Has no connections; notes which were looked for."""

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        ASKED.append(conn_id)
        return None
