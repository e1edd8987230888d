"""The commands on the pages work: those of a page are one script, run in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, Block, blocks

COMMANDS = {
    "python": "",
    "airflow": "-m airflow",
    "openai-batches": "-m airflow_provider_openai_batches.cli",
    "openai-batches-emulator": "-m airflow_provider_openai_batches.emulator",
}

PREAMBLE = """
set -euo pipefail
pip() { :; }   # see tests/docs/pages.py
make() { :; }

declare -A emulators
trap 'kill "${emulators[@]}" 2>/dev/null || true' EXIT
openai-batches-emulator() {  # in the background, and not before it listens
    local port=${1:-} arguments=("$@")
    if [[ " $* " =~ " --port "([0-9]+)" " ]]; then port=${BASH_REMATCH[1]}; else arguments+=(--port 0); port=any; fi
    if [[ -n "${emulators[$port]:-}" ]]; then kill "${emulators[$port]}"; wait "${emulators[$port]}" || true; fi
    : >"emulator-$port.log"  # The one before listens no more.
    command openai-batches-emulator "${arguments[@]}" >"emulator-$port.log" 2>&1 &
    emulators[$port]=$!
    until grep -q listening "emulator-$port.log"; do
        kill -0 "${emulators[$port]}" || { cat "emulator-$port.log"; exit 1; }
        sleep 0.1
    done
}
"""


def script(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "bash" and not block.mark]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a user who has installed this very code, and nothing else of Airflow or OpenAI."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, arguments in COMMANDS.items():
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        command.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "OPENAI", "PYTEST"))}
    return kept | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "no_proxy": "127.0.0.1",
    }


@pytest.mark.timeout(600)  # the tutorial starts Airflow five times: a minute of work
@pytest.mark.parametrize("page", [page for page in PAGES if script(page)])
def test_the_commands_of_a_page_work(page: str, environment: dict[str, str], tmp_path: Path) -> None:
    needed = {tool for tool in ("curl", "jq") if any(re.search(rf"\b{tool}\b", b.code) for b in script(page))}
    if missing := {tool for tool in needed if shutil.which(tool) is None}:
        assert os.environ.get("CI_REQUIRE_SERVICES") != "1", f"not installed: {missing}"
        pytest.skip(f"{page} needs {', '.join(missing)}")
    place = tmp_path / "place"
    place.mkdir()
    text = "\n".join(f": {shlex.quote(str(block))}\n{block.code}" for block in script(page))
    ports = {port: str(free_port()) for port in set(re.findall(r"--port (\d+)", text))}
    for block in blocks(page):
        if block.file is not None and block.mark in ("", "file"):
            # Where a page makes directories for its files, they are there a moment earlier.
            for folder in {place, *(place / each for each in re.findall(r"^cd (\w+)$", text, re.MULTILINE))}:
                (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.file).write_text(block.code)
    text = re.sub(r"^mkdir (?!-)", "mkdir -p ", text, flags=re.MULTILINE)
    for documented, port in ports.items():
        text = re.sub(rf"\b{documented}\b", port, text)
    text = text.replace("/data/", f"{tmp_path}/data/")
    with open(tmp_path / "log", "w+") as log:
        # A session of its own, so that what a script leaves running can be ended with it.
        shell = subprocess.Popen(
            ["bash", "-xc", PREAMBLE + text], cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = shell.wait(timeout=580)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
        log.seek(0)
        assert code == 0, f"{page}: {'no end' if code is None else f'exit code {code}'}\n{log.read()[-6000:]}"


def test_a_file_of_a_page_is_used_by_its_commands() -> None:
    for page in PAGES:
        commands = "\n".join(block.code for block in blocks(page) if block.language == "bash")
        for block in blocks(page):
            if block.file is not None and block.file.endswith(".py"):
                assert re.search(rf"airflow dags test {Path(block.file).stem}|pytest", commands), str(block)
