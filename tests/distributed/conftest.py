"""Runs only when asked for, by `make test-distributed`: it takes minutes and many processes."""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from demo.processes import Processes, is_alive
from tests.distributed import services, workload
from tests.distributed.chronicle import Chronicle
from tests.distributed.cluster import Cluster
from tests.distributed.evidence import Bought, Service, result_rows
from tests.distributed.network import Network
from tests.distributed.story import Ended, Story
from tests.emulator.process import emulator_process

_CHRONICLE = pytest.StashKey[Chronicle]()
PR_SET_CHILD_SUBREAPER = 36


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--distributed", action="store_true", help="run the tests in tests/distributed")
    parser.addoption("--cut-seconds", type=float, default=120, help="how long the network to the service is cut")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--distributed", default=False):
        here = Path(__file__).parent
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(pytest.mark.skip(reason="takes minutes: make test-distributed"))


@dataclass
class Outcome:
    """What the run left on record, gathered before the services are gone.

    :param jobs: how each job ended, by names of run and task
    :param rows: the result rows of each job, as S3 has them
    :param batches: all batches of the service
    :param survivors: processes that outlived the run
    :param remains: directories that outlived it
    """

    jobs: dict[tuple[str, str], Ended]
    rows: dict[tuple[str, str], list[dict[str, Any]]]
    batches: list[dict[str, Any]]
    bought: Bought
    survivors: list[str] = field(default_factory=list)
    remains: list[Path] = field(default_factory=list)


@pytest.fixture(scope="package")
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Everything happens here, once. The tests read what came of it."""
    if missing := services.missing():
        if os.environ.get("CI_REQUIRE_SERVICES") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    # Whoever loses its parent becomes our child, so that nobody can get lost.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    children_before = set(psutil.Process().children(recursive=True))
    chronicle = request.config.stash[_CHRONICLE] = Chronicle()
    directory = tmp_path_factory.mktemp("distributed")
    faults = directory / "faults.json"
    faults.write_text(json.dumps(workload.faults()))
    emulator_options = ("--faults", str(faults), "--data-dir", str(directory / "emulator"), "--batch-seconds", "15")
    with (
        Processes(directory / "services") as service_processes,
        services.running(service_processes) as running,
        emulator_process(*emulator_options) as emulator,
        Network(urlsplit(emulator.base_url).port or 0) as network,
        Processes(directory / "logs", grace_s=0) as processes,
    ):
        service = Service(emulator.client())
        cluster = Cluster.start(processes, directory / "airflow", running, network.port)
        chronicle.ready_after_s = time.monotonic() - chronicle.began
        story = Story(cluster, running, service, network, chronicle)
        story.begin("first")
        story.kill_worker()
        story.kill_triggerer()
        story.kill_scheduler()
        story.cut_network(request.config.getoption("--cut-seconds"))
        story.kill_api_server()
        story.kill_redis()
        story.kill_postgresql()
        jobs = story.finish()
        rows = {job: result_rows(ended.manifest.get("results", ()), running.read_result) for job, ended in jobs.items()}
        outcome = Outcome(jobs, rows, service.batches(), service.bought())
        chronicle.facts += facts(outcome)
    alive = [each for each in psutil.Process().children(recursive=True) if is_alive(each)]
    outcome.survivors = [str(each) for each in alive if each not in children_before]
    outcome.remains = [running.home] if running.home.exists() else []
    chronicle.took_s = time.monotonic() - chronicle.began
    return outcome


def facts(outcome: Outcome) -> list[str]:
    """Say in numbers what was done."""
    bought, rows = outcome.bought, sum(map(len, outcome.rows.values()))
    tries = Counter(ended.tries for ended in outcome.jobs.values())
    return [
        f"{len(outcome.jobs)} jobs, {rows:,} result rows, {len(outcome.batches)} batches",
        f"tries: {', '.join(f'{count} jobs took {number}' for number, count in sorted(tries.items()))}",
        f"requests: {bought.sent.total():,} sent, of which {bought.answered.total():,} were answered, "
        f"{bought.errors.total():,} failed and {bought.unrun.total():,} expired unrun, all by script",
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was done and seen, also of a run that failed."""
    chronicle = terminalreporter.config.stash.get(_CHRONICLE, None)
    if chronicle is not None:
        terminalreporter.section("killed and seen")
        terminalreporter.write_line(chronicle.table())
