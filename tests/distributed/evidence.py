"""What the service and S3 have on record, read past our own client."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI

RESULT_FILES = ("output_file_id", "error_file_id")


@dataclass(frozen=True)
class Bought:
    """What became of each request, by the ids of the rows.

    :param sent: how often it was in the input file of a batch that was accepted
    :param answered: how often it got an answer of status 200
    :param errors: how often it got another answer
    :param unrun: how often its batch expired before its turn, which costs nothing
    """

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    unrun: Counter[str] = field(default_factory=Counter)


class Service:
    """The emulator, seen through OpenAI's own SDK and not through the network that is cut."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def batches(self) -> list[dict[str, Any]]:
        """List all batches, newest first."""
        return [batch.to_dict() for batch in self._client.batches.list(limit=100)]

    def bought(self) -> Bought:
        """Read the input and result files of all batches."""
        bought = Bought()
        for batch in self.batches():
            if batch["status"] == "failed":
                continue
            bought.sent.update(line["custom_id"] for line in self._lines(batch["input_file_id"]))
            for name in RESULT_FILES:
                for line in self._lines(batch.get(name)):
                    self._count(line, bought)
        return bought

    def _count(self, line: dict[str, Any], bought: Bought) -> None:
        if line["error"] and line["error"]["code"] == "batch_expired":
            bought.unrun[line["custom_id"]] += 1
        elif line["response"]["status_code"] == 200:
            bought.answered[line["custom_id"]] += 1
        else:
            bought.errors[line["custom_id"]] += 1

    def _lines(self, file_id: str | None) -> Iterator[dict[str, Any]]:
        if file_id is not None:
            yield from map(json.loads, self._client.files.content(file_id).text.splitlines())


def result_rows(uris: Iterable[str], read: Callable[[str], bytes]) -> list[dict[str, Any]]:
    """Read a job's result rows.

    :param uris: the result files, in order
    :param read: gives a file's content
    """
    return [json.loads(line) for uri in uris for line in read(uri).splitlines()]
