"""A real Airflow, a real chromium, and an emulator per test behind a connection of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.airflow import Airflow
from demo.processes import Processes
from tests.airflow.conftest import connection_json
from tests.browser.ui import Page
from tests.conftest import API_KEY

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from airflow_provider_openai_batches.api.client import BatchClient
    from airflow_provider_openai_batches.emulator import Emulator

REPOSITORY = Path(__file__).resolve().parents[2]
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-lcd-text",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PRICES = {"gpt-4o-mini": {"input": 0.075, "cached_input": 0.0375, "output": 0.3}}
JOB_SECONDS = 600.0

# All of these end with this folder: no other test needs a second Airflow beside its own, and the event loop in which
# playwright keeps this thread would be in the way of tests that start one.


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        missing = "no chromium on PATH: install Debian's package of that name"
        if os.environ.get("CI_REQUIRE_SERVICES") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("logs"), grace_s=0) as processes:
        yield processes


@pytest.fixture(scope="package")
def job_emulator() -> Iterator[Emulator]:
    """Behind `openai_batches_default`, which the DAG uses. Its time stands still until a test moves it."""
    from airflow_provider_openai_batches.emulator import Emulator

    with Emulator(speed=0, api_key=API_KEY, batch_seconds=JOB_SECONDS) as server:
        yield server


@pytest.fixture(scope="package")
def airflow(
    chromium: Browser, processes: Processes, job_emulator: Emulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Airflow]:
    """An Airflow whose user `reader` may look and not touch, and whose user `viewer` may not see connections."""
    with tempfile.TemporaryDirectory(prefix="product-texts-") as texts:
        env = {
            "AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT": connection_json(job_emulator, extra=json.dumps({"prices": PRICES})),
            "AIRFLOW__CORE__AUTH_MANAGER": "tests.plugin.auth.GrantingAuthManager",
            "PYTHONPATH": str(REPOSITORY),
            "PRODUCT_TEXTS": texts,
        }
        users = {"viewer": "viewer", "reader": "viewer"}
        home = tmp_path_factory.mktemp("browser") / "airflow"
        yield Airflow.start(processes, home, Path(__file__).with_name("dags"), users=users, env=env)


@pytest.fixture
def conn_id(airflow: Airflow, emulator: Emulator, request: pytest.FixtureRequest) -> str:
    """A connection to this test's emulator."""
    name = f"conn_{request.node.name.translate(str.maketrans('[]', '__'))}"
    add_connection(airflow, emulator, name)
    return name


def add_connection(airflow: Airflow, emulator: Emulator, conn_id: str, password: str = API_KEY) -> None:
    """Make a connection as a user would."""
    fields = {"conn_type": "openai_batches", "host": emulator.base_url, "password": password}
    extra = json.dumps({"prices": PRICES})
    airflow.api("POST", "/connections", {"connection_id": conn_id, "extra": extra, **fields})


@pytest.fixture(scope="package")
def tabs(chromium: Browser, airflow: Airflow) -> Iterator[Callable[[str, str], Page]]:
    """Tabs by user and theme. They are kept: Airflow's UI takes seconds to load."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def open_tab(user: str, theme: str) -> Page:
            context = stack.enter_context(
                chromium.new_context(color_scheme=theme, viewport={"width": 1280, "height": 720})
            )
            context.add_cookies([{"name": "_token", "value": airflow.token(user), "url": airflow.url}])
            context.clock.install()  # It runs as usual, and can be moved.
            return Page(context.new_page(), airflow.url)

        yield open_tab


@pytest.fixture
def sign_in(tabs: Callable[[str, str], Page]) -> Iterator[Callable[..., Page]]:
    """Go to the tab of a user, in Airflow's light or dark theme. No script may fail in it."""
    used: list[Page] = []

    def take(user: str = "admin", *, theme: str = "light") -> Page:
        used.append(tabs(user, theme))
        used[-1].browser.clock.set_system_time(time.time())
        return used[-1]

    yield take
    failures = [failure for page in used for failure in page.leave()]
    assert failures == []


@pytest.fixture
def buy(client: BatchClient) -> Callable[..., str]:
    """Create a batch; return its id.

    rows: custom ids, or how many
    metadata: of the batch
    """
    return lambda rows=3, *, model="gpt-4o-mini", **metadata: new_batch(client, rows, model, metadata)


def new_batch(client: BatchClient, rows: Any, model: str, metadata: dict[str, str]) -> str:
    import io

    ids = [f"row-{number}" for number in range(rows)] if isinstance(rows, int) else rows
    lines = [
        {
            "custom_id": each,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": f"Describe product {number}."}]},
        }
        for number, each in enumerate(ids)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.upload_file(lambda: io.BytesIO(content), filename="rows.jsonl")
    return client.create_batch(file.id, "/v1/chat/completions", metadata=metadata).id


def made_by(
    dag_id: str, run_id: str = "manual__2026-01-01", task_id: str = "write", model: str = "gpt-4o-mini"
) -> dict[str, str]:
    """The metadata of a batch that a task made."""
    return {
        "airflow_dag_id": dag_id,
        "airflow_run_id": run_id,
        "airflow_task_id": task_id,
        "airflow_map_index": "-1",
        "airflow_job": "job",
        "airflow_shard": "0",
        "airflow_round": "1",
        "airflow_model": model,
    }
