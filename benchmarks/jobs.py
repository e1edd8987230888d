"""What a job costs as it grows: twenty shards beside one, and a resume from the ledger with nothing to do.

    python -m benchmarks.jobs WORK ARGUMENTS

measures one of them in this process, for :func:`grow`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.jobs.directory import open_directory
from airflow_provider_openai_batches.jobs.engine import Finished, Job, Waiting, advance
from airflow_provider_openai_batches.jobs.ledger import Owner
from airflow_provider_openai_batches.jobs.opening import Replan, open_ledger
from airflow_provider_openai_batches.jobs.plan import JobSettings
from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
from airflow_provider_openai_batches.jobs.results import Rules
from airflow_provider_openai_batches.jobs.shards import ShardLimits
from benchmarks.contenders import ENDPOINT, MODEL, prompts
from benchmarks.measuring import Table, emulator, in_own_process, metered, pass_time

SMALL_BYTES = 40
MANY_SHARDS = 20
MOST_RATIO = 1.10
MOST_RESUME_S = 1.0


def grow(rows: int) -> tuple[list[Table], list[str]]:
    """Measure a job of one shard, one of twenty such shards, and resumes of one of a hundred.

    :param rows: small requests of the larger job
    :return: the tables, and which limits are passed
    """
    per_batch = rows // MANY_SHARDS
    one = _measured("job", rows=per_batch, per_batch=per_batch)
    many = _measured("job", rows=rows, per_batch=per_batch)
    ratio = many["peak_mb"] / one["peak_mb"]
    size = Table(
        f"Shards of {per_batch:,} small requests", ["", "requests", "CPU s", "CPU µs a request", "peak MB", "ratio"]
    )
    for shards, used, share in ((1, one, ""), (MANY_SHARDS, many, f"{ratio:.2f}")):
        count = shards * per_batch
        each = f"{used['cpu_s'] / count * 1e6:.0f}"
        size.add(
            f"{shards} shard{'s' * (shards > 1)}",
            f"{count:,}",
            f"{used['cpu_s']:.2f}",
            each,
            f"{used['peak_mb']:.1f}",
            share,
        )

    times = _measured("resume", shards=100)
    resume = Table("A resume of 100 shards with nothing to do", ["", "wall s"])
    for what, seconds in times.items():
        resume.add(what, f"{seconds:.3f}")

    failed = []
    if ratio > MOST_RATIO:
        failed.append(f"{MANY_SHARDS} shards need more than {MOST_RATIO} times the memory of one")
    if max(times.values()) > MOST_RESUME_S:
        failed.append(f"a resume takes more than {MOST_RESUME_S:.0f} s")
    return [size, resume], failed


def work_job(base_url: str, rows: int, per_batch: int) -> dict[str, Any]:
    """Run a job as a task does."""
    with tempfile.TemporaryDirectory() as place, metered() as used:
        assert isinstance(advance(_open(base_url, Path(place), rows, per_batch)), Waiting)
        pass_time(base_url)
        outcome = advance(_open(base_url, Path(place), rows, per_batch))
        assert isinstance(outcome, Finished)
        assert outcome.manifest["succeeded"] == rows
    return used


def work_resume(base_url: str, shards: int) -> dict[str, Any]:
    """Time resumes of a job that waits, and of one that is finished."""
    times = {}
    with tempfile.TemporaryDirectory() as place:

        def resumed() -> Job:
            return _open(base_url, Path(place), rows=shards * 10, per_batch=10)

        advance(resumed())
        times["all batches going on"] = _timed(lambda: advance(resumed()))
        pass_time(base_url)
        advance(resumed())
        times["finished"] = _timed(lambda: advance(resumed()))
    return times


WORK: dict[str, Callable[..., dict[str, Any]]] = {"job": work_job, "resume": work_resume}


def _open(base_url: str, place: Path, rows: int, per_batch: int) -> Job:
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
            template=template, limits=ShardLimits(max_requests=per_batch), rules=Rules(endpoint=ENDPOINT)
        ),
        client=BatchClient(settings),
        creator=BatchClient(settings, attempts=1),
        read_requests=lambda: read_requests(prompts(rows, SMALL_BYTES), template),
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
