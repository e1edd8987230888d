"""What the UI page's requests cost an API server: ``python -m benchmarks.page [--batches 10000]``.

Own time is CPU time of the process that serves Airflow's API, with its login, its database (SQLite) and the test client
that sends the request; the emulator is another process. Whole time is as the browser sees it, the service's included.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import Table, calls, emulator

LIMIT_S = 0.3
DAGS = 200
_CONN_ID = "benchmark"
_ROUNDS = 30


def main() -> int:
    """Print the table.

    :return: exit code: 1 if the list's own time is over the limit
    """
    options = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    options.add_argument(
        "--batches", type=int, default=10_000, help="in the account, 1000 or more (default: %(default)s)"
    )
    options.add_argument("--rounds", type=int, default=_ROUNDS, help="of each request (default: %(default)s)")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="page-") as name:
        home, account = Path(name), Path(name, "emulator")
        _fill(account, given.batches)
        with emulator("--data-dir", str(account)) as base_url:
            _settings(home, base_url)
            return _measure(_api_server(home), base_url, given.batches, given.rounds)


def _measure(get: Callable[..., Any], base_url: str, batches: int, rounds: int) -> int:
    from airflow_provider_openai_batches.plugin import account

    table = Table(
        f"Requests of the page at {batches:,} batches, {rounds} times each",
        ["", "own p50 ms", "own max ms", "whole p50 ms", "whole max ms", "calls to the service"],
    )
    worst = 0.0
    deep = get("/batches", text="nothing has this")["next_cursor"]
    newest = get("/batches", limit=1)["batches"][0]["id"]
    for name, path, query, is_shared in (
        ("list, first page", "/batches", {}, False),
        ("list, first page, others look too", "/batches", {}, True),
        ("list, 100 batches", "/batches", {"limit": 100}, False),
        ("filter by text, 500 looked at", "/batches", {"text": "nothing has this"}, False),
        ("the same, 500 further on", "/batches", {"text": "nothing has this", "cursor": deep}, False),
        ("filter by DAG", "/batches", {"dag_id": "dag_7"}, False),
        ("filter by status", "/batches", {"status": "failed"}, False),
        ("one batch", f"/batches/{newest}", {}, False),
        ("one batch, others look too", f"/batches/{newest}", {}, True),
    ):
        get(path, **query)
        own, whole, asked = [], [], sum(calls(base_url).values())
        for _ in range(rounds):
            if not is_shared:
                account.forget_all()
            began, cpu = time.perf_counter(), time.process_time()
            get(path, **query)
            own.append(time.process_time() - cpu)
            whole.append(time.perf_counter() - began)
        asked = sum(calls(base_url).values()) - asked
        figures = (statistics.median(own), max(own), statistics.median(whole), max(whole))
        table.add(name, *(f"{seconds * 1000:.0f}" for seconds in figures), f"{asked / rounds:.1f}")
        worst = max(worst, statistics.median(own))
    print(table)
    if worst > LIMIT_S:
        print(f"over the limit: own time {worst:.3f} s, {LIMIT_S:g} s are allowed", file=sys.stderr)
    return int(worst > LIMIT_S)


def _fill(account: Path, batches: int) -> None:
    """Give an emulator's account many batches that are over."""
    from airflow_provider_openai_batches.emulator.store import Store, StoredBatch, StoredFile

    store = Store(account)
    now = int(time.time())
    with store.transaction():
        for kind, purpose in (("in", "batch"), ("out", "batch_output")):
            store.draft_path(f"file-{kind}").write_bytes(b"{}\n")
            store.add_file(StoredFile(f"file-{kind}", f"{kind}.jsonl", purpose, 1_000, now, None))
        for number in range(batches):
            metadata = {"airflow_dag_id": f"dag_{number % DAGS}", "airflow_run_id": f"run_{number}"}
            made_by = {"airflow_task_id": "label", "airflow_map_index": "-1", "airflow_job": "job"}
            store.add_batch(
                StoredBatch(
                    id=f"batch_{number:08d}",
                    endpoint="/v1/chat/completions",
                    input_file_id="file-in",
                    output_file_id="file-out",
                    completion_window="24h",
                    created_at=now - batches + number,
                    expires_at=now + 86_400,
                    metadata=metadata | made_by,
                    born=0.0,
                    since=0.0,
                    status="completed",
                    total=1_000,
                    completed=1_000,
                    model="gpt-4o-mini",
                )
            )
    store.close()


def _settings(home: Path, base_url: str) -> None:
    """Give this process an Airflow of its own. Airflow reads this when it is first imported."""
    (home / "passwords.json").write_text(json.dumps({"admin": "admin"}))
    os.environ |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": f"{home}/dags",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": f"{home}/passwords.json",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "_AIRFLOW_PROCESS_CONTEXT": "server",
        f"AIRFLOW_CONN_{_CONN_ID.upper()}": json.dumps(
            {"conn_type": "openai_batches", "host": base_url, "password": "sk-benchmark-0123456789"}
        ),
    }
    (home / "dags").mkdir()


def _api_server(home: Path) -> Callable[..., Any]:
    """Build Airflow's API server with the plugin in it; return what calls the page's routes as an admin."""
    from airflow.api_fastapi.app import create_app
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.models import DagModel
    from airflow.utils import db
    from airflow.utils.session import create_session
    from fastapi.testclient import TestClient

    logging.disable(logging.WARNING)
    db.initdb()
    with create_session() as session:
        DagBundlesManager().sync_bundles_to_db(session=session)
    with create_session() as session:
        session.add_all(DagModel(dag_id=f"dag_{number}", bundle_name="dags-folder") for number in range(DAGS))
    browser = TestClient(create_app(apps="core"))
    login = browser.post("/auth/token", json={"username": "admin", "password": "admin"}).json()
    browser.headers["Authorization"] = f"Bearer {login['access_token']}"

    def get(path: str, **query: Any) -> Any:
        answer = browser.get(f"/openai-batches/api{path}", params={"conn_id": _CONN_ID, **query})
        answer.raise_for_status()
        return answer.json()

    return get


if __name__ == "__main__":
    sys.exit(main())
