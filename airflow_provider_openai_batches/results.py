"""Read what a job has written: ``from airflow_provider_openai_batches.results import read_results``."""

from __future__ import annotations

from airflow_provider_openai_batches.jobs.parts import read_results, read_results_frame

__all__ = ["read_results", "read_results_frame"]
