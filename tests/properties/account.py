"""What a job's results have to be, worked out anew.

From the service come input, output and error files, and which calls without a batch it has answered; from the test the
rows, and what was in the answer cache when they were read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.emulator.dialects import DIALECTS
from airflow_provider_openai_batches.jobs.purchase import JOB_KEY, ROUND_KEY, SHARD_KEY
from tests.jobs.world import World
from tests.properties.direct_calls import Call, DirectCalls
from tests.properties.shared_cache import Origin

TERMINAL = {"completed", "failed", "expired", "cancelled"}
_INPUT = re.compile(r"([0-9a-f]{32})-shard-(\d+)-round-(\d+)\.jsonl")
_OF_AN_OUTCOME = ("status", "output", "error", "finish_reason", "model", "batch_id", "request_id")


@dataclass
class Generation:
    """One plan of a job, and what became of it.

    :param rows: the prompts, in order; ``row-<index>`` are their ids
    :param plan: its name
    :param first_shard: the lowest number of its shards
    :param kept: rows that the generation before had answered
    :param deduplicates: whether rows that ask the same are bought once
    :param planned_at: unix time at which the source was read
    :param cached: prompts whose answers were in the cache all the time while it was planned
    :param usable: where answers came from that were there at some time, by prompt
    :param direct_rounds: the rows of each round without a batch, by shard and number: custom_id, prompt, and the call
        whose answer was there when the round was over
    :param results: its result rows, once they are written
    """

    rows: list[str]
    plan: str
    first_shard: int
    kept: set[tuple[str, str]]
    deduplicates: bool = False
    planned_at: float = 0.0
    cached: set[str] = field(default_factory=set)
    usable: dict[str, set[Origin]] = field(default_factory=dict)
    direct_rounds: dict[tuple[int, int], list[tuple[str, str, Call | None]]] = field(default_factory=dict)
    results: list[dict[str, Any]] | None = None

    def answered(self) -> set[tuple[str, str]]:
        """Rows whose answers the next generation keeps."""
        rows = self.results or ()
        return {(row["custom_id"], row["context"]["prompt"]) for row in rows if row["status"] == "succeeded"}

    def bought(self) -> Iterator[dict[str, Any]]:
        """Iterate over the result rows whose answers this generation has paid for."""
        for row in self.results or ():
            if row["status"] == "succeeded" and row["attempts"] and not self.keeps(row):
                yield row

    def keeps(self, row: dict[str, Any]) -> bool:
        """Whether the generation before has answered a row, or one that asks the same where that is enough."""
        prompt = row["context"]["prompt"]
        return (row["custom_id"], prompt) in self.kept or (
            self.deduplicates and prompt in {each for _, each in self.kept}
        )


@dataclass(frozen=True)
class Purchase:
    """A batch, and what it is for by the name of its input file: not each service keeps metadata.

    :param batch: as the API shows it
    :param job: id of its job
    :param shard: number of its shard
    :param round: number of its round
    """

    batch: dict[str, Any]
    job: str
    shard: int
    round: int


def purchases(emulator: Emulator) -> list[Purchase]:
    """Return all batches, newest first."""
    names = {file["id"]: file["filename"] for file in emulator.files()}
    found = []
    for batch in emulator.batches():
        match = _INPUT.fullmatch(names[batch["input_file_id"]])
        assert match is not None
        job, shard, number = match[1], int(match[2]), int(match[3])
        metadata = batch["metadata"] or {}
        if JOB_KEY in metadata:
            assert (job, str(shard), str(number)) == tuple(metadata[key] for key in (JOB_KEY, SHARD_KEY, ROUND_KEY))
        found.append(Purchase(DIALECTS[emulator.dialect].outward(batch), job, shard, number))
    return found


def check_once(bought: Iterable[Purchase]) -> None:
    """Make sure that each round of each shard was bought at most once."""
    counts = Counter((each.job, each.shard, each.round) for each in bought if each.batch["status"] != "failed")
    assert all(count == 1 for count in counts.values()), f"bought twice: {counts}"


@dataclass
class Sending:
    """One request in one round.

    :param prompt: what was asked
    :param batch_id: where; None for a round without a batch
    :param ending: how that ended
    :param line: the line that counts, if there is one
    """

    prompt: str
    batch_id: str | None
    ending: str
    line: dict[str, Any] | None

    @property
    def is_answered(self) -> bool:
        """Whether it has an answer to pay for and to keep."""
        response = (self.line or {}).get("response")
        return response is not None and response["status_code"] in (200, 201)

    @property
    def ran(self) -> bool:
        """Whether it reached the model."""
        return self.line is not None and (
            (self.line.get("error") or {}).get("code") not in ("batch_expired", "batch_cancelled")
        )

    @property
    def status(self) -> str:
        """What a row is if this is the last time it was sent."""
        if self.line is None:
            return {"expired": "expired", "cancelled": "cancelled"}.get(self.ending, "missing")
        if self.is_answered:
            finish_reason = self.line["response"]["body"]["choices"][0]["finish_reason"]
            return "succeeded" if finish_reason == "stop" else "invalid_output"
        code = (self.line.get("error") or {}).get("code")
        return {"batch_expired": "expired", "batch_cancelled": "cancelled"}.get(code, "failed")


class Account:
    """Everything that a service has of one job.

    :param world: the job
    :param bought: its batches
    :param calls: what it sent without a batch
    """

    def __init__(self, world: World, bought: Iterable[Purchase], calls: DirectCalls) -> None:
        self._world, self._calls = world, calls
        self._bought = [each for each in bought if each.batch["status"] != "failed"]

    def check(self, number: int, generation: Generation, following: Generation | None) -> None:
        """Make sure that a generation's results are complete and true, and that nothing in it was paid for twice."""
        assert generation.results is not None
        name = f"generation {number}"
        end = following.first_shard if following is not None else float("inf")
        sendings = self._sendings(name, generation, end)
        assert [row["index"] for row in generation.results] == list(range(len(generation.rows)))
        firsts: dict[str, dict[str, Any]] = {}
        for row, prompt in zip(generation.results, generation.rows, strict=True):
            assert row["custom_id"] == f"row-{row['index']}"
            assert row["context"] == {"prompt": prompt}
            original = firsts.setdefault(prompt, row) if generation.deduplicates else row
            sent = sendings[row["custom_id"]]
            where = f"{name}, {row['custom_id']}: {row['status']} after {[sending.status for sending in sent]}"
            if (row["custom_id"], prompt) in generation.kept:
                assert not sent, f"{where}: it was answered before"
                assert row["status"] == "succeeded", where
            elif original is not row:
                assert not sent, f"{where}: it asks what row {original['index']} asks"
                assert (row["attempts"], row["usage"]) == (0, None), where
                assert [row[key] for key in _OF_AN_OUTCOME] == [original[key] for key in _OF_AN_OUTCOME], where
            elif generation.keeps(row):
                assert not sent, f"{where}: another row has asked it before"
                assert row["status"] == "succeeded", where
            elif prompt in generation.cached or (not sent and row["status"] == "succeeded"):
                assert not sent, f"{where}: its answer was in the cache"
                assert (row["status"], row["attempts"]) == ("succeeded", 0), where
                assert (row["batch_id"], row["request_id"]) in generation.usable.get(prompt, ()), (
                    f"{where}: no such answer"
                )
            elif following is None or not _is_given_up(row, sent):
                _check_bought(where, row, prompt, sent)
            _check_content(where, row, prompt)

    def _sendings(self, name: str, generation: Generation, end: float) -> dict[str, list[Sending]]:
        """Return how often each row was sent, in order of the rounds."""
        rounds = [
            (each.round, list(self._in_batch(each.batch)))
            for each in self._bought
            if generation.first_shard <= each.shard < end
        ]
        for (_, number), rows in generation.direct_rounds.items():
            rounds.append((number, [(custom_id, _without_batch(prompt, call)) for custom_id, prompt, call in rows]))
        for place in self._calls.answered():
            if generation.first_shard <= place.shard < end:
                assert place[:2] in generation.direct_rounds, f"{name}: the answer at {place} is lost"
        sendings: dict[str, list[Sending]] = {f"row-{index}": [] for index in range(len(generation.rows))}
        for _, sent in sorted(rounds, key=lambda each: each[0]):
            for custom_id, sending in sent:
                sendings[custom_id].append(sending)
        return sendings

    def _in_batch(self, batch: dict[str, Any]) -> Iterator[tuple[str, Sending]]:
        lines: dict[str, dict[str, Any]] = {}
        for file_id in (batch["output_file_id"], batch["error_file_id"]):
            for line in self._lines(file_id):
                lines.setdefault(line["custom_id"], line)
        for request in self._lines(batch["input_file_id"]):
            prompt, custom_id = request["body"]["messages"][0]["content"], request["custom_id"]
            yield custom_id, Sending(prompt, batch["id"], batch["status"], lines.get(custom_id))

    def _lines(self, file_id: str | None) -> Iterator[dict[str, Any]]:
        for text in self._world.content(file_id).splitlines() if file_id else ():
            try:
                yield json.loads(text)
            except ValueError:
                continue  # A line that a fault has cut.


def _without_batch(prompt: str, call: Call | None) -> Sending:
    line = None
    if call is not None:
        # The emulator's answer is complete, or it is none.
        body = {"choices": [{"finish_reason": "stop"}]}
        line = {"response": {"status_code": call.status, "body": body}, "error": None}
    return Sending(prompt, None, "stopped", line)


def _is_given_up(row: dict[str, Any], sent: list[Sending]) -> bool:
    """Whether a row without an answer was given up, which only a plan that is replaced in the middle may do.

    The service refused it before it was sent, or would not show its batch for minutes.
    """
    if any(sending.is_answered for sending in sent):
        return False
    return row["status"] == "missing" or (row["status"] == "failed" and not sent and bool(row["error"]["message"]))


def _check_bought(where: str, row: dict[str, Any], prompt: str, sent: list[Sending]) -> None:
    assert {sending.prompt for sending in sent} <= {prompt}, f"{where}: another row's text was sent"
    if not sent:
        assert (row["status"], row["attempts"]) == ("missing", 0), where
        return
    assert [sending.is_answered for sending in sent[:-1]] == [False] * (len(sent) - 1), f"{where}: bought again"
    assert row["status"] == sent[-1].status, where
    assert row["batch_id"] == sent[-1].batch_id, where
    assert row["attempts"] == sum(sending.ran for sending in sent), where


def _check_content(where: str, row: dict[str, Any], prompt: str) -> None:
    if row["status"] == "succeeded":
        assert row["output"].partition("Prompt: ")[2] == prompt, f"{where}: another row's answer"
    else:
        assert row["error"]["code"], where
