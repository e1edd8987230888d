"""Jobs and waiting triggers in one process for an hour: nothing may grow, leak, get lost or be bought twice.

    python -m benchmarks.soak --minutes 60      # or make soak; writes docs/soak.md

Jobs run in a few threads, as tasks do, and their triggers in one event loop beside many that just wait. The service is
an emulator in another process; random faults meet whoever calls next. Ends with 1 if something grew or went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import gc
import io
import itertools
import json
import logging
import os
import platform
import random
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import requests

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.testing import faults
from benchmarks.contenders import ENDPOINT, MODEL
from benchmarks.faults.task import TaskInstance
from benchmarks.measuring import Table, add_fault

DOCS = Path(__file__).parents[1] / "docs/soak.md"
KEY = "sk-benchmark-0123456789"
SPEED = 60
"""Virtual seconds of the service per second: a batch takes two seconds."""

THREADS, WAITING = 4, 100
WAITS_FOR_HOURS = 1.0
"""Virtual ones: each waiting trigger gets a new batch once a minute."""

SAMPLED_EVERY_S = 10.0
MOST_RSS, MOST_RSS_MB = 1.05, 8.0
MOST_OTHERS, MOST_MORE = 1.10, 2 * THREADS

FAULTS = (
    faults.rate_limited(0.2),
    faults.server_error(503),
    faults.server_error(502, html=True, times=2),
    faults.lost_call(),
    faults.lost_response(),
    faults.slow(1.0),
    faults.lost_create_response(),
    faults.rate_limited(0.2, on=faults.CREATE),
    faults.batch_not_found(times=2),
    faults.truncated_download(300),
    faults.failed_download(),
    faults.batch_expires(0.5, batch={"metadata": {"airflow_dag_id": "dag"}}),
    faults.input_file_not_found(batch={"metadata": {"airflow_dag_id": "dag"}}),
    faults.all_requests_fail(batch={"metadata": {"airflow_dag_id": "dag"}}),
    faults.row_fails("row-1", 500),
    faults.row_fails("row-2", 429),
    faults.row_times_out("row-3"),
)
"""None of them makes a paid answer unusable, so that each row of each job has to be bought just once."""


@dataclass(frozen=True)
class Sample:
    """What this process holds at one moment."""

    rss_mb: float
    files: int
    sockets: int
    threads: int
    tasks: int


@dataclass
class Tally:
    """What came of the jobs.

    :param finished: rows of each finished job, by run id
    :param retried: jobs that needed their retry
    :param fired: waiting triggers that had their event
    :param wrong: what should not have been
    """

    finished: dict[str, int]
    retried: int
    fired: int
    wrong: list[str]


class Triggerer:
    """An event loop in a thread, in which triggers run."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="triggerer")
        self._thread.start()

    def first_event(self, trigger: Any) -> Any:
        """Wait for a trigger's first event, as a deferred task does."""
        _, arguments = trigger.serialize()
        return asyncio.run_coroutine_threadsafe(_first_event(type(trigger)(**arguments)), self.loop).result()

    def tasks(self) -> int:
        """Number of asyncio tasks."""
        return len(asyncio.all_tasks(self.loop))

    def stop(self) -> None:
        """End the loop, which by then has nothing left to do."""
        asyncio.run_coroutine_threadsafe(self.loop.shutdown_default_executor(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _first_event(trigger: Any) -> Any:
    async with contextlib.aclosing(trigger.run()) as events:
        return (await anext(events)).payload


def sample(triggerer: Triggerer | None) -> Sample:
    """Look at this process, without what is garbage: operators end in cycles, which hold a client until collected."""
    gc.collect()
    held = list[str]()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # The directory itself was one of them.
            held.append(os.readlink(entry))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Sample(
        rss_mb=resident / 1e6,
        files=len(held),
        sockets=sum(name.startswith("socket:") for name in held),
        threads=len(list(Path("/proc/self/task").iterdir())),
        tasks=0 if triggerer is None else triggerer.tasks(),
    )


# --- the work ------------------------------------------------------------------------------------------------------


def run_job(base_url: str, triggerer: Triggerer, number: int, seed: int, tally: Tally) -> None:
    """Run one job that meets a fault or two, and check its results."""
    from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
    from airflow_provider_openai_batches.results import read_results

    chance = random.Random(f"{seed}-{number}")
    rows = chance.randint(1, 40)
    for _ in range(chance.choice((0, 1, 1, 2))):
        add_fault(base_url, chance.choice(FAULTS))
    run_id = f"run-{number}"
    with tempfile.TemporaryDirectory(prefix="soak-") as place:

        def operator() -> Any:
            return OpenAIBatchOperator(
                task_id="label",
                requests=lambda: (f"say {run_id} {row}" for row in range(rows)),
                output_path=place,
                model=MODEL,
                conn_id="soak",
                poll_interval=1,
                max_requests_per_batch=chance.choice((10, 50)),
                # One row can meet the faults of many jobs, each of which takes an attempt.
                max_attempts=20,
                delete_remote_files=True,
            )

        task = TaskInstance(operator, triggerer.first_event, lambda: None, time.time(), run_id)
        if not task.run():
            tally.wrong.append(f"job {number} failed: {task.messages[-1]}")
            return
        results = list(read_results(task.value))
    answered = (row["index"] for row in results if row["status"] == "succeeded")
    good = [index for index in answered if f"say {run_id} {index}" in results[index]["output"]]
    if good != list(range(rows)):
        tally.wrong.append(f"job {number}: {len(good)} of {rows} rows have their own answer")
    tally.finished[run_id] = rows
    tally.retried += bool(task.messages)


async def keep_waiting(base_url: str, file_id: str, tally: Tally) -> None:
    """Wait for one batch after the other."""
    from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger

    def create() -> str:
        with _client(base_url) as client:
            return client.create_batch(file_id, ENDPOINT, metadata={"kind": "waiting"}).id

    while True:
        batch_id = await asyncio.to_thread(create)
        event = await _first_event(OpenAIBatchTrigger(conn_id="soak", batch_ids=[batch_id], poll_interval=5))
        if event["status"] != "reached":
            tally.wrong.append(f"a waiting trigger ended with {event['status']}: {event['message']}")
        tally.fired += 1


def _client(base_url: str) -> BatchClient:
    return BatchClient(ClientSettings(api_key=KEY, base_url=base_url), attempts=8)


def soak(base_url: str, minutes: float, seed: int) -> tuple[Tally, list[Sample], Sample, Sample]:
    """Run jobs and triggers.

    :return: what came of it, the samples taken meanwhile, and what this process held before and after
    """
    tally, samples, numbers = Tally({}, 0, 0, []), list[Sample](), itertools.count()
    first = Triggerer()
    run_job(base_url, first, next(numbers), seed, tally)  # What is imported and made once is not growth.
    first.stop()
    before = sample(None)

    with _client(base_url) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "wait"}]}
        line = {"custom_id": "row-0", "method": "POST", "url": ENDPOINT, "body": body}
        content = json.dumps(line).encode() + b"\n"
        file_id = client.upload_file(lambda: io.BytesIO(content), filename="waiting.jsonl").id
    stuck = faults.batch_stuck(hours=WAITS_FOR_HOURS, batch={"metadata": {"kind": "waiting"}}, times=None)
    add_fault(base_url, stuck)
    triggerer, until = Triggerer(), time.monotonic() + minutes * 60

    def worker() -> None:
        while time.monotonic() < until:
            run_job(base_url, triggerer, next(numbers), seed, tally)

    waits = [
        asyncio.run_coroutine_threadsafe(keep_waiting(base_url, file_id, tally), triggerer.loop) for _ in range(WAITING)
    ]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="worker") as workers:
        jobs = [workers.submit(worker) for _ in range(THREADS)]
        while time.monotonic() < until:
            time.sleep(min(SAMPLED_EVERY_S, max(until - time.monotonic(), 0)))
            samples.append(sample(triggerer))
    for ended in jobs:
        ended.result()
    for wait in waits:
        if wait.done():
            tally.wrong.append(f"a waiting trigger broke: {wait.exception()}")
        wait.cancel()
    for _ in range(100):
        if not triggerer.tasks():
            break
        time.sleep(0.1)
    else:
        tally.wrong.append(f"{triggerer.tasks()} asyncio tasks are left")
    triggerer.stop()
    return tally, samples, before, sample(None)


# --- what is left --------------------------------------------------------------------------------------------------


def settle(base_url: str, service: subprocess.Popen[str], tally: Tally) -> dict[str, int]:
    """Compare what the service has, and what it sold, with what the jobs know."""
    with _client(base_url) as client:
        batches = list(client.list_batches())
        files = {file.id: file.filename for file in client.list_files()}
    of_jobs = [batch for batch in batches if "airflow_job" in batch.metadata]
    waited = {one for batch in batches if batch not in of_jobs for one in (batch.output_file_id, batch.error_file_id)}
    left = [name for file_id, name in files.items() if file_id not in waited and name != "waiting.jsonl"]
    open_batches = [batch.id for batch in of_jobs if not batch.is_terminal]
    assert service.stdin is not None
    assert service.stdout is not None
    service.stdin.write("bought\n")
    service.stdin.flush()
    told = json.loads(service.stdout.readline())
    bought = {run_id: Counter(rows) for run_id, rows in told["bought"].items()}
    # Nobody knows of the file of an upload that was answered to nobody: the job has uploaded it once more.
    unaccounted = max(len(left) - told["cut_uploads"], 0)
    twice = sum(count - 1 for rows in bought.values() for count in rows.values())
    unbought = sum(rows - len(bought.get(run_id, ())) for run_id, rows in tally.finished.items())
    for what, count in (
        ("rows bought twice", twice),
        ("rows that were answered without being bought", unbought),
        ("files of finished jobs left at the service", unaccounted),
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
    hour = "" if minutes >= 60 else " The hour that `make soak` takes was not run for this page."
    verdict = "Nothing grew, leaked, got lost or was bought twice." if not wrong else "**Failed**: " + "; ".join(wrong)
    return f"""# Soak

Written by `make soak` (`python -m benchmarks.soak --minutes {minutes:g} --seed {seed}`) on
{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}: {machine}, Python {platform.python_version()};
other work gave it a load of {load:.1f} at the start. It ran for {minutes:g} minutes.{hour}

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
Rows are counted at the service: each row of each job was answered, and so billed, exactly once. `delete_remote_files`
deletes every file that a job knows of. Of an upload whose connection is reset after the service has taken it, the job
knows nothing, and uploads its file again: the first copy stays until it expires after 30 days, or until
`openai-batches clean-files`. More files than cut uploads fail this command.
"""


# --- the service ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the emulator in a process of its own; give its base URL, and the process that tells what it sold."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.soak", "--serve"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.terminate()
        process.communicate()


def serve() -> None:
    """Be that process: it prints its URL, and for each line it reads what was bought, and which uploads failed."""
    from airflow_provider_openai_batches.emulator import Emulator

    with Emulator(speed=SPEED, keep_requests=True) as emulator:
        print(emulator.base_url, flush=True)
        for _ in sys.stdin:
            bought: dict[str, list[str]] = {}
            for request in emulator.requests():
                if request.billed and "airflow_run_id" in request.metadata:
                    bought.setdefault(request.metadata["airflow_run_id"], []).append(request.custom_id)
            cut = sum(call.route == "/v1/files" and not call.status for call in emulator.calls if call.method == "POST")
            print(json.dumps({"bought": bought, "cut_uploads": cut}), flush=True)


def main() -> int:
    """Soak, and write down what it took.

    :return: exit code
    """
    options = argparse.ArgumentParser(prog="make soak", description=__doc__.partition("\n")[0])
    options.add_argument("--minutes", type=float, default=60.0, help="default: %(default)g")
    options.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: a random one, printed")
    options.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.serve:
        serve()
        return 0
    print(f"seed {given.seed}", file=sys.stderr)
    load = os.getloadavg()[0]
    # Airflow logs to standard output, which is for the table.
    tables = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    with serving() as (base_url, service), tempfile.TemporaryDirectory() as home:
        connection = {"conn_type": "openai_batches", "host": base_url, "password": KEY}
        os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW_CONN_SOAK": json.dumps(connection)}
        tally, samples, before, after = soak(base_url, given.minutes, given.seed)
        requests.delete(base_url.removesuffix("/v1") + "/emulator/faults", timeout=60)
        came = settle(base_url, service, tally)
    held = judge(samples, before, after, tally)
    text = page(given.seed, given.minutes, load, held, came, tally.wrong)
    print(text, file=tables)
    DOCS.write_text(text, encoding="utf-8")
    return int(bool(tally.wrong))


if __name__ == "__main__":
    sys.exit(main())
