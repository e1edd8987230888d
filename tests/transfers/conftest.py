from __future__ import annotations

# First of all imports of Airflow: it gives this process a home of its own.
from tests.airflow.conftest import (
    airflow_db,
    airflow_home,
    attempts,
    connection,
    emulator,
    memory_storage,
    no_pauses,
    run_dag,
)
from tests.databases import database, mariadb, postgresql, server
from tests.pgvector import pgvector, pgvector_server

__all__ = [
    "airflow_db",
    "airflow_home",
    "attempts",
    "connection",
    "database",
    "emulator",
    "mariadb",
    "memory_storage",
    "no_pauses",
    "pgvector",
    "pgvector_server",
    "postgresql",
    "run_dag",
    "server",
]
