"""What is in an answer cache, read from its files without any code of ours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_openai_batches.jobs.answer_cache import AnswerCache
from tests.properties import object_store

Origin = tuple[str | None, str | None]
"""Batch and request that an answer came from."""


@dataclass(frozen=True)
class Entry:
    """One answer.

    :param prompt: to what
    :param at: unix time at which it came
    :param until: unix time after which its writer does not want it used
    :param origin: where it came from
    """

    prompt: str
    at: int
    until: int
    origin: Origin


class SharedCache:
    """A cache that several jobs share.

    :param location: a directory, or a URI in the object store
    """

    def __init__(self, location: Path | str) -> None:
        self._location = location

    def of(self, expires_after_s: float | None) -> AnswerCache:
        """Return the cache as a job is given it."""
        return AnswerCache.at(self._location, expires_after_s)

    def entries(self) -> list[Entry]:
        """Return all answers there are."""
        found: list[Entry] = []
        for content in self._contents():
            for line in content.decode().splitlines():
                _, at, until, _, text = line.split(" ", 4)
                answer = json.loads(text)
                prompt = answer["output"].partition("Prompt: ")[2]
                found.append(Entry(prompt, int(at), int(until), (answer["batch_id"], answer["request_id"])))
        return found

    def _contents(self) -> Iterable[bytes]:
        if isinstance(self._location, str):
            return object_store.contents(f"{self._location}/v1")
        return [path.read_bytes() for path in self._location.glob("v1/*/*.txt")]

    def check(self, landed: Mapping[Origin, float]) -> None:
        """Make sure that each answer is as old as it is: else it would be used for longer than it is good for.

        :param landed: unix time at which answers were there: of a whole batch, or of a request that had none
        """
        for entry in self.entries():
            batch_id, request_id = entry.origin
            there_at = landed[(None, request_id) if batch_id is None else (batch_id, None)]
            assert entry.at <= there_at, f"{there_at - entry.at} seconds too young: {entry}"
