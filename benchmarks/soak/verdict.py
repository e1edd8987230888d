"""Whether a soak went well: what the service has left and has sold, and what the process holds. And docs/soak.md."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
from collections import Counter
from dataclasses import astuple, fields
from pathlib import Path

from benchmarks.measuring import Table
from benchmarks.soak.record import Sample, Tally
from benchmarks.soak.service import SPEED, Service
from benchmarks.soak.work import FAULTS, SAMPLED_EVERY_S, THREADS, WAITING

MOST_RSS, MOST_RSS_MB = 1.05, 8.0
MOST_OTHERS, MOST_MORE = 1.10, 2 * THREADS


def settle(service: Service, tally: Tally) -> dict[str, int]:
    """Compare what the service has, and what it sold, with what the jobs know."""
    with service.client() as client:
        batches = list(client.list_batches())
        files = {file.id: file.filename for file in client.list_files()}
    of_jobs = [batch for batch in batches if "airflow_job" in batch.metadata]
    waited = {one for batch in batches if batch not in of_jobs for one in (batch.output_file_id, batch.error_file_id)}
    left = [name for file_id, name in files.items() if file_id not in waited and name != "waiting.jsonl"]
    open_batches = [batch.id for batch in of_jobs if not batch.is_terminal]
    told = service.sold()
    bought = {run_id: Counter(rows) for run_id, rows in told["bought"].items()}
    twice = sum(count - 1 for rows in bought.values() for count in rows.values())
    unbought = sum(rows - len(bought.get(run_id, ())) for run_id, rows in tally.finished.items())
    for what, count in (
        ("rows bought twice", twice),
        ("rows that were answered without being bought", unbought),
        ("files of finished jobs left at the service", len(left)),
        ("batches of jobs that go on", len(open_batches)),
    ):
        if count:
            tally.wrong.append(f"{count} {what}")
    return {
        "jobs": len(tally.finished),
        "jobs that needed their retry": tally.retried,
        "rows": sum(tally.finished.values()),
        "batches of jobs": len(of_jobs),
        "waiting triggers that fired": tally.fired,
        "rows bought twice": twice,
        "files left by finished jobs": len(left),
        "uploads whose connection was cut": told["cut_uploads"],
        "batches of jobs left open": len(open_batches),
    }


def judge(samples: list[Sample], before: Sample, after: Sample, tally: Tally) -> Table:
    """Compare the second quarter with the last one, and the end with the beginning."""
    quarter = max(len(samples) // 4, 1)
    table = Table("What the process holds", ["", "before", "2nd quarter", "last quarter", "most", "at the end"])
    for field, start, end in zip(fields(Sample), astuple(before), astuple(after), strict=True):
        name = field.name
        values = [getattr(each, name) for each in samples]
        second, last = statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])
        if name == "rss_mb":
            limit = max(second * MOST_RSS, second + MOST_RSS_MB)
        else:
            limit = max(second * MOST_OTHERS, second + MOST_MORE)
            if end > start:
                tally.wrong.append(f"{end - start} {name} more at the end than before")
        if last > limit:
            tally.wrong.append(f"{name} grew: median {second:.0f} in the second quarter, {last:.0f} in the last")
        table.add(name.replace("_mb", ", MB"), *(f"{value:.0f}" for value in (start, second, last, max(values), end)))
    return table


def page(seed: int, minutes: float, load: float, held: Table, came: dict[str, int], wrong: list[str]) -> str:
    """Return docs/soak.md."""
    figures = Table("What came of it", ["", "count"])
    for what, count in came.items():
        figures.add(what, f"{count:,}")
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = f"{os.cpu_count()} cores ({found[1] if found else platform.machine()}), {platform.system()}"
    verdict = "Nothing grew, leaked, got lost or was bought twice." if not wrong else "**Failed**: " + "; ".join(wrong)
    return f"""# Soak

Written by `make soak` (`python -m benchmarks.soak --minutes {minutes:g} --seed {seed}`) on
{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}: {machine}, Python {platform.python_version()};
other work gave it a load of {load:.1f} at the start. It ran for {minutes:g} minutes.

{verdict}

{THREADS} threads run jobs of `OpenAIBatchOperator`, one after the other, each with up to two random faults of
{len(FAULTS)}, with `delete_remote_files=True`. Their triggers run in one event loop beside {WAITING} more that wait for
batches of their own. The service is an emulator in another process, {SPEED} times as fast as time. The seed decides
what jobs and faults there are; which call a fault meets, the threads do.

{held}
Sampled every {SAMPLED_EVERY_S:.0f} s, after a garbage collection: an operator that has ended is in reference cycles,
which hold its connections until Python collects them. Quarters are medians. The second quarter is the measure because
in the first one caches, pools and the allocator fill up. In the last quarter, memory may be {MOST_RSS - 1:.0%} or
{MOST_RSS_MB:.0f} MB above it, whichever is more: what the allocator keeps depends on which jobs met. Files, sockets,
threads and tasks go up and down with the jobs under way at the moment of a sample, so that {MOST_OTHERS - 1:.0%}, or
{MOST_MORE}, is no growth: each of the {THREADS} jobs has a client for calls and one for creates. At the end, when all
has ended, there may be no file, socket, thread or task more than before the first sample.

{figures}
Rows are counted at the service: each row of each job was answered, and so billed, exactly once. No file of a finished
job may be left, which is what `delete_remote_files` says: a job whose upload was cut, perhaps after the service had
taken the file, looks for that file by its name.
"""
