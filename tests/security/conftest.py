from __future__ import annotations

# First of all imports of Airflow: it gives this process a home of its own.
from tests.airflow.conftest import airflow_home

__all__ = ["airflow_home"]
