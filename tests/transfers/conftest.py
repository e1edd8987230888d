from __future__ import annotations

# First of all imports of Airflow: it gives this process a home of its own.
from tests.airflow.conftest import airflow_db, airflow_home, connection, emulator, run_dag
from tests.databases import database, mariadb, postgresql, server

__all__ = [
    "airflow_db",
    "airflow_home",
    "connection",
    "database",
    "emulator",
    "mariadb",
    "postgresql",
    "run_dag",
    "server",
]
