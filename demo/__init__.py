"""A throw-away Airflow beside an OpenAI server: what `make demo`, `make airflow` and the system tests run on.

Not part of the installed package. `processes` owns every child process, `airflow` and `openai_server` start theirs
through it, `labels` runs the demo DAG and shows it, `__main__` is the command line.
"""

from __future__ import annotations
