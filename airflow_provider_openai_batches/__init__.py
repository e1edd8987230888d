"""Run OpenAI batch jobs from Apache Airflow."""

from __future__ import annotations

from airflow_provider_openai_batches.provider_info import get_provider_info

__version__ = "0.1.0"
__all__ = ["__version__", "get_provider_info"]
