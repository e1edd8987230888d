"""Write a finished batch's output and error file, in shuffled order, without holding bodies in memory."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import json
import os
import random
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from airflow_provider_openai_batches.emulator.answers import Answer, Twist, answer
from airflow_provider_openai_batches.emulator.faults import FAILING_ROW_OUTCOMES, RowOutcome
from airflow_provider_openai_batches.emulator.validation import Stopping, parse_line
from airflow_provider_openai_batches.emulator.wire import derived_id, dump, error_body

NEVER_RUN = {
    "expired": {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    },
    "cancelled": {
        "code": "batch_cancelled",
        "message": "This request was not executed because the batch was cancelled.",
    },
}
"""The error of a request that had no turn, by the batch's final status."""
TIMED_OUT = {"code": "request_timeout", "message": "The request timed out before the model had answered."}
"""The error of a request that ran out of time."""
_TWISTS: dict[str, Twist] = {"length": "length", "refusal": "refusal", "invalid_output": "invalid_output"}


def finish_order(batch_id: str, total: int) -> list[int]:
    """The order in which a batch's requests are done: shuffled, and the same after a restart."""
    order = list(range(total))
    random.Random(batch_id).shuffle(order)  # noqa: S311
    return order


@dataclasses.dataclass(slots=True)
class Tally:
    """What the written lines add up to."""

    completed: int = 0
    failed: int = 0
    output_lines: int = 0
    error_lines: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def usage(self) -> dict[str, Any]:
        """The batch's ``usage``."""
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a batch's requests before they run. Lines are numbered from 0.

    :param rejected: lines whose endpoint answers 400
    :param outcomes: scripted fates by line
    """

    rejected: array.array[int]
    outcomes: dict[int, RowOutcome]

    def failing_positions(self, order: list[int]) -> array.array[int]:
        """When, in the order of finishing, requests fail; ascending."""
        failing = set(self.rejected)
        failing |= {line for line, fate in self.outcomes.items() if fate.outcome in FAILING_ROW_OUTCOMES}
        return array.array("L", (at for at, line in enumerate(order) if line in failing))

    def save(self, path: Path) -> None:
        """Write the plan, whole or not at all."""
        fates: dict[RowOutcome, list[int]] = {}
        for line, fate in self.outcomes.items():
            fates.setdefault(fate, []).append(line)
        noted = [{"do": dataclasses.asdict(fate), "lines": lines} for fate, lines in fates.items()]
        draft = path.with_suffix(".plan.draft")
        draft.write_text(json.dumps({"rejected": list(self.rejected), "outcomes": noted}))
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote."""
        noted = json.loads(path.read_text())
        outcomes = {line: RowOutcome(**fate["do"]) for fate in noted["outcomes"] for line in fate["lines"]}
        return cls(array.array("L", noted["rejected"]), outcomes)


class Lines:
    """Random access to a JSONL file's lines: only their offsets are held."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets = array.array("Q", [0])
        for line in file:
            self._offsets.append(self._offsets[-1] + len(line))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        start = self._offsets[number]
        return os.pread(self._file.fileno(), self._offsets[number + 1] - start, start)


class ResultWriter:
    """Writes result lines to the output and error drafts and keeps the tally."""

    def __init__(
        self,
        batch_id: str,
        output: BinaryIO,
        errors: BinaryIO,
        billed: BinaryIO | None = None,
        *,
        names_lines: bool = True,
    ) -> None:
        self._names_lines = names_lines
        self.tally = Tally()
        self._billed = billed
        self._batch_id = batch_id
        self._output = output
        self._errors = errors

    def answered(self, line: int, custom_id: str, reply: Answer, fate: RowOutcome | None = None) -> None:
        """Write an answered request's line; ``fate`` may spoil it."""
        ok = 200 <= reply.status < 300
        self.tally.completed += ok
        self.tally.failed += not ok
        self.tally.input_tokens += reply.input_tokens
        self.tally.output_tokens += reply.output_tokens
        if ok and self._billed is not None:
            self._billed.write(b"%d\n" % line)
        spoiled = fate.outcome if fate is not None else None
        if spoiled == "missing":
            return
        if spoiled == "unknown":
            custom_id = f"unknown-{custom_id}"
        request_id = derived_id("req_", self._batch_id, line)
        response = {"status_code": reply.status, "request_id": request_id, "body": reply.body}
        text = self._line(line, custom_id, response, None)
        if spoiled == "broken_line":
            text = text[: len(text) // 2] + b"\n"
        self._write(text * 2 if spoiled == "duplicate" else text, ok, 2 if spoiled == "duplicate" else 1)

    def unanswered(self, line: int, custom_id: str, error: Mapping[str, str], *, ran: bool) -> None:
        """Write the line of a request without a response; it counts as failed only if it ran."""
        self.tally.failed += ran
        self._write(self._line(line, custom_id, None, error), ok=False, lines=1)

    def _line(self, line: int, custom_id: str, response: Any, error: Any) -> bytes:
        line_id = {"id": derived_id("batch_req_", self._batch_id, line)} if self._names_lines else {}
        return dump({**line_id, "custom_id": custom_id, "response": response, "error": error}) + b"\n"

    def _write(self, text: bytes, ok: bool, lines: int) -> None:
        if ok:
            self.tally.output_lines += lines
            self._output.write(text)
        else:
            self.tally.error_lines += lines
            self._errors.write(text)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """All that writing the results of a batch takes.

    :param finished: requests that had their turn; None for all of them
    :param ending: the batch's final status
    :param created: unix seconds shown in the answers
    :param all_failed: how every request fails, if they all do
    :param spool: what an upstream has answered so far, if one is asked
    :param billed: where to note the numbers of the lines that were answered; None notes nothing
    :param names_lines: whether result lines have an ``id``
    """

    batch_id: str
    url: str
    source: Path
    plan: Plan
    finished: int | None
    ending: str
    created: int
    all_failed: RowOutcome | None = None
    spool: Path | None = None
    billed: Path | None = None
    names_lines: bool = True

    def fate(self, line: int) -> RowOutcome | None:
        """What is scripted for a line."""
        return self.all_failed or self.plan.outcomes.get(line)

    def turns(self, total: int) -> int:
        """How many of ``total`` requests had their turn."""
        return total if self.finished is None else self.finished


@dataclasses.dataclass(frozen=True, slots=True)
class Spooled:
    """One request an upstream was asked: its answer, or the error that took its place."""

    line: int
    reply: Answer | None
    error: dict[str, str] | None = None

    def dump(self) -> bytes:
        """Encode for the spool file."""
        return dump([self.line, dataclasses.astuple(self.reply) if self.reply else None, self.error]) + b"\n"

    @classmethod
    def load(cls, text: bytes) -> Self:
        """Read what :meth:`dump` wrote."""
        line, reply, error = json.loads(text)
        return cls(line, Answer(*reply) if reply else None, error)

    @property
    def ok(self) -> bool:
        """Whether the request succeeded."""
        return self.reply is not None and 200 <= self.reply.status < 300

    def write(self, writer: ResultWriter, line: int, custom_id: str, fate: RowOutcome | None) -> None:
        """Write the request's result line."""
        if self.reply is not None:
            writer.answered(line, custom_id, self.reply, fate)
        else:
            writer.unanswered(line, custom_id, self.error or TIMED_OUT, ran=True)


class Spool:
    """Random access to a spool file by line number; a line torn by a kill is ignored."""

    def __init__(self, file: BinaryIO) -> None:
        self._entries = Lines(file)
        self._index: dict[int, int] = {}
        for number in range(len(self._entries)):
            text = self._entries[number]
            if text.endswith(b"\n"):
                self._index[int(text[1 : text.index(b",")])] = number

    def get(self, line: int) -> Spooled | None:
        """The answer to a line, if the upstream has given one."""
        number = self._index.get(line)
        return None if number is None else Spooled.load(self._entries[number])


def write_results(job: Job, output_path: Path, error_path: Path, stopping: threading.Event) -> Tally:
    """Answer the requests that had their turn and write both files.

    :raises Stopping: ``stopping`` was set
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(job.source.open("rb"))
        output, errors = (stack.enter_context(path.open("wb")) for path in (output_path, error_path))
        spool = Spool(stack.enter_context(job.spool.open("rb"))) if job.spool and job.spool.exists() else None
        billed = stack.enter_context(job.billed.open("wb")) if job.billed else None
        writer = ResultWriter(job.batch_id, output, errors, billed, names_lines=job.names_lines)
        lines = Lines(source)
        for position, line in enumerate(finish_order(job.batch_id, len(lines))):
            if stopping.is_set():
                raise Stopping
            request = parse_line(lines[line])
            spooled = spool.get(line) if spool is not None else None
            if spooled is not None:
                spooled.write(writer, line, request["custom_id"], job.fate(line))
            elif (spool is not None and job.ending != "completed") or position >= job.turns(len(lines)):
                writer.unanswered(line, request["custom_id"], NEVER_RUN[job.ending], ran=False)
            else:
                write_answer(writer, job, line, request)
        return writer.tally


def write_answer(writer: ResultWriter, job: Job, line: int, request: Mapping[str, Any]) -> None:
    """Answer one request as the emulator itself does, and write its line."""
    fate = job.fate(line)
    if fate is not None and fate.outcome == "timeout":
        writer.unanswered(line, request["custom_id"], TIMED_OUT, ran=True)
    elif fate is not None and fate.outcome in FAILING_ROW_OUTCOMES:
        writer.answered(line, request["custom_id"], scripted_error(fate))
    else:
        twist = _TWISTS.get(fate.outcome) if fate is not None else None
        text = fate.text if fate is not None else None
        reply = answer(request["url"], request["body"], created=job.created, twist=twist, text=text)
        writer.answered(line, request["custom_id"], reply, fate)


def scripted_error(fate: RowOutcome) -> Answer:
    """The error answer of an ``error`` or ``server_error`` fate."""
    status = fate.status or (500 if fate.outcome == "server_error" else 400)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = fate.code or ("server_error" if status >= 500 else "invalid_value")
    return Answer(status, error_body(fate.message or "Scripted error of the emulator.", code=code, kind=kind))
