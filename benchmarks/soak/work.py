"""What a soak does: jobs in a few threads, as tasks are, and triggers in one event loop, beside many that just wait."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow_provider_openai_batches.testing import faults
from benchmarks.contenders import ENDPOINT, MODEL
from benchmarks.faults.task import TaskInstance
from benchmarks.measuring import add_fault
from benchmarks.soak.record import Sample, Tally, sample
from benchmarks.soak.service import Service

THREADS, WAITING = 4, 100
WAITS_FOR_HOURS = 1.0
"""Virtual ones: each waiting trigger gets a new batch once a minute."""

SAMPLED_EVERY_S = 10.0

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


def run_job(service: Service, triggerer: Triggerer, number: int, seed: int, tally: Tally) -> None:
    """Run one job that meets a fault or two, and check its results."""
    from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
    from airflow_provider_openai_batches.results import read_results

    chance = random.Random(f"{seed}-{number}")
    rows = chance.randint(1, 40)
    for _ in range(chance.choice((0, 1, 1, 2))):
        add_fault(service.base_url, chance.choice(FAULTS))
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


async def keep_waiting(service: Service, file_id: str, tally: Tally) -> None:
    """Wait for one batch after the other."""
    from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger

    def create() -> str:
        with service.client() as client:
            return client.create_batch(file_id, ENDPOINT, metadata={"kind": "waiting"}).id

    while True:
        batch_id = await asyncio.to_thread(create)
        event = await _first_event(OpenAIBatchTrigger(conn_id="soak", batch_ids=[batch_id], poll_interval=5))
        if event["status"] != "reached":
            tally.wrong.append(f"a waiting trigger ended with {event['status']}: {event['message']}")
        tally.fired += 1


def soak(service: Service, minutes: float, seed: int) -> tuple[Tally, list[Sample], Sample, Sample]:
    """Run jobs and triggers.

    :return: what came of it, the samples taken meanwhile, and what this process held before and after
    """
    tally, samples, numbers = Tally({}, 0, 0, []), list[Sample](), itertools.count()
    first = Triggerer()
    run_job(service, first, next(numbers), seed, tally)  # What is imported and made once is not growth.
    first.stop()
    before = sample()

    with service.client() as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "wait"}]}
        line = {"custom_id": "row-0", "method": "POST", "url": ENDPOINT, "body": body}
        content = json.dumps(line).encode() + b"\n"
        file_id = client.upload_file(lambda: io.BytesIO(content), filename="waiting.jsonl").id
    stuck = faults.batch_stuck(hours=WAITS_FOR_HOURS, batch={"metadata": {"kind": "waiting"}}, times=None)
    add_fault(service.base_url, stuck)
    triggerer, until = Triggerer(), time.monotonic() + minutes * 60

    def worker() -> None:
        while time.monotonic() < until:
            run_job(service, triggerer, next(numbers), seed, tally)

    waits = [
        asyncio.run_coroutine_threadsafe(keep_waiting(service, file_id, tally), triggerer.loop) for _ in range(WAITING)
    ]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="worker") as workers:
        jobs = [workers.submit(worker) for _ in range(THREADS)]
        while time.monotonic() < until:
            time.sleep(min(SAMPLED_EVERY_S, max(until - time.monotonic(), 0)))
            samples.append(sample(triggerer.tasks()))
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
    return tally, samples, before, sample()
