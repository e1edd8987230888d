from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from demo.__main__ import DAGS_FOLDER
from demo.airflow import Airflow, TaskInstance
from demo.openai_server import OpenAIServer
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


def test_a_late_batch_is_cancelled_and_what_it_finished_is_used(
    airflow: Airflow, emulator: OpenAIServer, tmp_path: Path
) -> None:
    # Its requests are done, and yet it does not end.
    hangs = {"outcome": "stuck", "status": "in_progress"}
    rule = {"on": {"batch": {"metadata": {"airflow_dag_id": "cancel_when_late"}}}, "do": hangs}
    controls = emulator.url.removesuffix("/v1") + "/emulator"
    requests.post(f"{controls}/faults", json=rule, timeout=30).raise_for_status()
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number in range(50)
    ]
    source = tmp_path / "requests.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))

    run_id = airflow.trigger("cancel_when_late", {"source": str(source), "outbox": str(tmp_path)})

    assert airflow.wait_for_run("cancel_when_late", run_id, timeout_s=120) == "success"
    states = {task.task_id: task.state for task in airflow.task_instances("cancel_when_late", run_id)}
    assert (states["wait"], states["cancel"], states["download"]) == ("skipped", "success", "success")
    cancelled = airflow.xcom("cancel_when_late", run_id, "cancel")
    assert cancelled is not None
    assert cancelled["status"] == "cancelled"
    completed = cancelled["request_counts"]["completed"]
    assert completed > 0
    assert airflow.xcom("cancel_when_late", run_id, "share_answered") == completed / 50


def test_no_example_dag_fails_to_import(airflow: Airflow) -> None:
    files = {path.name for path in DAGS_FOLDER.glob("*.py")}

    def parsed() -> bool:
        dags = airflow.api("GET", "/dags", params={"limit": 100})["dags"]
        broken = airflow.api("GET", "/importErrors")["import_errors"]
        return {Path(entry.get("fileloc") or entry["filename"]).name for entry in (*dags, *broken)} >= files

    airflow.processes.wait_for(parsed, timeout_s=60, what="all example DAGs to be parsed")
    assert airflow.api("GET", "/importErrors")["import_errors"] == []
