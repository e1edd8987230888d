"""Parsing a DAG file, which Airflow does every few seconds, with the rights of the DAG processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
WATCHED = """
import contextlib, runpy, sys, threading
import airflow.sdk, airflow.providers.common.compat.sdk
with contextlib.suppress(ImportError):
    import croniter  # Airflow's, which starts a program when it is imported

told = []
EVENTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.fork",
          "os.mkdir", "os.remove", "os.rename", "os.symlink", "os.link", "os.chmod", "shutil.rmtree", "sqlite3.connect")

def watch(event, args):
    if event in EVENTS or (event == "open" and (set(args[1] or "") & set("wax+") or args[2] & 3)):
        told.append((event, str(args)[:200]))

before = threading.active_count()
sys.addaudithook(watch)
for path in sys.argv[1:]:
    runpy.run_path(path)
seen = list(told)
for one in seen:
    print(one)
print("threads:", threading.active_count() - before)
"""


def parsed(*paths: Path, home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED, *map(str, paths)],
        cwd=REPOSITORY,
        env={**os.environ, "AIRFLOW_HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return done.stdout


def test_it_calls_nobody_and_writes_nothing(tmp_path: Path) -> None:
    examples = sorted((REPOSITORY / "example_dags").glob("*.py"))
    assert examples
    assert parsed(*examples, home=tmp_path) == "threads: 0\n"


def test_the_watch_sees(tmp_path: Path) -> None:
    (tmp_path / "dag.py").write_text("open('/dev/null', 'w'); import socket; socket.socket().bind(('127.0.0.1', 0))")
    said = parsed(tmp_path / "dag.py", home=tmp_path)
    assert "'open'" in said
    assert "'socket.bind'" in said
