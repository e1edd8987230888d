"""What waiting costs an event loop, beside the rivals' triggers.

Many triggers wait in one loop, as in a triggerer, each for a batch of its own; the service takes 200 ms to answer.
Beside them run a ticker, which measures how late the loop is, and an unrelated ``asyncio.to_thread``. Then all batches
complete at the same time.

    python -m benchmarks.event_loop WAY ARGUMENTS

is the process with the loop, for :func:`compare_waiting`; the service is in the other one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TextIO

from benchmarks.measuring import Table

OURS = "airflow-provider-openai-batches"
COMMON_AI = "common-ai"
OFFICIAL = "openai"

POLL_INTERVAL_S = 30.0
LATENCY_S = 0.2
WATCHED_FOR_S = 60.0
MOST_LAG_MS = 20.0
MOST_CALLS = 1.2
"""Per 100 batches and interval."""
MOST_KB = 40.0
"""Of memory for each trigger. Counted from ten thousand on: the first thousands also pay for what all share."""

_TICK_S = 0.02
_KEY = "sk-benchmark-0123456789"
_BATCHES = 10_000
_SETTLED_WITHIN_S = 600


def compare_waiting(most: int, rivals: Path) -> tuple[Table, list[str]]:
    """Measure all ways, ours up to ``most`` batches, the others up to where a run still ends.

    :param most: batches
    :param rivals: the virtual environment of the rivals
    :return: the table, and which limits are passed
    """
    pythons = {OURS: sys.executable} | dict.fromkeys((COMMON_AI, OFFICIAL), str(rivals / "bin/python"))
    runs = [(OFFICIAL, 10), (OFFICIAL, 200), (COMMON_AI, 10), (COMMON_AI, 1_000)]
    runs += [(OURS, count) for count in (10, 100, 1_000, 10_000) if count <= most]
    table = Table(
        f"Triggers that wait in one event loop, {POLL_INTERVAL_S:.0f} s between looks, {LATENCY_S * 1e3:.0f} ms a call",
        [
            "", "batches", "loop late, p99 ms", "worst ms", "to_thread, worst ms", "calls per 100 and interval",
            "CPU s a minute", "KB a trigger", "noticed within s",
        ],
    )  # fmt: skip
    failed = []
    for way, count in runs:
        used = _measure(pythons[way], way, count)
        calls = used["calls"] / used["watched_s"] * POLL_INTERVAL_S / count * 100
        table.add(
            way, f"{count:,}", f"{used['late_p99_ms']:.1f}", f"{used['late_worst_ms']:,.0f}",
            f"{used['thread_worst_ms']:,.0f}", f"{calls:.2f}", f"{used['cpu_s'] / used['watched_s'] * 60:.2f}",
            f"{used['kb_each']:.0f}", f"{used['noticed_s']:.1f}",
        )  # fmt: skip
        if way != OURS:
            continue
        limits = {
            f"the loop is late by more than {MOST_LAG_MS:.0f} ms (p99)": used["late_p99_ms"] > MOST_LAG_MS,
            f"more than {MOST_CALLS} calls per 100 batches and interval": count >= 100 and calls > MOST_CALLS,
            "a completion is noticed later than an interval": used["noticed_s"] > POLL_INTERVAL_S,
            f"a trigger takes more than {MOST_KB:.0f} KB": count >= _BATCHES and used["kb_each"] > MOST_KB,
        }
        failed += [f"{count:,} batches: {limit}" for limit, is_passed in limits.items() if is_passed]
    return table, failed


def _measure(python: str, way: str, count: int) -> dict[str, float]:
    from tests.polling.world import World

    with World() as world:
        batches = world.add(count)
        world.latency_s = LATENCY_S
        given = {"base_url": world.base_url, "batches": batches}
        command = [python, "-m", "benchmarks.event_loop", way]
        root = Path(__file__).parents[1]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(given) + "\n")
                process.stdin.flush()
                _expect(process.stdout.readline(), "watching")
                calls = len(world.requests)
                used: dict[str, float] = json.loads(process.stdout.readline())
                used["calls"] = len(world.requests) - calls
                world.change(batches, "completed")
                process.stdin.write("completed\n")
                process.stdin.flush()
                used["noticed_s"] = json.loads(process.stdout.readline())["noticed_s"]
            finally:
                process.kill()
    return used


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


def main() -> None:
    """Wait for the batches that a line of standard input names, and print what it took."""
    given = json.loads(sys.stdin.readline())
    # Airflow logs to standard output, which is for the figures.
    figures = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for name, conn_type in (("OURS", "openai_batches"), ("COMMON_AI", "pydanticai"), ("OFFICIAL", "openai")):
        connection = {"conn_type": conn_type, "host": given["base_url"], "password": _KEY}
        os.environ[f"AIRFLOW_CONN_{name}"] = json.dumps(connection)
    logging.disable(logging.INFO)
    asyncio.run(_wait(WAYS[sys.argv[1]], given["batches"], figures))


async def _wait(trigger: Callable[[str], Any], batch_ids: list[str], figures: TextIO) -> None:
    # One wait first, for what is imported and made once: it is not a trigger's own.
    first = asyncio.create_task(_event(trigger(batch_ids[0])))
    await asyncio.sleep(2 + 10 * LATENCY_S)
    memory = _rss_kb()
    waits = [asyncio.create_task(_event(trigger(batch_id))) for batch_id in batch_ids[1:]]
    # Every trigger has looked once, by then also where each look blocks the loop.
    await asyncio.sleep(max(POLL_INTERVAL_S, 2 * LATENCY_S * len(batch_ids) / 100))

    print("watching", file=figures)
    began, cpu = time.monotonic(), time.process_time()
    late, in_thread = list[float](), list[float]()
    async with _repeating(_tick(late)), _repeating(_use_thread(in_thread)):
        await asyncio.sleep(WATCHED_FOR_S)
    used = {
        "watched_s": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
        "kb_each": (_rss_kb() - memory) / max(1, len(waits)),
        "late_p99_ms": sorted(late)[int(0.99 * len(late))] * 1e3,
        "late_worst_ms": max(late) * 1e3,
        "thread_worst_ms": max(in_thread) * 1e3,
    }
    print(json.dumps(used), file=figures)

    sys.stdin.readline()
    began = time.monotonic()
    async with asyncio.timeout(_SETTLED_WITHIN_S):
        await asyncio.gather(first, *waits)
    print(json.dumps({"noticed_s": time.monotonic() - began}), file=figures)


async def _event(trigger: Any) -> Any:
    return [event.payload async for event in trigger.run()]


@contextlib.asynccontextmanager
async def _repeating(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()


async def _tick(late: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(_TICK_S)
        late.append(time.perf_counter() - began - _TICK_S)


async def _use_thread(took: list[float]) -> None:
    """Do what any other trigger may: a short thing that blocks, off the loop."""
    while True:
        began = time.perf_counter()
        await asyncio.to_thread(time.sleep, 0)
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.25)


def _rss_kb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


if __name__ == "__main__":
    main()
