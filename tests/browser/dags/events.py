"""The DAGs of the example that events start. Airflow takes what is made while it reads this file."""

from __future__ import annotations

import example_dags.started_by_events  # noqa: F401
