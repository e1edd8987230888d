"""A real ``airflow triggerer`` with a metadata database of its own, and tasks that are deferred in it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from airflow_provider_openai_batches.triggers.openai_batch_finished import OpenAIBatchFinishedTrigger
from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger

ROOT = Path(__file__).resolve().parents[2]
AIRFLOW = str(Path(sys.executable).with_name("airflow"))
Seed = tuple[str, dict[str, Any]]


def waiting_for(batch_id: str, **kwargs: Any) -> Seed:
    """A deferred wait for one batch, as it is stored."""
    return OpenAIBatchTrigger(batch_ids=[batch_id], **kwargs).serialize()


def until(condition: Callable[[], bool], *, within: float) -> None:
    """Wait for what happens in other processes."""
    limit = time.monotonic() + within
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)


class Triggerer:
    """Starts and stops the triggerer; changes and reads its tasks in the database, as a scheduler or a user would.

    :param home: an empty directory
    :param connections: URI or JSON of each Airflow connection by id
    """

    def __init__(self, home: Path, connections: Mapping[str, str]) -> None:
        self.home = home
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "PYTHONPATH": str(ROOT),
            **{f"AIRFLOW_CONN_{conn_id.upper()}": text for conn_id, text in connections.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None
        (home / "dags").mkdir(parents=True)
        self._run(AIRFLOW, "db", "migrate")

    def __enter__(self) -> Triggerer:
        return self

    def __exit__(self, *exc: object) -> None:
        # Airflow logs from its signal handler. A SIGTERM that strikes while it writes a line locks it up for good,
        # and at the end of a test it writes hundreds: those who want to see it stop call stop() when it is quiet.
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def seed(self, triggers: Iterable[Seed]) -> int:
        """Add deferred tasks; return the map index of the first, those of the others follow."""
        first = self.states().total()
        self._run(sys.executable, "-m", "tests.polling.seed", text=json.dumps(list(triggers)))
        return first

    def parse(self, name: str, text: str) -> list[int]:
        """Have a DAG file read as the DAG processor does it; return the ids of its watchers' triggers."""
        path = self.home / "dags" / name
        path.write_text(text)
        self._run(sys.executable, "-m", "tests.polling.parse", str(path))
        wanted = f"%.{OpenAIBatchFinishedTrigger.__name__}"
        return [trigger for (trigger,) in self._sql("SELECT id FROM trigger WHERE classpath LIKE ?", wanted)]

    def start(self, **env: str) -> None:
        """Start the triggerer."""
        with (self.home / "triggerer.log").open("ab") as log:
            self._process = subprocess.Popen(
                [AIRFLOW, "triggerer", "--skip-serve-logs", "--capacity", "10000"],
                env=self._env | env,
                cwd=self.home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the triggerer as a deployment does, with SIGTERM."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(40)
        self._process = None

    @property
    def is_alive(self) -> bool:
        """Whether it runs, as far as it was started."""
        return self._process is not None and self._process.poll() is None

    @property
    def runner(self) -> psutil.Process:
        """The process that runs the triggers; its parent talks to the database."""
        assert self._process is not None
        return max(psutil.Process(self._process.pid).children(), key=lambda child: child.memory_info().rss)

    def sockets_to(self, port: int) -> int:
        """How many connections the runner has to a port."""
        return sum(bool(link.raddr) and link.raddr.port == port for link in self.runner.net_connections("tcp4"))

    @property
    def log(self) -> str:
        """What the triggerer itself has logged."""
        return (self.home / "triggerer.log").read_text(errors="replace")

    def task_logs(self, saying: str = "") -> list[str]:
        """What the triggerer has logged for each task; only the logs with this text."""
        texts = (path.read_text(errors="replace") for path in (self.home / "logs").rglob("*.trigger.*.log"))
        return [text for text in texts if saying in text]

    def scheduled(self) -> list[float]:
        """Unix time at which the triggerer let each task go on."""
        rows = self._sql("SELECT scheduled_dttm FROM task_instance WHERE state = 'scheduled'")
        return [datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() for (moment,) in rows]

    def states(self) -> Counter[str]:
        """How many tasks are in which state."""
        return Counter(state for (state,) in self._sql("SELECT state FROM task_instance"))

    def event(self, map_index: int) -> dict[str, Any] | None:
        """What woke the task."""
        [(kwargs,)] = self._sql("SELECT next_kwargs FROM task_instance WHERE map_index = ?", map_index)
        found = json.loads(kwargs or "{}")
        event: dict[str, Any] | None = found.get("__var", found).get("event")
        if event is None:
            return None
        unwrapped: dict[str, Any] = event.get("__var", event)  # Airflow 3.1 wraps each mapping
        return unwrapped

    def told(self) -> list[dict[str, Any]]:
        """What watchers have told, oldest first."""
        return [json.loads(extra)["payload"] for (extra,) in self._sql("SELECT extra FROM asset_event ORDER BY id")]

    def mark(self, map_index: int, state: str) -> None:
        """Give a task a state, as a user does who marks it."""
        self._sql("UPDATE task_instance SET state = ? WHERE map_index = ?", state, map_index)

    def _sql(self, statement: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self.home / "airflow.db", timeout=20)) as database, database:
            return database.execute(statement, values).fetchall()

    def _run(self, *command: str, text: str | None = None) -> None:
        done = subprocess.run(
            command, env=self._env, cwd=ROOT, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == 0, done.stdout
