"""Triggers for a benchmark in a real triggerer. They write what they see to a file: a log line would cost more."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TextIO

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger
from airflow_provider_openai_batches.watch import Trouble, Watch
from benchmarks.lag import sampled


class LagProbe(BaseTrigger):
    """Writes how late the event loop is, a JSON line for each sample, for as long as the triggerer runs.

    :param path: the file
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer rebuilds this from."""
        return "benchmarks.probes.LagProbe", {"path": self.path}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Measure until cancelled."""
        lines = _opened(self.path)
        async with sampled(lambda sample: lines.write(json.dumps(sample) + "\n")):
            await asyncio.Event().wait()
        yield TriggerEvent(None)


class NotedTrigger(OpenAIBatchTrigger):
    """Ours, and a line for each piece of news when its poll loop hands it over, and for each event before it is fired.

    :param path: the file; its lines are an id, a status or ``fired``, and unix time
    """

    def __init__(self, *, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer rebuilds this from."""
        return "benchmarks.probes.NotedTrigger", {**super().serialize()[1], "path": self.path}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait as ours does."""
        _note_news(self.path)
        async for event in super().run():
            note(self.path, self.batch_ids[0], "fired")
            yield event


class SleepingTrigger(BaseTrigger):
    """Fires at a moment: the least a trigger can do.

    :param path: a file as above
    :param name: of the lines in it
    :param moment: unix time
    :param payload: of the event
    """

    def __init__(self, path: str, name: str, moment: float, payload: Any = None) -> None:
        super().__init__()
        self.path, self.name, self.moment, self.payload = path, name, moment, payload

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer rebuilds this from."""
        given = {"path": self.path, "name": self.name, "moment": self.moment, "payload": self.payload}
        return "benchmarks.probes.SleepingTrigger", given

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Sleep until then."""
        note(self.path, self.name, "in_progress")
        await asyncio.sleep(self.moment - time.time())
        note(self.path, self.name, "fired")
        yield TriggerEvent(self.payload)


def note(path: str, name: str, what: str) -> None:
    """Write that something has happened now."""
    _opened(path).write(f"{name} {what} {time.time():.3f}\n")


def noted(path: Path, what: str) -> dict[str, float]:
    """Read when it happened first, by name."""
    text = path.read_text() if path.exists() else ""
    lines = (line.split() for line in text.rpartition("\n")[0].splitlines())
    moments: dict[str, float] = {}
    for line in lines:
        if line[1] == what:
            moments.setdefault(line[0], float(line[2]))
    return moments


@functools.cache
def _opened(path: str) -> TextIO:
    return Path(path).open("a", buffering=1)


@functools.cache
def _note_news(path: str) -> None:
    """From now on, note what poll loops hand over in this process."""
    deliver = Watch.deliver

    def noting(self: Watch, batch_id: str, news: Batch | Trouble) -> None:
        if isinstance(news, Batch):
            note(path, batch_id, news.status)
        deliver(self, batch_id, news)

    Watch.deliver = noting  # type: ignore[method-assign]
