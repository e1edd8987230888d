"""What it costs not to buy: jobs with duplicates, and jobs that fill an answer cache or find answers there.

    python -m benchmarks.answer_cache [--rows ROWS]
    python -m benchmarks.answer_cache work ARGUMENTS

prints a table; the second form measures one of them in this process, for the first. CPU is of the job's process alone,
peak its memory above what it was before, when all was imported and a job of one row was done.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from airflow_provider_openai_batches.jobs.answer_cache import AnswerCache
from airflow_provider_openai_batches.jobs.engine import Finished, Waiting, advance
from airflow_provider_openai_batches.jobs.job import Job
from benchmarks.contenders import prompts
from benchmarks.jobs import ROWS_PER_SHARD, SMALL_BYTES, open_job
from benchmarks.measuring import Table, emulator, in_own_process, metered, pass_time

TITLES = {
    "plain": "neither",
    "twice": "`deduplicate`, each row twice",
    "once": "`deduplicate`, no row twice",
    "fill": "`answer_cache`, which is empty",
    "find": "`answer_cache`, which knows all rows",
    "find half": "`answer_cache`, which knows every other row",
}


def measure(rows: int) -> Table:
    """Measure a job of each kind.

    :param rows: of each
    """
    table = Table(f"{rows:,} rows", ["job with", "bought", "CPU s", "CPU µs a row", "peak MB", "files in the cache"])
    with emulator() as base_url, tempfile.TemporaryDirectory() as full, tempfile.TemporaryDirectory() as half:

        def measured(kind: str) -> dict[str, Any]:
            place = half if "half" in kind else full
            given = {"kind": kind, "base_url": base_url, "rows": rows, "place": place}
            used: dict[str, Any] = in_own_process(sys.executable, "benchmarks.answer_cache", "work", json.dumps(given))
            return used

        for kind, title in TITLES.items():
            if kind == "find half":
                measured("fill half")
            used = measured(kind)
            each = f"{used['cpu_s'] / rows * 1e6:.0f}"
            figures = (f"{used['bought']:,}", f"{used['cpu_s']:.1f}", each, f"{used['peak_mb']:.1f}")
            table.add(title, *figures, f"{used['files']:,}")
    return table


def work(kind: str, base_url: str, rows: int, place: str) -> dict[str, Any]:
    """Measure one job, after a small one that imports all there is.

    :param place: of the cache, which stays there for the next one
    """
    cache = AnswerCache.at(Path(place), 86_400.0) if "fi" in kind else None
    step = 2 if kind == "fill half" else 1
    _run(base_url, lambda: prompts(1, SMALL_BYTES), None)
    with metered() as used:
        bought = _run(
            base_url,
            lambda: _twice(rows) if kind == "twice" else _some(rows, step),
            cache,
            deduplicate=kind in ("once", "twice"),
        )
    return {**used, "bought": bought, "files": len(list(Path(place).glob("v1/*/*")))}


def _some(rows: int, step: int) -> Iterator[str]:
    return (prompt for number, prompt in enumerate(prompts(rows, SMALL_BYTES)) if number % step == 0)


def _twice(rows: int) -> Iterator[str]:
    for _ in range(2):
        yield from prompts(rows // 2, SMALL_BYTES)


def _run(base_url: str, rows: Callable[[], Iterator[str]], cache: AnswerCache | None, **settings: Any) -> int:
    """Run a job as a task does; return how many rows were bought."""
    with tempfile.TemporaryDirectory() as place:

        def opened() -> Job:
            return open_job(base_url, Path(place), rows, ROWS_PER_SHARD, answer_cache=cache, **settings)

        outcome = advance(opened())
        if isinstance(outcome, Waiting):
            pass_time(base_url)
            outcome = advance(opened())
    assert isinstance(outcome, Finished)
    manifest = outcome.manifest
    assert manifest["succeeded"] == manifest["requests"]
    bought: int = manifest["requests"] - sum(manifest["reused"][name] for name in ("kept", "cache", "duplicates"))
    return bought


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        print(json.dumps(work(**json.loads(sys.argv[2]))))
    else:
        options = argparse.ArgumentParser(prog="python -m benchmarks.answer_cache", description=__doc__)
        options.add_argument("--rows", type=int, default=200_000, help="of each job (%(default)s)")
        print(measure(options.parse_args().rows))
