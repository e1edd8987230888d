"""Metrics as a StatsD server gets them, from real tasks against the emulator."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred, conf

from airflow_provider_openai_batches import survey
from airflow_provider_openai_batches.api.errors import BatchFailedError
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.operators.openai_batches import (
    OpenAIBatchDownloadOperator,
    OpenAIBatchOperator,
    OpenAIBatchSubmitOperator,
    OpenAIBatchUploadOperator,
)
from airflow_provider_openai_batches.survey import LISTED_LATE_S
from airflow_provider_openai_batches.telemetry import METRICS, Meter
from airflow_provider_openai_batches.triggers.openai_batch_finished import OpenAIBatchFinishedTrigger
from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger
from tests.airflow.conftest import CONNECTION_VARIABLE, Attempts, connection_json, new_batch
from tests.conftest import API_KEY
from tests.polling.waiting import until

pytest.importorskip("statsd")
pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("no_pauses")]

DOCS = Path(__file__).parents[2] / "docs" / "telemetry.md"
ROW = re.compile(r"^\| `(openai_batches\.\w+)` \| (counter|timer) \| (.*?) \| (.*?) \|$", re.MULTILINE)
LINE = re.compile(r"airflow\.(?P<name>openai_batches\.\w+),(?P<tags>[^:|]+):(?P<value>[^|]+)\|(?P<kind>c|ms)")


class Received:
    """What arrived: amounts by name and tags."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.amounts: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
        self.kinds: dict[str, str] = {}
        self.tags: dict[str, set[str]] = {}

    def read(self) -> Received:
        """Take in all that has arrived; UDP on loopback is there when it is sent."""
        self._server.setblocking(False)
        while True:
            try:
                packet = self._server.recv(65_536).decode()
            except BlockingIOError:
                return self
            for line in packet.splitlines():
                if not line.startswith("airflow.openai_batches"):
                    continue
                found = LINE.fullmatch(line)
                assert found, line
                tags = dict(tag.split("=") for tag in found["tags"].split(","))
                self.amounts[found["name"], frozenset(tags.items())] += float(found["value"])
                self.kinds[found["name"]] = found["kind"]
                self.tags.setdefault(found["name"], set()).update(tags)

    def amount(self, name: str, **tags: str) -> float:
        return sum(
            amount
            for (found, their), amount in self.amounts.items()
            if found == f"openai_batches.{name}" and tags.items() <= dict(their).items()
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    """A StatsD server that Airflow's configuration names."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for name, value in {
            "STATSD_ON": "True",
            "STATSD_HOST": "127.0.0.1",
            "STATSD_PORT": str(server.getsockname()[1]),
            "STATSD_INFLUXDB_ENABLED": "True",
        }.items():
            monkeypatch.setenv(f"AIRFLOW__METRICS__{name}", value)
        assert conf.getboolean("metrics", "statsd_on")
        yield Received(server)


@pytest.fixture
def statsd(server: Received, monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    """The same, and this process has been told of it as a worker's would be."""
    start_stats()
    yield server
    monkeypatch.undo()
    start_stats()


OTHERWISE = "this Airflow starts its metrics otherwise (before 3.3)"


def start_stats() -> None:
    """Do what a task's process does when it starts."""
    stats = pytest.importorskip("airflow.sdk.observability.stats", reason=OTHERWISE)
    if not hasattr(stats, "initialize"):
        pytest.skip(OTHERWISE)
    from airflow.sdk.observability.metrics import stats_utils

    stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)


@pytest.fixture
def prices(connection: Callable[..., None]) -> None:
    connection(extra={"prices": {"gpt-4o-mini": {"input": 10.0, "output": 20.0}}})


def job(attempts: Attempts, run_trigger: Callable[..., list[Any]], **parameters: Any) -> dict[str, Any]:
    """Run one attempt of a job to its end, through the triggerer's code."""
    context = attempts.next()

    def operator() -> OpenAIBatchOperator:
        return OpenAIBatchOperator(task_id="job", model="gpt-4o-mini", poll_interval=0.05, **parameters)

    try:
        return operator().execute(context)
    except TaskDeferred as deferred:
        waiting = deferred
    while True:
        [event] = run_trigger(waiting.trigger)
        try:
            return operator().execute_complete(context, event)
        except TaskDeferred as deferred:
            waiting = deferred


DAG_ID = "adhoc_airflow"
"""What Airflow calls the DAG of an operator that has none."""


def test_everything_that_is_documented_arrives_and_nothing_else(
    statsd: Received,
    emulator: Emulator,
    prices: None,
    attempts: Attempts,
    run_trigger: Callable[..., list[Any]],
    tmp_path: Path,
) -> None:
    emulator.add_fault({"on": {"custom_id": "row-1"}, "do": {"outcome": "error"}})
    emulator.add_fault({"on": {"method": "GET", "path": "/batches/*"}, "do": {"status": 503}})
    parameters = {"requests": ["a", "b", "c", "a"], "output_path": str(tmp_path), "max_failed": 1, "deduplicate": True}
    manifest = job(attempts, run_trigger, **parameters)
    statsd.read()
    assert set(statsd.kinds) == {metric.name for metric in METRICS}
    assert {name: {"c": "counter", "ms": "timer"}[kind] for name, kind in statsd.kinds.items()} == {
        metric.name: metric.kind for metric in METRICS
    }
    assert statsd.tags == {metric.name: set(metric.tags) for metric in METRICS}
    assert not any("batch_" in value for _, tags in statsd.amounts for _, value in tags)

    here = {"dag_id": DAG_ID, "conn_id": "openai_batches_default", "endpoint": "/v1/chat/completions"}
    here["model"] = "gpt-4o-mini"
    batches = len(manifest["batch_ids"])
    assert statsd.amount("created", **here) == statsd.amount("ended", **here) == batches
    assert statsd.amount("ended", status="completed") == batches
    assert statsd.amount("rows", outcome="succeeded", **here) == 3
    assert statsd.amount("rows", outcome="failed") == 1
    assert statsd.amount("rows") == 4
    assert statsd.amount("reused", source="duplicates", **here) == statsd.amount("reused") == 1
    usage = manifest["usage"]
    assert statsd.amount("tokens", kind="input", **here) == usage["input_tokens"] > 0
    assert statsd.amount("tokens", kind="output") == usage["output_tokens"] > 0
    assert statsd.amount("cost_microusd") == round(manifest["cost"] * 1_000_000) > 0
    assert statsd.amount("poll_errors", error="ServerError", conn_id="openai_batches_default") == 1
    assert statsd.amount("poll_calls") > 1


def test_the_look_that_ends_a_wait_is_counted_too(
    statsd: Received, emulator: Emulator, connection: Callable[..., None], run_trigger: Callable[..., list[Any]]
) -> None:
    connection()
    waits = 5
    for _ in range(waits):
        batch_id = new_batch(emulator)
        emulator.advance(1_000)
        [event] = run_trigger(
            OpenAIBatchTrigger(conn_id="openai_batches_default", batch_ids=[batch_id], poll_interval=0.05)
        )
        assert event["status"] == "reached"
    looks = emulator.count("GET", "/v1/batches/{batch_id}") + emulator.count("GET", "/v1/batches")
    assert looks >= waits
    asyncio.run(until(lambda: statsd.read().amount("poll_calls") >= looks, within=10))
    assert statsd.amount("poll_calls") == looks


def test_what_is_done_already_is_not_counted_again(
    statsd: Received,
    emulator: Emulator,
    prices: None,
    attempts: Attempts,
    run_trigger: Callable[..., list[Any]],
    tmp_path: Path,
) -> None:
    parameters = {"requests": ["a", "b", "c"], "output_path": str(tmp_path)}
    job(attempts, run_trigger, **parameters)
    counted = dict(statsd.read().amounts)
    assert counted
    attempts.clear()
    job(attempts, run_trigger, **parameters, replan="never")
    assert dict(statsd.read().amounts) == counted
    attempts.clear()
    parameters["requests"] = ["a", "b", "changed", "new"]
    job(attempts, run_trigger, **parameters)
    assert statsd.read().amount("rows", outcome="succeeded") == 3 + 2
    assert statsd.amount("rows", outcome="kept") == statsd.amount("reused", source="kept") == 2
    assert statsd.amount("created") == 2


def test_answers_from_the_cache_are_no_rows_that_were_bought(
    statsd: Received,
    emulator: Emulator,
    connection: None,
    run_trigger: Callable[..., list[Any]],
    tmp_path: Path,
) -> None:
    for run in ("run-1", "run-2"):
        parameters = {"output_path": str(tmp_path / run), "answer_cache": str(tmp_path / "cache")}
        job(Attempts(store=None, run_id=run), run_trigger, requests=["a", "b"], **parameters)
    assert statsd.read().amount("rows", outcome="succeeded") == 2
    assert statsd.amount("rows", outcome="cached") == statsd.amount("reused", source="cache") == 2
    assert statsd.amount("rows") == 4


def test_a_retry_of_a_job_counts_its_batches_once(
    statsd: Received,
    emulator: Emulator,
    connection: None,
    attempts: Attempts,
    run_trigger: Callable[..., list[Any]],
    tmp_path: Path,
) -> None:
    parameters = {"requests": ["a", "b", "c"], "output_path": str(tmp_path), "max_requests_per_batch": 2}
    with pytest.raises(TaskDeferred):
        OpenAIBatchOperator(task_id="job", model="gpt-4o-mini", **parameters).execute(attempts.next())
    assert statsd.read().amount("created") == 2
    job(attempts, run_trigger, **parameters)
    assert statsd.read().amount("created") == statsd.amount("ended") == 2


def test_single_steps_count_a_batch_once(
    statsd: Received, emulator: Emulator, prices: None, attempts: Attempts, input_file: Path, tmp_path: Path
) -> None:
    context = attempts.next()
    file_id = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file)).execute(context)
    submit = OpenAIBatchSubmitOperator(
        task_id="submit",
        input_file_id=file_id,
        endpoint="/v1/chat/completions",
        wait_for_completion=True,
        deferrable=False,
        poll_interval=0.05,
    )
    batch_id = submit.execute(context)
    assert statsd.read().amount("created") == 1
    assert statsd.amount("ended") == 0
    got = OpenAIBatchDownloadOperator(task_id="get", batch_id=batch_id, output_path=str(tmp_path)).execute(context)
    assert statsd.read().amount("ended", status="completed", model="gpt-4o-mini") == 1
    assert statsd.amount("rows", outcome="succeeded") == statsd.amount("rows") == 3
    assert statsd.amount("tokens", kind="output") == got["usage"]["output_tokens"]
    assert statsd.amount("cost_microusd") == 10 * got["usage"]["input_tokens"] + 20 * got["usage"]["output_tokens"]
    # The next attempt of the submission goes on with the batch.
    submit.execute(attempts.next())
    assert statsd.read().amount("created") == 1


def test_a_batch_that_leaves_nothing_to_download_is_counted_where_it_is_waited_for(
    statsd: Received, emulator: Emulator, connection: None, attempts: Attempts, input_file: Path
) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed"}})
    context = attempts.next()
    submit = OpenAIBatchSubmitOperator(
        task_id="submit",
        input_file_id=OpenAIBatchUploadOperator(task_id="upload", source=str(input_file)).execute(context),
        endpoint="/v1/chat/completions",
        wait_for_completion=True,
        deferrable=False,
        poll_interval=0.05,
    )
    with pytest.raises(BatchFailedError):
        submit.execute(context)
    assert statsd.read().amount("ended", status="failed") == statsd.amount("ended") == 1


def test_a_watcher_of_an_asset_counts_each_of_its_calls_and_those_that_failed(
    statsd: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def watch(emulator: Emulator) -> None:
        async def calls(route: str, more: int) -> None:
            seen = emulator.count("GET", route)
            await until(lambda: emulator.count("GET", route) >= seen + more)

        slow = new_batch(emulator, {"outcome": "stuck", "status": "in_progress", "seconds": 2 * LISTED_LATE_S})
        async with aclosing(OpenAIBatchFinishedTrigger(poll_interval=0.02).run()) as events:
            told = asyncio.ensure_future(anext(events))
            await calls("/v1/batches", 2)
            # The next one is so much younger that the listing is not read back to the slow one, which is asked for.
            emulator.advance(1.5 * LISTED_LATE_S)
            new_batch(emulator, {"outcome": "stuck", "status": "in_progress", "seconds": None})
            await calls("/v1/batches/{batch_id}", 2)
            emulator.add_fault({"on": {"method": "GET", "path": "/v1/batches"}, "do": {"status": 503}, "times": 2})
            emulator.add_fault({"on": {"path": "/v1/batches/*"}, "do": {"status": 500}})
            await calls("/v1/batches/{batch_id}", 2)
            emulator.advance(LISTED_LATE_S)
            assert (await told).payload["batch_id"] == slow

    with Emulator(speed=0, api_key=API_KEY) as emulator:
        monkeypatch.setenv(CONNECTION_VARIABLE, connection_json(emulator))
        # What is ahead of our own clock would be listed again and again.
        clock = SimpleNamespace(time=lambda: emulator.now, monotonic=time.monotonic)
        monkeypatch.setattr(survey, "time", clock)
        asyncio.run(watch(emulator))
        counted = emulator.count("GET", "/v1/batches") + emulator.count("GET", "/v1/batches/{batch_id}")
    assert (
        statsd.read().amount("poll_calls", conn_id="openai_batches_default") == statsd.amount("poll_calls") == counted
    )
    assert statsd.amount("poll_errors", error="ServerError", conn_id="openai_batches_default") == 3
    assert statsd.amount("poll_errors") == 3


def test_a_call_that_fails_for_all_waiters_is_one_error(
    statsd: Received,
    emulator: Emulator,
    connection: None,
    attempts: Attempts,
    run_trigger: Callable[..., list[Any]],
    tmp_path: Path,
) -> None:
    emulator.add_fault({"on": {"method": "GET", "path": "/v1/batches/*"}, "do": {"status": 429}})
    job(attempts, run_trigger, requests=["a"], output_path=str(tmp_path))
    assert statsd.read().amount("poll_errors", error="RateLimitError") == statsd.amount("poll_errors") == 1


def test_a_process_that_runs_no_task_sends_what_it_counts_too(server: Received) -> None:
    code = (
        "from airflow_provider_openai_batches.telemetry import polled\n"
        "polled('team', 2, [])\n"
        "polled('team', 3, [TimeoutError()])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert server.read().amount("poll_calls", conn_id="team") == 5
    assert server.amount("poll_errors", error="TimeoutError") == 1


def test_work_goes_on_if_metrics_cannot_be_sent(server: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", "none")
    code = (
        "from airflow_provider_openai_batches.api.models import Batch\n"
        "from airflow_provider_openai_batches.telemetry import Meter, polled\n"
        "polled('team', 2, [])\n"
        "meter = Meter('dag', 'team', None)\n"
        "meter.created(1, 'm')\n"
        "meter.ended(Batch(id='batch_1', status='completed', created_at=1, in_progress_at=2), None)"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (ended.stdout + ended.stderr).count("Nothing can be counted") == 1


def test_no_text_of_others_breaks_a_line(statsd: Received) -> None:
    meter = Meter("dag", "team:prod", None)
    meter.created(1, "ft:gpt-4o:org::id,x=y|c\n#@é" + "x" * 500)
    assert statsd.read().amount("created", conn_id="team_prod", endpoint="unknown") == 1
    meter.ended(Batch(id="batch_1", status="a new status"), None)
    assert statsd.read().amount("ended", status="other", model="unknown") == 1


def test_the_documented_table_is_what_the_code_counts() -> None:
    found = [(name, kind, tags, meaning) for name, kind, tags, meaning in ROW.findall(DOCS.read_text())]
    assert found == [
        (metric.name, metric.kind, ", ".join(f"`{tag}`" for tag in metric.tags), metric.meaning) for metric in METRICS
    ]
