from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo.__main__ import DAGS_FOLDER
from demo.airflow import Airflow, TaskInstance
from example_dags.demo_labels import TOPICS, installed_distributions

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_every_row_is_labelled_while_the_wait_is_deferred(airflow: Airflow, tmp_path: Path) -> None:
    run_id = airflow.trigger("demo_labels", {"directory": str(tmp_path)})
    seen: set[tuple[str, str]] = set()

    def note(tasks: list[TaskInstance]) -> None:
        seen.update((task.task_id, task.state) for task in tasks)

    state = airflow.wait_for_run("demo_labels", run_id, timeout_s=200, on_poll=note)

    assert state == "success", airflow.task_instances("demo_labels", run_id)
    assert ("wait", "deferred") in seen
    summary = airflow.xcom("demo_labels", run_id, "join_answers")
    assert summary is not None
    rows = [json.loads(line) for line in Path(summary["results"]).read_text().split("\n") if line]
    assert [row["name"] for row in rows] == list(installed_distributions())
    assert {row["error"] for row in rows} == {None}
    assert {row["label"] for row in rows} <= set(TOPICS)
    assert summary["requests"] == summary["succeeded"] == len(rows)
    assert summary["usage"]["total_tokens"] > 0


def test_no_example_dag_fails_to_import(airflow: Airflow) -> None:
    files = {path.name for path in DAGS_FOLDER.glob("*.py")}

    def parsed() -> bool:
        dags = airflow.api("GET", "/dags", params={"limit": 100})["dags"]
        broken = airflow.api("GET", "/importErrors")["import_errors"]
        return {Path(entry.get("fileloc") or entry["filename"]).name for entry in (*dags, *broken)} >= files

    airflow.processes.wait_for(parsed, timeout_s=60, what="all example DAGs to be parsed")
    assert airflow.api("GET", "/importErrors")["import_errors"] == []
