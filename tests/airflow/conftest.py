"""A throw-away Airflow in this process: `run_dag` and `run_trigger`, and contexts for operators run without one."""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_openai_batches.testing.connection import EmulatorConnection
from tests.conftest import API_KEY

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from airflow.sdk import DAG
    from airflow.triggers.base import BaseTrigger

    from airflow_provider_openai_batches.emulator import Emulator

CONNECTION_VARIABLE = "AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT"

# Test processes that run side by side have a home each.
_HOME_PREFIX = f"openai-batches-airflow-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}-"

# Airflow reads its settings when it is first imported. A home the developer works with must not be touched; processes
# that tests start keep the home of the test run.
if "airflow" not in sys.modules and _HOME_PREFIX not in os.environ.get("AIRFLOW_HOME", ""):
    _home = tempfile.mkdtemp(prefix=_HOME_PREFIX)
    atexit.register(shutil.rmtree, _home, ignore_errors=True)
    os.environ |= {
        "AIRFLOW_HOME": _home,
        # dag.test() reads this folder on every call: it stays empty.
        "AIRFLOW__CORE__DAGS_FOLDER": f"{_home}/dags",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # Tests write DAGs of the same name, one after the other.
        "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_home}/airflow.db",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
    Path(_home, "dags").mkdir()


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    return Path(os.environ["AIRFLOW_HOME"])


@pytest.fixture(scope="session")
def airflow_db(airflow_home: Path) -> None:
    """A migrated metadata database."""
    from airflow.sdk.execution_time import supervisor
    from airflow.utils import db

    db.initdb()
    if not hasattr(supervisor.in_process_api_server, "cache_info"):
        # Airflow 3.1 and 3.2 build a new Execution API for every task, which takes seconds.
        supervisor.in_process_api_server = functools.lru_cache(maxsize=1)(supervisor.in_process_api_server)


@pytest.fixture
def run_dag(airflow_db: None) -> Callable[[DAG], DagRun]:
    """Run a DAG made in a test, its triggers included."""

    def run(dag: DAG) -> DagRun:
        register(dag)
        return dag.test()

    return run


def register(dag: DAG) -> None:
    """Write a DAG to the metadata database; `dag.test()` itself does so only for DAGs from a bundle."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.utils.session import create_session

    try:
        from airflow.dag_processing.dagbag import sync_bag_to_db
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import sync_bag_to_db
    with create_session() as session:
        DagBundlesManager().sync_bundles_to_db(session=session)
    bag = new_dag_bag(os.devnull)
    dag.fileloc = dag.fileloc or __file__
    dag.relative_fileloc = dag.relative_fileloc or Path(dag.fileloc).name
    bag.bag_dag(dag)
    with create_session() as session:
        sync_bag_to_db(bag, "dags-folder", None, session=session)


def new_dag_bag(folder: str) -> Any:
    """Read DAG files as the DAG processor does.

    :param folder: a folder or one file
    """
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag
    return DagBag(dag_folder=folder)


@pytest.fixture
def run_trigger() -> Callable[..., list[Any]]:
    """Rebuild a trigger from what it serializes to, as the triggerer does, and collect its events."""
    try:
        from airflow.sdk.serde import deserialize, serialize
    except ImportError:  # Airflow 3.1
        from airflow.serialization.serde import deserialize, serialize

    def run(trigger: BaseTrigger, *, within_s: float = 20) -> list[Any]:
        _, arguments = trigger.serialize()
        rebuilt = type(trigger)(**deserialize(serialize(arguments)))

        async def collect() -> list[Any]:
            async with asyncio.timeout(within_s), aclosing(rebuilt.run()) as events:
                return [event.payload async for event in events]

        return asyncio.run(collect())

    return run


@pytest.fixture
def emulator(openai_batches_emulator: Emulator) -> Emulator:
    """Its batches are over when they are first looked at. With `openai_batches_clock` its time stands still."""
    return openai_batches_emulator


@pytest.fixture
def connection(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> EmulatorConnection:
    """Point `openai_batches_default` at the emulator; call it to change fields of the connection."""
    connect = EmulatorConnection(emulator, monkeypatch)
    connect()
    return connect


@pytest.fixture
def odd_extras_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow gives us a connection whose extra is no JSON object; 3.1 says that there is no such connection."""
    from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

    monkeypatch.setenv("AIRFLOW_CONN_WITH_ODD_EXTRA", '{"conn_type": "openai_batches", "extra": "7"}')
    try:
        BaseHook.get_connection("with_odd_extra")
    except AirflowNotFoundException:
        pytest.skip("this Airflow says of such a connection that there is none (3.1)")


def connection_json(emulator: Emulator, **fields: Any) -> str:
    """A connection to the emulator, with some fields changed, as Airflow reads it from the environment."""
    return json.dumps({"conn_type": "openai_batches", "host": emulator.base_url, "password": API_KEY, **fields})


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients repeat calls at once. Their pauses are held by the tests of the client."""
    from airflow_provider_openai_batches.api.client import BatchClient

    monkeypatch.setitem(BatchClient.__init__.__kwdefaults__, "sleep", lambda seconds: None)


class EmulatorTime:
    """Stands in for the module `time`: a sleep moves the emulator's clock, so waits of hours pass at once."""

    def __init__(self, emulator: Emulator) -> None:
        import time

        self._emulator = emulator
        self._started = time.time()
        self.slept = 0.0

    def time(self) -> float:
        return self._started + self.slept

    def monotonic(self) -> float:
        return self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self._emulator.advance(seconds)


@pytest.fixture
def clock(
    emulator: Emulator, openai_batches_clock: object, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> EmulatorTime:
    """The hook and the operators live in the emulator's time."""
    from airflow_provider_openai_batches.hooks import openai_batches as hooks
    from airflow_provider_openai_batches.operators import openai_batches as operators

    time = EmulatorTime(emulator)
    monkeypatch.setattr(hooks, "time", time)
    monkeypatch.setattr(operators, "time", time)
    return time


class Store(dict[str, Any]):
    """Airflow's task_state_store of one task instance: it survives attempts."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


class Attempts:
    """The contexts of one task instance, attempt after attempt, as Airflow would hand them out.

    :param store: the store that survives attempts; None before Airflow 3.3
    """

    def __init__(self, *, store: Store | None, retries: int = 2, map_index: int = -1, run_id: str = "run") -> None:
        import datetime

        self.store = store
        self.retries = retries
        self._max_tries = retries
        self._try_number = 0
        self._map_index = map_index
        self._run_id = run_id
        self._run_after = datetime.datetime.now(datetime.UTC)
        self.xcoms: dict[str, Any] = {}

    def next(self) -> Any:
        """Context of the next attempt."""
        self._try_number += 1
        self.xcoms.clear()  # As Airflow does.
        ti = SimpleNamespace(
            dag_id="dag",
            task_id="submit",
            run_id=self._run_id,
            map_index=self._map_index,
            try_number=self._try_number,
            max_tries=self._max_tries,
            xcom_push=lambda key, value: self.xcoms.update({key: value}),
        )
        context = {
            "ti": ti,
            "task": SimpleNamespace(retries=self.retries),
            "dag_run": SimpleNamespace(run_after=self._run_after),
        }
        return context | ({} if self.store is None else {"task_state_store": self.store})

    def clear(self) -> None:
        """What a user's clear does: the task gets its retries anew."""
        self._max_tries = self._try_number + self.retries


@pytest.fixture(params=["store", "no store"])
def attempts(request: pytest.FixtureRequest) -> Attempts:
    """A task instance, on an Airflow with task_state_store (3.3) and on one without."""
    return Attempts(store=Store() if request.param == "store" else None)


@pytest.fixture
def task_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Let Airflow say which state the task instance is in, or that it does not know."""

    def say(state: str | None) -> None:
        states = {} if state is None else {"run": {"submit": state}}
        monkeypatch.setattr(
            "airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states", lambda **ti: states
        )

    return say


@pytest.fixture(scope="session")
def memory_storage() -> None:
    """Object storage without a service: `memory://` is attached as an Airflow provider would attach `s3://`."""
    from airflow.sdk.io import attach
    from fsspec.implementations.memory import MemoryFileSystem

    attach("memory", fs=MemoryFileSystem())


@pytest.fixture
def input_file(tmp_path: Path) -> Path:
    """Three valid requests."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(request_lines(3))
    return path


def request_lines(count: int, **changes: Any) -> bytes:
    """Lines of an input file.

    :param changes: members of every line that differ from the usual
    """
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body, **changes}
    return b"".join(json.dumps({"custom_id": f"row-{n}", **line}).encode() + b"\n" for n in range(count))


def new_batch(emulator: Emulator, fate: dict[str, Any] | None = None) -> str:
    """Create a batch of three requests through `openai_batches_default`.

    :param fate: what becomes of it, as in the emulator's faults; decided when it is created, so not later
    """
    from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook

    if fate is not None:
        emulator.add_fault({"on": {"batch": {}}, "do": fate})
    hook = OpenAIBatchesHook()
    return hook.create_batch(hook.upload_file(request_lines(3)).id, "/v1/chat/completions").id
