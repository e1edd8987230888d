"""What is noted of a job while it lives: each plan, what was known when it was made, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.jobs.ledger import Ledger, Round, Shard
from airflow_provider_openai_batches.jobs.ownership import load_ledger
from airflow_provider_openai_batches.jobs.parts import read_results
from tests.jobs.world import OWNER, World
from tests.properties.account import Generation
from tests.properties.direct_calls import DirectCalls, Place, Receipts
from tests.properties.shared_cache import Entry, Origin, SharedCache


@dataclass
class Reading:
    """What there was when the source was read.

    :param rows: the prompts
    :param at: unix time
    :param cached: all that was in the cache
    """

    rows: list[str]
    at: float
    cached: list[Entry]


class Chronicle:
    """A job, and what was seen of it.

    :param emulator: that keeps requests
    :param receipts: its
    :param location: the job's directory
    :param texts: the rows' prompts; they may be changed
    :param cache: the answer cache; None if the job has none
    :param expires_after_s: how long the job takes an answer to be good
    :param settings: further settings of the job
    """

    def __init__(
        self,
        emulator: Emulator,
        receipts: Receipts,
        location: Path | str,
        texts: list[str],
        *,
        cache: SharedCache | None,
        expires_after_s: float | None,
        **settings: Any,
    ) -> None:
        self.texts = texts
        self.running = ""
        """The attempt that is moving."""
        self.generations: dict[int, Generation] = {}
        self.landed: dict[Origin, float] = {}
        """Unix time at which answers were there: of a whole batch, or of a request that had none."""
        self._cache, self._expires_after_s = cache, expires_after_s
        self._readings: dict[str, Reading] = {}
        if cache is not None:
            settings["answer_cache"] = cache.of(expires_after_s)
        self.world = World(
            emulator.base_url,
            location,
            self._read_rows,
            dialect=emulator.dialect.removesuffix("-classic"),
            **settings,
        )
        self.calls = DirectCalls(receipts, self.world.directory)

    @property
    def ledger(self) -> Ledger | None:
        """The ledger, which can be read at any moment."""
        return load_ledger(self.world.directory, OWNER)

    def note(self, attempt: str, at: str | None) -> None:
        """Take note of where an attempt stands, of each new plan and of each plan's results.

        :param attempt: its name
        :param at: the boundary; None once it is over
        """
        self.calls.note(attempt, at, self.world.now)
        ledger = self.ledger
        if ledger is None:
            return
        before = self.generations.get(ledger.generation - 1)
        if before is not None and before.results is None and ledger.earlier_results:
            self._note_results(before, ledger.earlier_results)
        generation = self.generations.get(ledger.generation)
        # A plan that was saved too late, when the next attempt had looked already, is replaced by that one's.
        if ledger.planned and (generation is None or generation.plan != ledger.plan):
            generation = self.generations[ledger.generation] = self._planned(ledger, before)
        if generation is None:
            return
        for shard in ledger.shards:
            for landed in shard.landed_rounds:
                if landed.direct:
                    self._note_direct(generation, shard, landed)
                else:
                    self.landed.setdefault((landed.batch_id, None), self.world.now)
        if ledger.manifest is not None and generation.results is None:
            self._note_results(generation, ledger.manifest["results"])

    def _read_rows(self) -> Iterable[str]:
        cached = [] if self._cache is None else self._cache.entries()
        self._readings[self.running] = Reading(list(self.texts), self.world.now, cached)
        return list(self.texts)

    def _planned(self, ledger: Ledger, before: Generation | None) -> Generation:
        """Note a plan. Rows and cache are read by the attempt that makes it."""
        name = ledger.attempt if ledger.attempt in self._readings else ledger.attempt.rpartition("-")[0]
        reading = self._readings[name]
        oldest = float("-inf") if self._expires_after_s is None else reading.at - self._expires_after_s
        # It may have taken long to plan: some answers have expired since, and others have come.
        there = self._cache.entries() if self._cache is not None else []
        usable: dict[str, set[Origin]] = {}
        for each in reading.cached + there:
            if each.at >= oldest and each.until >= reading.at:
                usable.setdefault(each.prompt, set()).add(each.origin)
        sure = {each.prompt for each in reading.cached if each.at >= oldest and each.until >= self.world.now}
        return Generation(
            reading.rows,
            ledger.plan,
            ledger.first_shard,
            set() if before is None else before.answered(),
            deduplicates=self._cache is not None or self.world.settings.deduplicate,
            planned_at=reading.at,
            cached=sure,
            usable=usable,
        )

    def _note_direct(self, generation: Generation, shard: Shard, landed: Round) -> None:
        place = shard.index, landed.number
        if place in generation.direct_rounds:
            return

        def lines(kind: str) -> list[dict[str, Any]]:
            content = self.world.directory.read(shard.file(kind, landed.number))
            return list(map(json.loads, (content or b"").splitlines()))

        generation.direct_rounds[place] = [
            (line["custom_id"], line["body"]["messages"][0]["content"], self.calls.answer(Place(*place, row)))
            for row, line in enumerate(lines("requests"))
        ]
        for line in lines("output"):
            self.landed[None, line["response"]["request_id"]] = self.world.now

    def _note_results(self, generation: Generation, results: list[str]) -> None:
        generation.results = list(read_results({"results": results}))
        expires_after_s = float("inf") if self._expires_after_s is None else self._expires_after_s
        if self._cache is not None and self.world.now <= generation.planned_at + expires_after_s:
            there = {each.origin for each in self._cache.entries()}
            for row in generation.bought():
                assert (row["batch_id"], row["request_id"]) in there, f"not in the cache: {row}"
