"""What a newcomer meets when something goes wrong: one clear line, and a machine as it was before."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from demo.openai_server import OpenAIServer
from demo.processes import HOST, Processes, claim_port, is_alive
from tests.system.demo_process import REPOSITORY, DemoRun, environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

EXIT_TIMEOUT_S = 60


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., DemoRun]]:
    with contextlib.ExitStack() as stack:
        yield functools.partial(DemoRun.start, stack, tmp_path)


def test_ctrl_c_even_twice_leaves_nothing_running_and_no_batch_that_costs_money(
    start_demo: Callable[..., DemoRun], waiting: Processes, emulator: OpenAIServer
) -> None:
    demo = start_demo("run", {"OPENAI_API_KEY": "sk-somebody-pays", "OPENAI_BASE_URL": emulator.url})
    waiting.wait_for(demo.says("in_progress"), timeout_s=120, what="the batch to start")
    assert "This costs money." in demo.output.read_text()
    family = demo.family()
    assert len(family) >= 4  # scheduler, DAG processor, triggerer, API server

    demo.popen.send_signal(signal.SIGINT)
    waiting.wait_for(lambda: not all(map(is_alive, family)), timeout_s=60, what="the first component to end")
    demo.popen.send_signal(signal.SIGINT)

    assert demo.popen.wait(EXIT_TIMEOUT_S) == 128 + signal.SIGINT, demo.output.read_text()
    with emulator.client() as client:
        assert next(client.list_batches(limit=1)).status in ("cancelling", "cancelled")
    _assert_all_gone(family, demo)


def test_who_sits_at_the_terminal_is_asked_before_money_is_spent(tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    os.write(ours, b"n\n")

    ended = subprocess.run(
        [sys.executable, "-m", "demo", "run", "--workspace", tmp_path],
        cwd=REPOSITORY,
        env=environment() | {"OPENAI_API_KEY": "sk-found-in-a-shell"},
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=EXIT_TIMEOUT_S,
        check=False,
    )

    assert ended.returncode == 1
    assert "This costs money." in ended.stdout
    assert "nothing was sent" in ended.stderr
    assert not list(tmp_path.iterdir())  # Nothing was started.


def test_sigterm_while_starting_leaves_nothing_running(start_demo: Callable[..., DemoRun], waiting: Processes) -> None:
    demo = start_demo("run")
    waiting.wait_for((demo.workspace / "logs" / "triggerer.log").exists, timeout_s=60, what="the triggerer to start")
    family = demo.family()

    demo.popen.send_signal(signal.SIGTERM)

    assert demo.popen.wait(EXIT_TIMEOUT_S) == 128 + signal.SIGTERM, demo.output.read_text()
    _assert_all_gone(family, demo)


def test_a_crashed_component_ends_the_run_and_shows_its_log(
    start_demo: Callable[..., DemoRun], waiting: Processes
) -> None:
    demo = start_demo("airflow")
    waiting.wait_for(demo.says("Ctrl-C stops everything"), timeout_s=120, what="Airflow")
    family = demo.family()

    next(child for child in family if "scheduler" in child.cmdline()).kill()

    assert demo.popen.wait(EXIT_TIMEOUT_S) == 1
    said = demo.output.read_text()
    assert "error: scheduler died with exit code -9" in said
    assert "scheduler.log (last" in said
    _assert_all_gone(family, demo)


@pytest.mark.parametrize("variable", ["AIRFLOW_PORT", "EMULATOR_PORT"])
def test_a_taken_port_is_one_clear_line(variable: str, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        said = _fails([sys.executable, "-m", "demo", "run", "--workspace", tmp_path], REPOSITORY, {variable: str(port)})

    assert said == (
        f"error: port {port} cannot be used (Address already in use): "
        f"set {variable} to another one, or unset it to get a free one"
    )


def test_a_port_that_is_no_number_is_one_clear_line(tmp_path: Path) -> None:
    said = _fails([sys.executable, "-m", "demo", "run", "--workspace", tmp_path], REPOSITORY, {"AIRFLOW_PORT": "http"})

    assert said == "error: AIRFLOW_PORT=http is not a port: use a number from 1 to 65535, or unset it"


def test_a_second_run_does_not_pull_the_rug_from_under_the_first(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = _fails([sys.executable, "-m", "demo", "run", "--workspace", tmp_path], REPOSITORY, {})

    assert said == f"error: another run is using {tmp_path}: stop it first (Ctrl-C in its terminal)"


def test_a_too_old_python_is_one_clear_line(tmp_path: Path) -> None:
    old = _python_that(tmp_path, "sys.version_info = (3, 10, 13)")

    said = _fails(["make", "-s", "demo", f"PYTHON={old}"], _clone(tmp_path), {})

    assert said.splitlines()[0] == f"error: PYTHON={old} is not a working Python 3.11 or newer"


def test_no_python_at_all_is_one_clear_line(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "make", "dirname"):
        (tools / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool}"))

    said = _fails(["make", "-s", "test"], _clone(tmp_path), {"PATH": str(tools)})

    assert said.splitlines()[0].startswith("error: no Python 3.11 or newer on PATH: install one, or name it")


def test_a_python_without_venv_is_one_clear_line(tmp_path: Path) -> None:
    bare = _python_that(tmp_path, "sys.modules['ensurepip'] = None")

    said = _fails(["make", "-s", "test", f"PYTHON={bare}"], _clone(tmp_path), {})

    assert "cannot make virtual environments: install its venv package" in said.splitlines()[0]


@pytest.fixture
def waiting(tmp_path: Path) -> Processes:
    """No children: only its way of waiting."""
    return Processes(tmp_path / "none")


def _assert_all_gone(family: list[psutil.Process], demo: DemoRun) -> None:
    assert [process for process in family if is_alive(process)] == []
    for port in demo.ports:
        assert claim_port(port, "the port") == port


def _fails(argv: list[str | Path], cwd: Path, extra: dict[str, str]) -> str:
    """Run a command that must fail, and return what it says on stderr."""
    answer = subprocess.run(
        argv, cwd=cwd, env=environment() | extra, capture_output=True, text=True, timeout=EXIT_TIMEOUT_S
    )
    assert answer.returncode != 0, answer.stdout
    return answer.stderr.strip()


def _python_that(directory: Path, differs: str) -> Path:
    """Make an interpreter like ours but for one statement run before each `-c` program."""
    python = directory / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || exec {sys.executable} "$@"\n'
        f'exec {sys.executable} -c "import sys; {differs}; exec(sys.argv[1])" "$2"\n'
    )
    python.chmod(0o755)
    return python


def _clone(directory: Path) -> Path:
    """Copy what the install step reads to a place that has no venv yet."""
    clone = directory / "clone"
    shutil.copytree(REPOSITORY / "demo", clone / "demo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, clone / name)
    return clone
