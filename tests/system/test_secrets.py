from __future__ import annotations

from pathlib import Path

import pytest

from demo.airflow import Airflow
from demo.openai_server import OpenAIServer

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_the_key_is_in_no_file_of_airflow(
    airflow: Airflow, emulator: OpenAIServer, tmp_path: Path, workspace: Path
) -> None:
    """Logs of tasks and of every component, and the metadata database, after a good and a bad run."""
    good = airflow.trigger("demo_labels", {"directory": str(tmp_path)})
    bad = airflow.trigger("cancel_when_late", {"source": str(tmp_path / "missing.jsonl"), "outbox": str(tmp_path)})
    assert airflow.wait_for_run("demo_labels", good, timeout_s=200) == "success"
    assert airflow.wait_for_run("cancel_when_late", bad, timeout_s=100) == "failed"

    files = [path for path in workspace.rglob("*") if path.is_file()]
    task_logs = [path for path in files if "task_id=" in str(path)]
    assert workspace / "logs" / "scheduler.log" in files
    assert any(b"missing.jsonl does not exist" in path.read_bytes() for path in task_logs)
    assert [path for path in files if emulator.api_key.encode() in path.read_bytes()] == []
