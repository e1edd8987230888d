"""Runs cases: the emulator is here, the operation in a process that is given up when it hangs."""

from __future__ import annotations

import contextlib
import json
import re
import select
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from airflow_provider_openai_batches.emulator import Emulator
from benchmarks.contenders import ENDPOINT, MODEL
from benchmarks.faults.cases import CLEARED, ENDLESS, FAILED, RETRIED, SUCCESS, Case
from benchmarks.faults.operations import (
    CANCEL,
    COMMON_AI,
    DOWNLOAD,
    JOB,
    OFFICIAL,
    PROMPTS,
    SENSOR,
    SUBMIT,
    TRIGGER,
    UPLOAD,
    WATCHER,
)

BOUND_S = 60
"""Real seconds; a case takes a fraction of one."""

_ROOT = Path(__file__).parents[2]
_GIVEN_A_BATCH = (SENSOR, TRIGGER, WATCHER, DOWNLOAD, CANCEL)
_BATCH_S, _LEFTOVERS_S = 3600.0, 2 * 86_400.0
_OFTEN_S, _SELDOM_S = 60, 600
"""Between looks; seldom where the wait takes a day."""


@dataclass(frozen=True)
class Result:
    """What a case came to.

    :param case: the case
    :param outcome: one of the five of :mod:`benchmarks.faults.cases`
    :param answered: rows whose answer the user has, or can fetch from a batch the task has named
    :param lost: rows that were paid and finished, and that the user does not have
    :param twice: answers that were bought although the service had given a good one before
    :param message: first line of the first error the user sees
    """

    case: Case
    outcome: str
    answered: int
    lost: int
    twice: int
    message: str


class Workers:
    """Processes that run operations, one for each interpreter, replaced when they hang."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for python in list(self._running):
            self._end(python)

    def ask(self, python: str, order: dict[str, Any]) -> dict[str, Any]:
        """Have an order carried out.

        :return: the answer of :func:`benchmarks.faults.operations.run`
        """
        if python not in self._running:
            # The first order also waits for the imports.
            self._running[python] = _start(python)
        process = self._running[python]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        if select.select([process.stdout], [], [], BOUND_S)[0]:
            if line := process.stdout.readline():
                answer: dict[str, Any] = json.loads(line)
                return answer
            raise RuntimeError(f"the process with the operations ended at {order}; its error is above")
        self._end(python)
        return {"value": None, "messages": [], "xcoms": [], "cleared": False, "endless": True}

    def _end(self, python: str) -> None:
        process = self._running.pop(python)
        process.kill()
        process.communicate()


def _start(python: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-m", "benchmarks.faults.operations"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT,
    )  # fmt: skip


def run_case(case: Case, workers: Workers, python: str) -> Result:
    """Run a case at a fresh emulator, and count what was bought and what is left of it.

    :param python: the interpreter that has the operation
    """
    fates = [rule for rule in case.rules if rule["on"].keys() & {"batch", "custom_id"}]
    calls = [rule for rule in case.rules if rule not in fates]
    with Emulator(speed=0, keep_requests=True) as emulator, tempfile.TemporaryDirectory() as place:
        api = _Api(emulator.base_url)
        order: dict[str, Any] = {
            "operation": case.operation, "base_url": emulator.base_url, "place": place, "heals": case.heals,
            "poll_interval": _SELDOM_S if case.is_long else _OFTEN_S,
        }  # fmt: skip
        others = api.crowd(case.crowd) if case.crowd else []
        for rule in fates:
            emulator.add_fault(rule)
        if case.operation == UPLOAD:
            order["source"] = str(Path(place, "source.jsonl"))
            Path(order["source"]).write_bytes(_lines())
        if case.operation in (SUBMIT, OFFICIAL, *_GIVEN_A_BATCH):
            order["file_id"] = api.upload(_lines())
        if case.operation in _GIVEN_A_BATCH:
            order["batch_id"] = api.create(order["file_id"])
        if case.operation == DOWNLOAD:
            emulator.advance(_BATCH_S)
        if case.operation == CANCEL:
            emulator.advance(30)
        for rule in calls:
            emulator.add_fault(rule)
        answer = workers.ask(python, {**order, "now": emulator.now})
        emulator.clear_faults()
        for rule in () if case.heals else calls:
            emulator.add_fault(rule)
        # What goes on without anybody is paid, too.
        emulator.advance(_LEFTOVERS_S)
        good = {batch["id"]: api.good_rows(batch) for batch in emulator.batches() if batch["id"] not in others}
        return _judged(case, answer, good, set(_landed(case.operation, Path(place))))


def _judged(case: Case, answer: dict[str, Any], good: dict[str, set[int]], landed: set[int]) -> Result:
    bought = Counter(row for rows in good.values() for row in rows)
    if case.operation not in (JOB, DOWNLOAD, COMMON_AI):
        named = set(re.findall(r"batch_\w+", json.dumps(answer)))
        landed = {row for batch_id, rows in good.items() if batch_id in named for row in rows}
    if case.operation in _GIVEN_A_BATCH and case.operation != DOWNLOAD:
        landed = set(bought)  # It is the user who knows the batch.
    if answer.get("endless"):
        outcome = ENDLESS
    elif answer["value"] is None:
        outcome = FAILED
    elif answer["cleared"]:
        outcome = CLEARED
    else:
        outcome = RETRIED if answer["messages"] else SUCCESS
    twice = sum(count - 1 for count in bought.values())
    message = next(iter(answer["messages"]), "").strip().partition("\n")[0]
    return Result(case, outcome, len(landed), len(bought.keys() - landed), twice, _steady(message))


def _steady(message: str) -> str:
    """Take out of a message what differs from run to run."""
    message = re.sub(r"(batch_|file-|req_)\w{6,}", r"\1…", message)
    message = re.sub(r"127\.0\.0\.1:(?!9\b)\d+", "HOST", message)
    return re.sub(r"(file://)?/tmp/\w+", "DIRECTORY", message)


def _landed(operation: str, place: Path) -> Iterator[int]:
    """Rows whose own answer is in the results."""
    if operation == JOB:
        for part in place.glob("results/part-*.jsonl"):
            for row in _json_lines(part.read_bytes()):
                if row["status"] == "succeeded" and PROMPTS[row["index"]] in row["output"]:
                    yield row["index"]
    elif operation == COMMON_AI:
        for part in place.glob("*.jsonl"):
            for row in _json_lines(part.read_bytes()):
                if row["status"] == "success" and PROMPTS[row["index"]] in json.dumps(row, ensure_ascii=False):
                    yield row["index"]
    elif operation == DOWNLOAD:
        for part in place.glob("*.output*.jsonl"):
            yield from _good(part.read_bytes())


def _good(content: bytes) -> Iterator[int]:
    """Rows of an output file with a whole answer."""
    for line in _json_lines(content):
        sender, _, row = line.get("custom_id", "").rpartition("-")
        body = (line.get("response") or {}).get("body") or {}
        if sender.startswith("unknown") or not row.isdigit() or "choices" not in body:
            continue
        [choice] = body["choices"]
        if choice["finish_reason"] == "stop" and PROMPTS[int(row)] in (choice["message"]["content"] or ""):
            yield int(row)


def _json_lines(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def _lines() -> bytes:
    return b"".join(
        json.dumps(
            {
                "custom_id": f"row-{index}",
                "method": "POST",
                "url": ENDPOINT,
                "body": {"model": MODEL, "messages": [{"role": "user", "content": prompt}]},
            }
        ).encode()
        + b"\n"
        for index, prompt in enumerate(PROMPTS)
    )


class _Api:
    """What a case needs of the service beforehand and afterwards.

    :param base_url: of the emulator
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    def upload(self, content: bytes) -> str:
        """Upload requests; return the file's id."""
        url, named = f"{self._base_url}/files", ("source.jsonl", content)
        file_id: str = requests.post(url, data={"purpose": "batch"}, files={"file": named}, timeout=60).json()["id"]
        return file_id

    def create(self, file_id: str) -> str:
        """Create a batch; return its id."""
        order = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
        batch_id: str = requests.post(f"{self._base_url}/batches", json=order, timeout=60).json()["id"]
        return batch_id

    def crowd(self, count: int) -> list[str]:
        """Create batches of others."""
        file_id = self.upload(_lines())
        return [self.create(file_id) for _ in range(count)]

    def good_rows(self, batch: dict[str, Any]) -> set[int]:
        """Return the rows of a batch whose whole answer the service gives to whoever asks for it."""
        if not batch["output_file_id"]:
            return set()
        answer = requests.get(f"{self._base_url}/files/{batch['output_file_id']}/content", timeout=60)
        return set(_good(answer.content)) if answer.ok else set()
