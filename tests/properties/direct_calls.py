"""The rows that a job sends without a batch: which calls were made, what came of them, and which were due."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.jobs.directory import JobDirectory

BEFORE_CALL = "before POST chat"
SETTLES_S = 60 + 60 + 2 * 600 + 30
"""From a claim until its answer cannot come any more: "after 23 minutes if the worker died" (docs/guide.md)."""

_ROUTE = "/v1/chat/completions"
_FILE = re.compile(
    r"(before|after) (?:claim|write) "
    r"(_job/shard-(\d+)/round-(\d+)\.direct/(\d+)\.(claim|answer|ended)(?:-\d+)?\.json)"
)


class Place(NamedTuple):
    """A row of a round."""

    shard: int
    round: int
    row: int


@dataclass
class Call:
    """One call.

    :param status: HTTP status that came back; 0 if nothing did
    :param billed: whether the service answered it
    """

    status: int
    billed: bool


@dataclass
class Claim:
    """The right to send a row, and what was done with it.

    :param place: the row
    :param at: unix time from which it holds
    :param calls: made under it
    :param ended: whether it was given back without an answer
    :param answer: the call whose answer was written down
    :param is_late: whether that was when it was not waited for any more
    """

    place: Place
    at: float
    calls: list[Call] = field(default_factory=list)
    ended: bool = False
    answer: Call | None = None
    is_late: bool = False

    def is_over(self, now: float) -> bool:
        """Whether nothing more can come of it."""
        return self.ended or now >= self.at + SETTLES_S


@dataclass(frozen=True)
class _Step:
    """Where an attempt stands with a file of a row."""

    before: bool
    kind: str
    place: Place
    file: str

    @classmethod
    def of(cls, at: str | None) -> _Step | None:
        match = _FILE.fullmatch(at or "")
        if match is None:
            return None
        when, file, shard, number, row, kind = match.groups()
        return cls(when == "before", kind, Place(int(shard), int(number), int(row)), file)


class Receipts:
    """What an emulator was asked without a batch, call by call. Each has to be fetched before the next is made.

    :param emulator: that keeps requests
    """

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._calls = 0
        self.billed = 0
        """Calls so far that were answered."""

    def latest(self) -> Call | None:
        """Return the call that was made since we asked last, if there was one."""
        calls, billed = self._calls, self.billed
        self._calls = self._emulator.count("POST", _ROUTE)
        if self._calls == calls:
            return None
        assert self._calls == calls + 1
        self.billed = sum(each.batch_id is None and each.billed for each in self._emulator.requests())
        status = next(call.status for call in reversed(self._emulator.calls) if call.route == _ROUTE)
        return Call(status, self.billed > billed)


class DirectCalls:
    """All calls of one job, noted while its attempts go from boundary to boundary, one of them at a time.

    :param receipts: of the service
    :param directory: the job's
    """

    def __init__(self, receipts: Receipts, directory: JobDirectory) -> None:
        self._receipts, self._directory = receipts, directory
        self.claims: dict[Place, list[Claim]] = {}
        self._at: dict[str, str | None] = {}
        self._held: dict[str, Claim] = {}

    def note(self, attempt: str, at: str | None, now: float) -> None:
        """Take note of where an attempt stands.

        :param attempt: its name
        :param at: the boundary; None once it is over
        :param now: unix time
        """
        before, self._at[attempt] = self._at.get(attempt), at
        step = _Step.of(before)
        if before == BEFORE_CALL and (call := self._receipts.latest()) is not None:
            self._held[attempt].calls.append(call)
        elif step is not None and step.before:
            # It is done now, or its attempt has died in the middle.
            self._note_file(attempt, step, now)
        if at == BEFORE_CALL:
            self._check_due(self._held[attempt])

    def answer(self, place: Place) -> Call | None:
        """Return the call that gave a row what was written down of it, a good answer before a refusal."""
        answers = [claim.answer for claim in self.claims.get(place, ()) if claim.answer is not None]
        return next((each for each in answers if each.billed), answers[-1] if answers else None)

    def answered(self) -> set[Place]:
        """Return the rows that have an answer that is paid for, and came while it was waited for."""
        claims = [claim for claims in self.claims.values() for claim in claims]
        return {
            claim.place for claim in claims if claim.answer is not None and claim.answer.billed and not claim.is_late
        }

    def _note_file(self, attempt: str, step: _Step, now: float) -> None:
        content = self._directory.read(step.file)
        if content is None:
            return
        match step.kind:
            case "claim":
                kept = json.loads(content)
                if attempt in (kept["attempt"], kept["attempt"].rpartition("-")[0]):
                    self._held[attempt] = Claim(step.place, kept["at"])
                    self.claims.setdefault(step.place, []).append(self._held[attempt])
            case "ended":
                self._held[attempt].ended = True
            case "answer":
                held = self._held[attempt]
                held.answer, held.is_late = held.calls[-1], held.is_over(now)

    def _check_due(self, held: Claim) -> None:
        """Make sure that a call may be made now."""
        for each in self.claims[held.place]:
            if each is held:
                break
            assert each.answer is None, f"{held.place} is sent again though it is answered"
            assert each.is_over(held.at), f"{held.place} is sent again though its answer may still come"
        lost = sum(call.status == 0 for call in held.calls)
        assert lost <= 1, f"{held.place} is sent again though two answers are lost"
        assert not any(call.billed and call.status for call in held.calls), f"{held.place} is sent again when answered"
