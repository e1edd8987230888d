"""What a job costs as it grows: many shards beside one, and a resume from the ledger with nothing to do.

    python -m benchmarks.jobs WORK ARGUMENTS

measures one of them in this process, for :func:`grow`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.jobs.directory import open_directory
from airflow_provider_openai_batches.jobs.engine import Finished, Waiting, advance
from airflow_provider_openai_batches.jobs.job import Job
from airflow_provider_openai_batches.jobs.ledger import Owner
from airflow_provider_openai_batches.jobs.opening import Replan, open_ledger
from airflow_provider_openai_batches.jobs.plan import JobSettings
from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
from airflow_provider_openai_batches.jobs.results import Rules
from airflow_provider_openai_batches.jobs.shards import ShardLimits
from benchmarks.contenders import ENDPOINT, MODEL, prompts
from benchmarks.measuring import Table, emulator, in_own_process, metered, pass_time

SMALL_BYTES = 40
ROWS_PER_SHARD = 50_000
MOST_RATIO = 1.10
MOST_RESUME_S = 1.0


def grow(shards: int) -> tuple[list[Table], list[str]]:
    """Measure jobs of growing size, and resumes of one of a hundred small shards.

    :param shards: of the largest job
    :return: the tables, and which limits are passed
    """
    size = Table(
        f"Jobs of small requests, {ROWS_PER_SHARD:,} to a shard",
        ["requests", "shards", "CPU s", "CPU µs a request", "peak MB"],
    )
    peaks = {}
    for rows in (1_000, 10_000, ROWS_PER_SHARD, shards * ROWS_PER_SHARD):
        used = _measured("job", rows=rows, per_batch=ROWS_PER_SHARD)
        peaks[rows] = used["peak_mb"]
        number = -(-rows // ROWS_PER_SHARD)
        each = f"{used['cpu_s'] / rows * 1e6:.0f}"
        size.add(f"{rows:,}", f"{number}", f"{used['cpu_s']:.2f}", each, f"{used['peak_mb']:.1f}")
    ratio = peaks[shards * ROWS_PER_SHARD] / peaks[ROWS_PER_SHARD]

    times = _measured("resume", shards=100)
    resume = Table("A resume of 100 shards with nothing to do", ["", "wall s"])
    for what, seconds in times.items():
        resume.add(what, f"{seconds:.3f}")

    failed = []
    if ratio > MOST_RATIO:
        failed.append(f"{shards} shards need more than {MOST_RATIO} times the memory of one")
    if max(times.values()) > MOST_RESUME_S:
        failed.append(f"a resume takes more than {MOST_RESUME_S:.0f} s")
    return [size, resume], failed


def work_job(base_url: str, rows: int, per_batch: int) -> dict[str, Any]:
    """Run a job as a task does, after a small one that imports all there is."""
    _run(base_url, 1, 1)
    with metered() as used:
        _run(base_url, rows, per_batch)
    return used


def _run(base_url: str, rows: int, per_batch: int) -> None:
    def opened(place: Path) -> Job:
        return open_job(base_url, place, lambda: prompts(rows, SMALL_BYTES), per_batch)

    with tempfile.TemporaryDirectory() as place:
        assert isinstance(advance(opened(Path(place))), Waiting)
        pass_time(base_url)
        outcome = advance(opened(Path(place)))
    assert isinstance(outcome, Finished)
    assert outcome.manifest["succeeded"] == rows


def work_resume(base_url: str, shards: int) -> dict[str, Any]:
    """Time resumes of a job that waits, and of one that is finished."""
    times = {}
    with tempfile.TemporaryDirectory() as place:

        def resumed() -> Job:
            return open_job(base_url, Path(place), lambda: prompts(shards * 10, SMALL_BYTES), per_batch=10)

        advance(resumed())
        times["all batches going on"] = _timed(lambda: advance(resumed()))
        pass_time(base_url)
        advance(resumed())
        times["finished"] = _timed(lambda: advance(resumed()))
    return times


WORK: dict[str, Callable[..., dict[str, Any]]] = {"job": work_job, "resume": work_resume}


def open_job(
    base_url: str, place: Path, rows: Callable[[], Iterable[str]], per_batch: int, **settings_of_job: Any
) -> Job:
    """Open a job as an attempt does, to begin it or to go on.

    :param place: its directory
    :param rows: its prompts
    :param settings_of_job: further settings
    """
    template = RequestTemplate(model=MODEL, endpoint=ENDPOINT)
    directory = open_directory(place)
    settings = ClientSettings(api_key="any-key", base_url=base_url)
    return Job(
        directory=directory,
        ledger=open_ledger(
            directory,
            Owner("bench", "bench", "bench"),
            attempt="1",
            max_tries=0,
            endpoint=ENDPOINT,
            resuming=(place / "_job").exists(),
            began_at=None,
            replan=Replan.WHEN_FINISHED,
        ),
        settings=JobSettings(
            template=template,
            limits=ShardLimits(max_requests=per_batch),
            rules=Rules(endpoint=ENDPOINT),
            **settings_of_job,
        ),
        client=BatchClient(settings),
        creator=BatchClient(settings, attempts=1),
        read_requests=lambda: read_requests(rows(), template),
    )


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _measured(work: str, **given: Any) -> dict[str, Any]:
    with emulator() as base_url:
        arguments = json.dumps({"base_url": base_url, **given})
        used: dict[str, Any] = in_own_process(sys.executable, "benchmarks.jobs", work, arguments)
        return used


if __name__ == "__main__":
    print(json.dumps(WORK[sys.argv[1]](**json.loads(sys.argv[2]))))
