"""What waiting costs a real triggerer of Airflow, and who takes the time when all batches end at once.

Ours in one triggerer; then, in another, as many triggers that have nothing to do with batches and only sleep. They fire
at the same moment, and what passes until their tasks are scheduled is Airflow's own. (So many of its DateTimeTrigger do
not get going in two minutes: the lines that it logs while it waits keep the triggerer busy.)
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.event_loop import LATENCY_S, MOST_KB, MOST_LAG_MS
from benchmarks.lag import Lag, Sample
from benchmarks.measuring import Table
from benchmarks.probes import LagProbe, NotedTrigger, SleepingTrigger, noted
from tests.polling.triggerer import Seed, Triggerer, until
from tests.polling.world import World

OURS = "OpenAIBatchTrigger"
SLEEPING = "a trigger that sleeps until then"

_CONN_ID = "benchmark"
_MANY = 5_000
"""From so many on, what all share no longer counts in the memory of one."""
_LOADED_WITHIN_S = 600
_SETTLED_WITHIN_S = 900


@dataclass
class Wait:
    """What a run has shown. Times are in seconds after the batches ended, or after the moment that was waited for.

    :param told: when the poll loop had handed over that a batch is over
    :param fired: when the trigger gave its event to Airflow
    :param scheduled: when Airflow had written it to the database, and with it that the task goes on
    :param waiting: lag of the event loop while nothing happened
    :param ending: the same from the end of the batches until the last event
    :param kb_each: resident memory of the process for each trigger
    :param calls: to the service while nothing happened, by the minute
    """

    told: list[float]
    fired: list[float]
    scheduled: list[float]
    waiting: Lag
    ending: Lag
    kb_each: float
    calls: float


def measure_triggerer(triggers: int, poll_interval: float, watch_for: float) -> tuple[list[Table], list[str]]:
    """Measure ours and the controls.

    :param triggers: in each run
    :param poll_interval: seconds between looks
    :param watch_for: seconds for which lag and calls are counted before all ends
    :return: the tables, and which of our limits are passed
    """
    ends = Table(
        f"{triggers:,} deferred tasks in one triggerer, all to go on at the same time: seconds until",
        ["", "told, median", "last", "fired, median", "last", "scheduled, median", "last", "tasks a second"],
    )
    costs = Table(
        "The event loop of that triggerer: how late it is, in ms, and what is not Python's garbage collector",
        [
            "", "KB a trigger", "calls a minute", "while they wait, p99", "worst", "own", "to_thread, worst", "own",
            "while they end, p99", "worst", "own", "to_thread, worst", "own",
        ],
    )  # fmt: skip
    failed = []
    for name in (OURS, SLEEPING):
        wait = _run(name, triggers, poll_interval, watch_for)
        pace = triggers / max(max(wait.scheduled) - min(wait.scheduled), 0.001)
        steps = (_median_and_last(moments) for moments in (wait.told, wait.fired, wait.scheduled))
        ends.add(name, *(text for step in steps for text in step), f"{pace:.0f}")
        lags = (f"{ms:,.1f}" for lag in (wait.waiting, wait.ending) for ms in lag[:5])
        costs.add(name, f"{wait.kb_each:.0f}", f"{wait.calls:.0f}" if wait.told else "", *lags)
        if name == OURS:
            limits = {
                "a completion is told later than an interval": max(wait.told) > poll_interval,
                f"the loop is late by more than {MOST_LAG_MS:.0f} ms (p99)": wait.waiting.loop_p99 > MOST_LAG_MS,
                f"a trigger takes more than {MOST_KB:.0f} KB": triggers >= _MANY and wait.kb_each > MOST_KB,
            }
            failed += [f"triggerer: {limit}" for limit, is_passed in limits.items() if is_passed]
    return [ends, costs], failed


def _run(name: str, triggers: int, poll_interval: float, watch_for: float) -> Wait:
    with ExitStack() as stack:
        world = stack.enter_context(World())
        world.latency_s = LATENCY_S
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="waiting-")))
        connection = {"conn_type": "openai_batches", "host": world.base_url, "password": "sk-benchmark-0123456789"}
        triggerer = stack.enter_context(Triggerer(home / "airflow", {_CONN_ID: json.dumps(connection)}))
        lags, notes = home / "lags", home / "notes"
        triggerer.seed([LagProbe(str(lags)).serialize()])
        triggerer.start()
        until(lambda: lags.exists() and lags.stat().st_size > 1_000, within=120)
        empty_kb = triggerer.runner.memory_info().rss / 1024

        names = world.add(triggers)
        # Airflow loads some 200 triggers a second, after they are written to the database.
        moment = time.time() + 30 + triggers / 50 + watch_for
        seeds: dict[str, Callable[[str], Seed]] = {
            OURS: lambda batch_id: NotedTrigger(
                path=str(notes), conn_id=_CONN_ID, batch_ids=[batch_id], poll_interval=poll_interval
            ).serialize(),
            SLEEPING: lambda each: SleepingTrigger(str(notes), each, moment).serialize(),
        }
        triggerer.seed(map(seeds[name], names))
        _until(triggerer, lambda: len(noted(notes, "in_progress")) == triggers, _LOADED_WITHIN_S)

        calls, began = len(world.requests), time.time()
        time.sleep(watch_for)
        watched = time.time()
        calls = len(world.requests) - calls
        kb_each = (triggerer.runner.memory_info().rss / 1024 - empty_kb) / triggers
        if name == OURS:
            moment = time.time()
            world.change(names, "completed")
        elif moment < watched:
            raise RuntimeError(f"this machine takes too long to load {triggers:,} triggers")
        _until(triggerer, lambda: triggerer.states()["scheduled"] == triggers, _SETTLED_WITHIN_S)
        samples = [Sample(*json.loads(line)) for line in lags.read_text().splitlines()[:-1]]
        return Wait(
            told=_after(moment, noted(notes, "completed").values()),
            fired=_after(moment, noted(notes, "fired").values()),
            scheduled=_after(moment, triggerer.scheduled()),
            waiting=Lag.of([each for each in samples if began <= each.at < watched]),
            ending=Lag.of([each for each in samples if each.at >= moment]),
            kb_each=kb_each,
            calls=calls / (watched - began) * 60,
        )


def _until(triggerer: Triggerer, condition: Callable[[], bool], within: float) -> None:
    """Wait for what the triggerer does, without reading its files and database all the time."""

    def is_so() -> bool:
        time.sleep(1)
        if not triggerer.is_alive:
            raise RuntimeError(f"the triggerer has ended:\n{triggerer.log[-2_000:]}")
        return condition()

    until(is_so, within=within)


def _after(moment: float, others: Iterable[float]) -> list[float]:
    return [other - moment for other in others]


def _median_and_last(moments: Collection[float]) -> tuple[str, str]:
    return (f"{statistics.median(moments):.1f}", f"{max(moments):.1f}") if moments else ("", "")
