"""Tests. A package, so that pytest puts the repository, and not this directory with its ``airflow/``, on the path."""
