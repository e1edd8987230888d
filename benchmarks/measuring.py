"""CPU, memory and calls of one process, with the emulator in another."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import requests

_LONGER_THAN_ANY_BATCH_S = 3_600


@contextlib.contextmanager
def metered() -> Iterator[dict[str, float]]:
    """Give what the work within costs this process, once it is done: ``cpu_s``, and ``peak_mb`` above now."""
    gc.collect()
    # Forget the peak of the imports, and of the process that began this one.
    Path("/proc/self/clear_refs").write_text("5")
    used: dict[str, float] = {}
    memory, cpu = _peak_kb(), time.process_time()
    yield used
    used["cpu_s"] = time.process_time() - cpu
    used["peak_mb"] = (_peak_kb() - memory) / 1000


def _peak_kb() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def in_own_process(python: str, module: str, *arguments: str) -> Any:
    """Run a module of ours in a process of its own; return the JSON of its last line.

    :param python: the interpreter
    """
    command = [python, "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def emulator(*options: str) -> Iterator[str]:
    """Run an emulator whose time stands still; give its base URL.

    :param options: further ones of its command line
    """
    command = [sys.executable, "-m", "airflow_provider_openai_batches.emulator", "--port", "0", "--speed", "0"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    try:
        assert process.stdout is not None
        yield process.stdout.readline().rpartition(" ")[2].strip()
    finally:
        process.terminate()
        process.wait()


def pass_time(base_url: str) -> None:
    """Let the emulator finish all batches."""
    _control(base_url, "POST", "advance", {"seconds": _LONGER_THAN_ANY_BATCH_S})


def add_fault(base_url: str, rule: dict[str, Any]) -> None:
    """Script a fault of the emulator."""
    _control(base_url, "POST", "faults", rule)


def calls(base_url: str) -> dict[str, int]:
    """How often each route was called so far, such as ``POST /v1/batches``."""
    counts: dict[str, int] = _control(base_url, "GET", "calls")
    return counts


def batches(base_url: str) -> int:
    """Number of batches the emulator has, without those that failed validation."""
    count, query = 0, {"limit": "100"}
    while True:
        page = requests.get(f"{base_url}/batches", params=query, timeout=60).json()
        count += [batch["status"] == "failed" for batch in page["data"]].count(False)
        if not page["has_more"]:
            return count
        query["after"] = page["last_id"]


def _control(base_url: str, method: str, what: str, body: Any = None) -> Any:
    url = base_url.removesuffix("/v1") + f"/emulator/{what}"
    answer = requests.request(method, url, json=body, timeout=1200)
    answer.raise_for_status()
    return answer.json()


class Table:
    """Figures to print, and to put into the docs.

    :param title: what they are of
    :param columns: the heads
    """

    def __init__(self, title: str, columns: list[str]) -> None:
        self.title = title
        self.rows = [columns]

    def add(self, *row: str) -> None:
        """Add a row."""
        self.rows.append(list(row))

    def __str__(self) -> str:
        """As Markdown, aligned, the figures to the right."""
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        lines = [
            "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
            for row in self.rows
        ]
        rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
        return "\n".join([f"## {self.title}", "", lines[0], rule, *lines[1:], ""])


def exit_code(failed: Iterable[str]) -> int:
    """Say which limits were passed; return what the command ends with."""
    over = list(failed)
    for limit in over:
        print(f"over the limit: {limit}", file=sys.stderr)
    return int(bool(over))
