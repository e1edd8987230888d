"""Rows from a SQL database: ``from airflow_provider_openai_batches.sql import SQLRequests``."""

from __future__ import annotations

from airflow_provider_openai_batches.sql.requests import SQLRequests

__all__ = ["SQLRequests"]
