"""What waiting costs an event loop, beside the rivals' triggers.

Many triggers wait in one loop, as in a triggerer, each for a batch of its own; the service takes 200 ms to answer.
Beside them run a ticker, which measures how late the loop is, and an unrelated ``asyncio.to_thread``. Then a tenth of
the batches completes here and there within an interval, and the rest at the same time.

    python -m benchmarks.event_loop --batches 10000

measures ours alone. With ``--way`` it is the process with the loop; the service is in the other one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from benchmarks.lag import Lag, Sample, sampled
from benchmarks.measuring import Table, exit_code

if TYPE_CHECKING:
    from tests.polling.world import World

OURS = "airflow-provider-openai-batches"
COMMON_AI = "common-ai"
OFFICIAL = "openai"

POLL_INTERVAL_S = 30.0
LATENCY_S = 0.2
WATCHED_FOR_S = 60.0
MOST_LAG_MS = 20.0
MOST_OWN_LAG_MS = 100.0
"""At worst, of the loop and of what runs in a thread beside it, without Python's garbage collector."""
MOST_CALLS = 1.2
"""Per 100 batches and interval."""
MOST_KB = 40.0
"""Of memory for each trigger. Counted from ten thousand on: the first thousands also pay for what all share."""

_KEY = "sk-benchmark-0123456789"
_BATCHES = 10_000
_SETTLED_WITHIN_S = 600


def compare_waiting(most: int, rivals: Path) -> tuple[list[Table], list[str]]:
    """Measure all ways, ours up to ``most`` batches, the others up to where a run still ends.

    :param most: batches
    :param rivals: the virtual environment of the rivals
    :return: the tables, and which limits are passed
    """
    pythons = {OURS: sys.executable} | dict.fromkeys((COMMON_AI, OFFICIAL), str(rivals / "bin/python"))
    runs = [(OFFICIAL, 10), (OFFICIAL, 200), (COMMON_AI, 10), (COMMON_AI, 1_000)]
    runs += [(OURS, count) for count in (10, 100, 1_000, 10_000) if count <= most]
    return measure_waiting([(pythons[way], way, count) for way, count in runs])


def measure_waiting(runs: Iterable[tuple[str, str, int]]) -> tuple[list[Table], list[str]]:
    """Measure ways with numbers of batches.

    :param runs: Python, way and batches of each
    :return: the tables, and which of our limits are passed
    """
    waits = Table(
        f"Triggers that wait in one event loop, {POLL_INTERVAL_S:.0f} s between looks, {LATENCY_S * 1e3:.0f} ms a call",
        ["", "batches", "calls per 100 and interval", "CPU s a minute", "KB a trigger", "noticed within s"],
    )
    late = Table(
        "How late the same loop is, in ms, and what is not Python's garbage collector",
        [
            "", "batches", "while they wait, p99", "worst", "own", "to_thread, worst", "own",
            "while they end, p99", "worst", "own", "to_thread, worst", "own",
        ],
    )  # fmt: skip
    failed = []
    for python, way, count in runs:
        used, waiting, ending = _measure(python, way, count)
        calls = used["calls"] / used["watched_s"] * POLL_INTERVAL_S / count * 100
        waits.add(
            way, f"{count:,}", f"{calls:.2f}", f"{used['cpu_s'] / used['watched_s'] * 60:.2f}",
            f"{used['kb_each']:.0f}", f"{used['noticed_s']:.1f}",
        )  # fmt: skip
        late.add(way, f"{count:,}", *(f"{ms:,.1f}" for lag in (waiting, ending) for ms in lag[:5]))
        if way != OURS:
            continue
        own = max(waiting.loop_own_worst, waiting.thread_own_worst, ending.loop_own_worst, ending.thread_own_worst)
        limits = {
            f"the loop is late by more than {MOST_LAG_MS:.0f} ms (p99)": waiting.loop_p99 > MOST_LAG_MS,
            f"the loop or a thread is late by more than {MOST_OWN_LAG_MS:.0f} ms": own > MOST_OWN_LAG_MS,
            f"more than {MOST_CALLS} calls per 100 batches and interval": count >= 100 and calls > MOST_CALLS,
            "a completion is noticed later than an interval": used["noticed_s"] > POLL_INTERVAL_S,
            f"a trigger takes more than {MOST_KB:.0f} KB": count >= _BATCHES and used["kb_each"] > MOST_KB,
        }
        failed += [f"{count:,} batches: {limit}" for limit, is_passed in limits.items() if is_passed]
    return [waits, late], failed


def _measure(python: str, way: str, count: int) -> tuple[dict[str, float], Lag, Lag]:
    from tests.polling.world import World

    with World() as world:
        batches = world.add(count)
        world.latency_s = LATENCY_S
        given = {"base_url": world.base_url, "batches": batches}
        command = [python, "-m", "benchmarks.event_loop", "--way", way]
        root = Path(__file__).parents[1]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(given) + "\n")
                process.stdin.flush()
                _expect(process.stdout.readline(), "watching")
                calls = len(world.requests)
                used: dict[str, Any] = json.loads(process.stdout.readline())
                used["calls"] = len(world.requests) - calls
                completed = _complete(world, batches)
                ended: dict[str, Any] = json.loads(process.stdout.readline())
            finally:
                process.kill()
    used["noticed_s"] = max(ended["events"][batch_id] - at for batch_id, at in completed.items())
    return used, Lag(*used.pop("lag")), Lag(*ended["lag"])


def _complete(world: World, batches: list[str]) -> dict[str, float]:
    """Complete all batches, a tenth of them here and there within an interval; return when each was, by the clock."""
    moments: dict[str, float] = {}
    scattered = random.sample(batches, max(1, len(batches) // 10))
    groups = [scattered[start :: min(60, len(scattered))] for start in range(min(60, len(scattered)))]
    for group in [*groups, list(set(batches) - set(scattered))]:
        world.change(group, "completed")
        moments |= dict.fromkeys(group, time.monotonic())
        time.sleep(POLL_INTERVAL_S / len(groups))
    return moments


def _expect(line: str, word: str) -> None:
    if line.strip() != word:
        raise RuntimeError(f"the process with the loop said {line!r} instead of {word!r}; its errors are above")


# --- the process with the loop ---------------------------------------------------------------------------------------


def our_trigger(batch_id: str) -> Any:
    """Make our trigger."""
    from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger

    return OpenAIBatchTrigger(conn_id="ours", batch_ids=[batch_id], poll_interval=POLL_INTERVAL_S)


def common_ai_trigger(batch_id: str) -> Any:
    """Make that of common-ai's operator."""
    from airflow.providers.common.ai.triggers.llm_batch import LLMBatchTrigger

    return LLMBatchTrigger(
        llm_conn_id="common_ai",
        adapter="openai",
        batch_id=batch_id,
        poll_interval=int(POLL_INTERVAL_S),
        end_time=time.time() + 86_400,
        cancel_on_kill=False,
        cancel_on_timeout=False,
    )


def official_trigger(batch_id: str) -> Any:
    """Make that of the official provider's operator."""
    from airflow.providers.openai.triggers.openai import OpenAIBatchTrigger

    return OpenAIBatchTrigger(conn_id="official", batch_id=batch_id, poll_interval=POLL_INTERVAL_S, timeout=86_400)


WAYS: dict[str, Callable[[str], Any]] = {
    OURS: our_trigger,
    COMMON_AI: common_ai_trigger,
    OFFICIAL: official_trigger,
}


def wait_in_this_process(way: str) -> None:
    """Wait for the batches that a line of standard input names, and print what it took."""
    given = json.loads(sys.stdin.readline())
    # Airflow logs to standard output, which is for the figures.
    figures = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for name, conn_type in (("OURS", "openai_batches"), ("COMMON_AI", "pydanticai"), ("OFFICIAL", "openai")):
        connection = {"conn_type": conn_type, "host": given["base_url"], "password": _KEY}
        os.environ[f"AIRFLOW_CONN_{name}"] = json.dumps(connection)
    logging.disable(logging.INFO)
    asyncio.run(_wait(WAYS[way], given["batches"], figures))


async def _wait(trigger: Callable[[str], Any], batch_ids: list[str], figures: TextIO) -> None:
    events: dict[str, float] = {}
    # One wait first, for what is imported and made once: it is not a trigger's own.
    first = asyncio.create_task(_event(trigger, batch_ids[0], events))
    await asyncio.sleep(2 + 10 * LATENCY_S)
    memory = _rss_kb()
    waits = [asyncio.create_task(_event(trigger, batch_id, events)) for batch_id in batch_ids[1:]]
    # Every trigger has looked once, by then also where each look blocks the loop.
    await asyncio.sleep(max(POLL_INTERVAL_S, 2 * LATENCY_S * len(batch_ids) / 100))

    print("watching", file=figures)
    began, cpu = time.monotonic(), time.process_time()
    samples: list[Sample] = []
    async with sampled(samples.append):
        await asyncio.sleep(WATCHED_FOR_S)
    used = {
        "watched_s": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
        "kb_each": (_rss_kb() - memory) / max(1, len(waits)),
        "lag": Lag.of(samples),
    }
    print(json.dumps(used), file=figures)

    samples.clear()
    async with asyncio.timeout(_SETTLED_WITHIN_S), sampled(samples.append):
        await asyncio.gather(first, *waits)
    print(json.dumps({"events": events, "lag": Lag.of(samples)}), file=figures)


async def _event(trigger: Callable[[str], Any], batch_id: str, events: dict[str, float]) -> None:
    async for _ in trigger(batch_id).run():
        events[batch_id] = time.monotonic()


def _rss_kb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def main() -> int:
    """Print our tables, or be the process with the loop.

    :return: exit code: 1 if a figure is over its limit
    """
    options = argparse.ArgumentParser(prog="python -m benchmarks.event_loop", description="Ours in one event loop.")
    options.add_argument("--batches", type=int, nargs="+", default=[10_000], help="(default: %(default)s)")
    options.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.way:
        wait_in_this_process(given.way)
        return 0
    tables, failed = measure_waiting((sys.executable, OURS, count) for count in given.batches)
    print(*tables, sep="\n")
    return exit_code(failed)


if __name__ == "__main__":
    sys.exit(main())
