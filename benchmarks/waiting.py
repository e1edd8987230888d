"""What waiting costs: many deferred tasks in one real triggerer. ``python -m benchmarks.waiting [--triggers 1000]``."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from tests.polling.triggerer import Triggerer, until, waiting_for
from tests.polling.world import World

CONN_ID = "benchmark"
LATENCY_S = 0.2
_TICK_S = 0.02


class LagProbe(BaseTrigger):
    """Writes how late the event loop was, a line of seconds for each tick, for as long as the triggerer runs.

    :param path: the file
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer rebuilds this from."""
        return "benchmarks.waiting.LagProbe", {"path": self.path}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Measure until cancelled."""
        with Path(self.path).open("w", buffering=1) as lines:  # noqa: ASYNC230 - one open, before anything is measured
            while True:
                began = time.perf_counter()
                await asyncio.sleep(_TICK_S)
                lines.write(f"{time.perf_counter() - began - _TICK_S:.6f}\n")
        yield TriggerEvent(None)


def main() -> None:
    """Print the cost of ``--triggers`` waits, each for a batch of its own."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--triggers", type=int, default=1_000)
    options.add_argument("--poll-interval", type=float, default=10.0, metavar="SECONDS")
    options.add_argument("--watch-for", type=float, default=60.0, metavar="SECONDS", help="how long calls are counted")
    given = options.parse_args()
    with World() as world, tempfile.TemporaryDirectory(prefix="waiting-") as directory:
        connection = {"conn_type": "openai_batches", "host": world.base_url, "password": "sk-benchmark-0123456789"}
        with Triggerer(Path(directory, "airflow"), {CONN_ID: json.dumps(connection)}) as triggerer:
            _measure(world, triggerer, Path(directory, "lag"), given.triggers, given.poll_interval, given.watch_for)


def _measure(
    world: World, triggerer: Triggerer, lags: Path, triggers: int, poll_interval: float, watch_for: float
) -> None:
    world.latency_s = LATENCY_S
    triggerer.seed([LagProbe(str(lags)).serialize()])
    triggerer.start()
    until(lambda: lags.exists() and lags.stat().st_size > 1_000, within=120)
    empty_rss = triggerer.runner.memory_info().rss

    batches = world.add(triggers)
    triggerer.seed(waiting_for(batch_id, conn_id=CONN_ID, poll_interval=poll_interval) for batch_id in batches)
    until(lambda: len(triggerer.task_logs("is in_progress")) == triggers, within=300)

    calls, ticks, began = len(world.requests), len(_seconds(lags)), time.monotonic()
    time.sleep(watch_for)
    passed = time.monotonic() - began
    calls = len(world.requests) - calls
    late = _seconds(lags)[ticks:]
    rss = triggerer.runner.memory_info().rss
    sockets = triggerer.sockets_to(world.port)

    completed = time.time()
    world.change(batches, "completed")
    until(lambda: triggerer.states()["scheduled"] == triggers, within=300)
    resumed_s = time.time() - completed
    fired_s = [moment - completed for moment in _fired(triggerer)]

    own_polls = triggers * 60 / poll_interval
    print(f"triggers                      {triggers:8,}      each waits for its own batch, every {poll_interval:g} s")
    print(
        f"calls a minute                {calls / passed * 60:8,.0f}      a poll of each trigger's own: {own_polls:,.0f}"
    )
    print(f"connections to the service    {sockets:8}")
    print(f"event loop lag, median        {statistics.median(late) * 1e3:8.1f} ms")
    print(f"event loop lag, p99           {statistics.quantiles(late, n=100)[-1] * 1e3:8.1f} ms")
    print(f"event loop lag, worst         {max(late) * 1e3:8.1f} ms")
    print(f"RSS per trigger               {(rss - empty_rss) / triggers / 1024:8.1f} KiB   {rss >> 20} MiB in all")
    print(f"completion to event, median   {statistics.median(fired_s):8.1f} s")
    print(f"completion to event, worst    {max(fired_s):8.1f} s")
    print(f"completion to task resumed    {resumed_s:8.1f} s     the last one; from the event on it is Airflow's work")
    print(*(line for line in triggerer.log.splitlines() if "share one poll loop" in line), sep="\n")


def _fired(triggerer: Triggerer) -> list[float]:
    """Unix time of each event, by the triggerer's own log."""
    lines = (line for text in triggerer.task_logs() for line in text.splitlines())
    entries = (json.loads(line) for line in lines if "Trigger fired event" in line)
    return [datetime.fromisoformat(entry["timestamp"]).timestamp() for entry in entries]


def _seconds(lags: Path) -> list[float]:
    return [float(line) for line in lags.read_text().splitlines()[:-1]]


if __name__ == "__main__":
    main()
