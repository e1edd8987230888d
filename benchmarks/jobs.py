"""What a job costs its worker, beside a bare script that does the same. ``python benchmarks/jobs.py [--small-rows N]``.

Every figure comes from a process of its own, with the emulator in another: CPU seconds and peak memory count from
after the imports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import requests
from requests_toolbelt import MultipartEncoder

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

MODEL = "gpt-4o-mini"
ENDPOINT = "/v1/chat/completions"
LONG_BYTES, SMALL_BYTES = 3_300, 40
"""Prompt sizes: the first makes requests of 3.5 KB."""

_BATCH_S = 3_600
MOST_RATIO = 1.10
MOST_RESUME_S = 1.0


def main() -> int:
    """Print the table.

    :return: exit code: 1 if a figure is over its limit
    """
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=50_000, help="requests of 3.5 KB")
    options.add_argument("--small-rows", type=int, default=1_000_000, help="small requests, in 20 shards")
    options.add_argument("--work", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.work:
        print(json.dumps(WORK[given.work.partition(":")[0]](**json.loads(given.work.partition(":")[2]))))
        return 0

    floor = _measured("floor", rows=given.rows, size=LONG_BYTES)
    ours = _measured("job", rows=given.rows, size=LONG_BYTES, per_batch=50_000)
    _heading(f"{given.rows:,} requests of 3.5 KB, generator to ordered results")
    _row("bare msgspec and requests", floor)
    _row("a job", ours)
    for step, seconds in ours["steps"].items():
        print(f"    {step:<46} {seconds:9.2f} s")

    shards = 20
    per_batch = given.small_rows // shards
    one = _measured("job", rows=per_batch, size=SMALL_BYTES, per_batch=per_batch)
    many = _measured("job", rows=given.small_rows, size=SMALL_BYTES, per_batch=per_batch)
    ratio = many["peak_mb"] / one["peak_mb"]
    _heading(f"{per_batch:,} small requests a shard")
    _row("1 shard", one)
    _row(f"{shards} shards", many)
    print(f"  peak, {shards} shards to 1 {ratio:42.2f} (limit {MOST_RATIO})")

    resume = _measured("resume", shards=100)
    print(f"{'resume of 100 shards, nothing to do':<50} {'wall':>9}   (limit {MOST_RESUME_S:.0f} s)")
    for what, seconds in resume.items():
        print(f"  {what:<48} {seconds:9.3f} s")
    return int(ratio > MOST_RATIO or max(resume.values()) > MOST_RESUME_S)


def _heading(text: str) -> None:
    print(f"{text:<58} {'CPU':>3} {'peak above imports':>20}")


def _row(what: str, used: dict[str, Any]) -> None:
    print(f"  {what:<48} {used['cpu_s']:9.2f} s {used['peak_mb']:9.1f} MB")


# --- one process per figure ----------------------------------------------------------------------------------------


def work_floor(base_url: str, rows: int, size: int) -> dict[str, Any]:
    """Do by hand, in one go and without a safety net, what a job does."""
    with tempfile.TemporaryDirectory() as place, _meter() as meter, requests.Session() as http:
        source, output, results = (Path(place, name) for name in ("source", "output", "results"))
        encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(_AnswerId).decode
        with source.open("wb") as lines:
            for index, prompt in enumerate(_prompts(rows, size)):
                messages = [{"role": "user", "content": prompt}]
                body = {"model": MODEL, "messages": messages}
                line = {"custom_id": f"row-{index}", "method": "POST", "url": ENDPOINT, "body": body}
                lines.write(encode(line) + b"\n")
        with source.open("rb") as content:
            parts = MultipartEncoder({"purpose": "batch", "file": ("source.jsonl", content, "application/jsonl")})
            headers = {"Content-Type": parts.content_type}
            file = http.post(f"{base_url}/files", data=parts, headers=headers, timeout=600).json()
        body = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        batch = http.post(f"{base_url}/batches", json=body, timeout=60).json()
        _pass_time(base_url)
        batch = http.get(f"{base_url}/batches/{batch['id']}", timeout=60).json()
        content_url = f"{base_url}/files/{batch['output_file_id']}/content"
        with http.get(content_url, stream=True, timeout=600) as answer, output.open("wb") as sink:
            for chunk in answer.iter_content(1 << 20):
                sink.write(chunk)
        offsets, lengths, at = [0] * rows, [0] * rows, 0
        with output.open("rb") as lines:
            for line in lines:
                index = int(decode(line).custom_id[4:])
                offsets[index], lengths[index] = at, len(line)
                at += len(line)
        with output.open("rb") as lines, results.open("wb") as sink:
            for index in range(rows):
                lines.seek(offsets[index])
                sink.write(lines.read(lengths[index]))
    return meter


def work_job(base_url: str, rows: int, size: int, per_batch: int) -> dict[str, Any]:
    """Run a job as a task does."""
    with tempfile.TemporaryDirectory() as place, _meter() as meter:
        job = _open(base_url, Path(place), rows, size, per_batch)
        began = time.process_time()
        assert isinstance(advance(job), Waiting)
        submitted = time.process_time()
        _pass_time(base_url)
        outcome = advance(_open(base_url, Path(place), rows, size, per_batch))
        assert isinstance(outcome, Finished)
        assert outcome.manifest["succeeded"] == rows
    meter["steps"] = {"plan, upload and create": submitted - began, "land and write": time.process_time() - submitted}
    return meter


def work_resume(base_url: str, shards: int) -> dict[str, Any]:
    """Time resumes of a job that waits, and of one that is finished."""
    times = {}
    with tempfile.TemporaryDirectory() as place:

        def resumed() -> Job:
            return _open(base_url, Path(place), rows=shards * 10, size=SMALL_BYTES, per_batch=10)

        advance(resumed())
        times["all batches going on"] = _timed(lambda: advance(resumed()))
        _pass_time(base_url)
        advance(resumed())
        times["finished"] = _timed(lambda: advance(resumed()))
    return times


WORK: dict[str, Callable[..., dict[str, Any]]] = {"floor": work_floor, "job": work_job, "resume": work_resume}


class _AnswerId(msgspec.Struct):
    custom_id: str


def _open(base_url: str, place: Path, rows: int, size: int, per_batch: int) -> Job:
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
        read_requests=lambda: read_requests(_prompts(rows, size), template),
    )


def _prompts(rows: int, size: int) -> Iterator[str]:
    filler = "x" * size
    return (f"{index} {filler}" for index in range(rows))


def _pass_time(base_url: str) -> None:
    url = base_url.removesuffix("/v1") + "/emulator/advance"
    requests.post(url, json={"seconds": _BATCH_S}, timeout=1200).raise_for_status()


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextlib.contextmanager
def _meter() -> Iterator[dict[str, Any]]:
    # Forget the peak of the imports, and of the process that began this one.
    Path("/proc/self/clear_refs").write_text("5")
    used: dict[str, Any] = {}
    memory, cpu = _peak_kb(), time.process_time()
    yield used
    used["cpu_s"] = time.process_time() - cpu
    used["peak_mb"] = (_peak_kb() - memory) / 1000


def _peak_kb() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def _measured(work: str, **given: Any) -> dict[str, Any]:
    with _emulator() as base_url:
        arguments = [sys.executable, __file__, "--work", f"{work}:{json.dumps({'base_url': base_url, **given})}"]
        done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@contextlib.contextmanager
def _emulator() -> Iterator[str]:
    command = [sys.executable, "-m", "airflow_provider_openai_batches.emulator", "--port", "0", "--speed", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().rpartition(" ")[2].strip()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
