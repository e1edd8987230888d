"""What a job's results have to be, worked out from nothing but what the service has: input, output and error files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import requests

from airflow_provider_openai_batches.jobs.purchase import ROUND_KEY, SHARD_KEY
from tests.jobs.world import AUTHORIZED

TERMINAL = {"completed", "failed", "expired", "cancelled"}


@dataclass
class Generation:
    """One plan of the job, and what became of it.

    :param rows: the prompts, in order; ``row-<index>`` are their ids
    :param first_shard: the lowest number of its shards
    :param kept: rows that the generation before had answered
    :param results: its result rows, once they are written
    """

    rows: list[str]
    first_shard: int
    kept: set[tuple[str, str]]
    results: list[dict[str, Any]] | None = None

    def answered(self) -> set[tuple[str, str]]:
        """Rows whose answers the next generation keeps."""
        rows = self.results or ()
        return {(row["custom_id"], row["context"]["prompt"]) for row in rows if row["status"] == "succeeded"}


@dataclass
class Sending:
    """One request in one batch.

    :param prompt: what was asked
    :param batch_id: where
    :param batch_status: how that ended
    :param line: the line that counts, if there is one
    """

    prompt: str
    batch_id: str
    batch_status: str
    line: dict[str, Any] | None

    @property
    def is_answered(self) -> bool:
        """Whether it has an answer to pay for and to keep."""
        response = (self.line or {}).get("response")
        return response is not None and response["status_code"] == 200

    @property
    def ran(self) -> bool:
        """Whether it reached the model."""
        return self.line is not None and (
            (self.line["error"] or {}).get("code") not in ("batch_expired", "batch_cancelled")
        )

    @property
    def status(self) -> str:
        """What a row is if this is the last time it was sent."""
        if self.line is None:
            return {"expired": "expired", "cancelled": "cancelled"}.get(self.batch_status, "missing")
        if self.is_answered:
            finish_reason = self.line["response"]["body"]["choices"][0]["finish_reason"]
            return "succeeded" if finish_reason == "stop" else "invalid_output"
        code = (self.line["error"] or {}).get("code")
        return {"batch_expired": "expired", "batch_cancelled": "cancelled"}.get(code, "failed")


class Account:
    """Everything that a service has of one job.

    :param base_url: of the service
    :param batches: of the job, as the API shows them
    """

    def __init__(self, base_url: str, batches: Iterable[dict[str, Any]]) -> None:
        self._base_url = base_url
        self.batches = sorted(
            (batch for batch in batches if batch["status"] != "failed"),
            key=lambda batch: int(batch["metadata"][ROUND_KEY]),
        )

    def check(self, number: int, generation: Generation, following: Generation | None) -> None:
        """Make sure that a generation's results are complete and true, and that nothing in it was paid for twice."""
        assert generation.results is not None
        first = generation.first_shard
        end = following.first_shard if following is not None else float("inf")
        sendings: dict[str, list[Sending]] = {f"row-{index}": [] for index in range(len(generation.rows))}
        for batch in self.batches:
            if first <= int(batch["metadata"][SHARD_KEY]) < end:
                for custom_id, sending in self._sendings(batch):
                    sendings[custom_id].append(sending)
        assert [row["index"] for row in generation.results] == list(range(len(generation.rows)))
        for row, prompt in zip(generation.results, generation.rows, strict=True):
            assert row["custom_id"] == f"row-{row['index']}"
            assert row["context"] == {"prompt": prompt}
            if following is not None and _is_given_up(row, sendings[row["custom_id"]]):
                continue
            _check_row(f"generation {number}", row, prompt, sendings[row["custom_id"]], generation.kept)

    def _sendings(self, batch: dict[str, Any]) -> Iterable[tuple[str, Sending]]:
        lines: dict[str, dict[str, Any]] = {}
        for file_id in (batch["output_file_id"], batch["error_file_id"]):
            for line in self._lines(file_id):
                lines.setdefault(line["custom_id"], line)
        for request in self._lines(batch["input_file_id"]):
            prompt, custom_id = request["body"]["messages"][0]["content"], request["custom_id"]
            yield custom_id, Sending(prompt, batch["id"], batch["status"], lines.get(custom_id))

    def _lines(self, file_id: str | None) -> Iterable[dict[str, Any]]:
        if not file_id:
            return
        answer = requests.get(f"{self._base_url}/files/{file_id}/content", headers=AUTHORIZED, timeout=60)
        answer.raise_for_status()
        for text in answer.text.splitlines():
            try:
                yield json.loads(text)
            except ValueError:
                continue  # A line that a fault has cut.


def _is_given_up(row: dict[str, Any], sent: list[Sending]) -> bool:
    """Whether a row without an answer was given up, which only a plan that is replaced in the middle may do.

    The service refused it before it was sent, or would not show its batch for minutes.
    """
    if any(sending.is_answered for sending in sent):
        return False
    return row["status"] == "missing" or (row["status"] == "failed" and not sent and bool(row["error"]["message"]))


def _check_row(where: str, row: dict[str, Any], prompt: str, sent: list[Sending], kept: set[tuple[str, str]]) -> None:
    name = f"{where}, {row['custom_id']}: {row['status']} after {[sending.status for sending in sent]}"
    assert {sending.prompt for sending in sent} <= {prompt}, f"{name}: another row's text was sent"
    if (row["custom_id"], prompt) in kept:
        assert not sent, f"{name}: it was answered before"
        assert row["status"] == "succeeded", name
    elif not sent:
        assert (row["status"], row["attempts"]) == ("missing", 0), name
    else:
        assert [sending.is_answered for sending in sent[:-1]] == [False] * (len(sent) - 1), f"{name}: bought again"
        assert row["status"] == sent[-1].status, name
        assert row["batch_id"] == sent[-1].batch_id, name
        assert row["attempts"] == sum(sending.ran for sending in sent), name
    if row["status"] == "succeeded":
        assert row["output"].partition("Prompt: ")[2] == prompt, f"{name}: another row's answer"
    else:
        assert row["error"]["code"], name


def check_once(batches: Iterable[dict[str, Any]]) -> None:
    """Make sure that each round of each shard was bought at most once."""
    bought = Counter(
        (batch["metadata"]["airflow_job"], batch["metadata"][SHARD_KEY], batch["metadata"][ROUND_KEY])
        for batch in batches
        if batch["status"] != "failed"
    )
    assert all(count == 1 for count in bought.values()), f"bought twice: {bought}"
