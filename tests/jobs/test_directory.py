"""A job's directory keeps its promises on local disk, on S3, on GCS and on Azure Blob Storage."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow
import pytest
from airflow.sdk import ObjectStoragePath
from pyarrow import parquet

from airflow_provider_openai_batches.jobs.directory import JobDirectory, open_directory
from airflow_provider_openai_batches.jobs.engine import Waiting, advance
from airflow_provider_openai_batches.jobs.ledger import LedgerError
from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
from tests.jobs.doomed import processes
from tests.jobs.world import World
from tests.stores import Bucket

NewWorld = Callable[..., World]


@pytest.fixture(params=["local", "s3", "gs", "abfs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """A place that is not there yet."""
    if request.param == "local":
        return tmp_path / "a" / "b"
    return f"{request.getfixturevalue(request.param).uri}/{uuid.uuid4().hex}/b"


@pytest.fixture
def directory(location: Path | str) -> JobDirectory:
    """The directory there."""
    return open_directory(location)


def published(directory: JobDirectory, name: str, content: bytes) -> None:
    with directory.staging() as staging:
        (staging / "made").write_bytes(content)
        directory.publish(staging / "made", name)
        assert not (staging / "made").exists()


def test_file_is_read_back_as_written_and_replaced_as_a_whole(directory: JobDirectory) -> None:
    assert directory.read("_job/x.json") is None
    directory.write("_job/x.json", b"a long first content")
    directory.write("_job/x.json", b"short")
    assert directory.read("_job/x.json") == b"short"
    assert directory.exists("_job/x.json")
    assert not directory.exists("_job/y.json")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [("jsonl", b'{"prompt":"a"}\n{"prompt":"b"}\n'), ("csv", b"prompt\na\nb\n"), ("parquet", None)],
    ids=["jsonl", "csv", "parquet"],
)
def test_rows_are_read_from_there(location: Path | str, suffix: str, content: bytes | None) -> None:
    path = ObjectStoragePath(f"{location}/rows.{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        table = io.BytesIO()
        parquet.write_table(pyarrow.table({"prompt": ["a", "b"]}), table)
        content = table.getvalue()
    path.write_bytes(content)
    rows = read_requests(str(path), RequestTemplate(model="m"))
    assert [json.loads(row.line)["body"]["messages"][-1]["content"] for row in rows] == ["a", "b"]


def test_change_by_another_worker_is_seen_at_once(directory: JobDirectory, location: Path | str) -> None:
    other = open_directory(location)
    assert directory.read("f") is None
    assert not directory.exists("f")
    assert directory.names("a") == []
    other.write("a/1", b"1")
    assert directory.names("a") == ["1"]
    other.write("f", b"1")
    assert directory.read("f") == b"1"
    assert directory.exists("f")
    assert not directory.claim("f", b"2")
    other.delete("f")
    assert directory.read("f") is None
    assert directory.claim("f", b"3")


def test_claim_is_given_once_and_keeps_its_content(directory: JobDirectory) -> None:
    assert directory.claim("_job/claim.json", b"mine")
    assert not directory.claim("_job/claim.json", b"yours")
    assert directory.read("_job/claim.json") == b"mine"


def test_claim_is_given_to_one_of_twenty_threads(location: Path | str) -> None:
    begin = threading.Barrier(20)
    won: list[int] = []

    def try_it(number: int) -> None:
        directory = open_directory(location)
        begin.wait()
        if directory.claim("_job/claim.json", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert open_directory(location).read("_job/claim.json") == b"%d" % won[0]


def _claim(location: Path | str, name: str, content: bytes) -> None:
    os._exit(0 if open_directory(location).claim(name, content) else 3)


def test_claim_is_given_to_one_of_several_processes(tmp_path: Path) -> None:
    claimants = [processes.Process(target=_claim, args=(tmp_path, "claim", b"%d" % n)) for n in range(20)]
    for process in claimants:
        process.start()
    for process in claimants:
        process.join()
    codes = [process.exitcode for process in claimants]
    assert sorted(codes) == [0] + [3] * 19
    assert open_directory(tmp_path).read("claim") == b"%d" % codes.index(0)


def test_published_file_is_complete_and_replaces_an_older_one(directory: JobDirectory) -> None:
    content = os.urandom(1 << 20)
    published(directory, "results/part-00000.jsonl", b"old")
    published(directory, "results/part-00000.jsonl", content)
    assert directory.read("results/part-00000.jsonl") == content


def test_file_that_is_no_longer_wanted_is_not_published(directory: JobDirectory) -> None:
    class UnwantedError(Exception):
        pass

    def refuse() -> None:
        raise UnwantedError

    def lose() -> None:
        if directory.read("results/part-00000.jsonl") != b"old":
            raise UnwantedError
        directory.clean()
        published(directory, "results/part-00000.jsonl", b"another's")

    in_azure = str(directory).startswith("abfs:")
    cases = [
        (refuse, UnwantedError, b"old"),
        *([] if in_azure else [(directory.clean, FileNotFoundError, b"old")]),
        (lose, UnwantedError if in_azure else FileNotFoundError, b"another's"),
    ]
    published(directory, "results/part-00000.jsonl", b"old")
    for check, error, left in cases:
        with directory.staging() as staging:
            (staging / "made").write_bytes(b"new")
            with pytest.raises(error):
                directory.publish(staging / "made", "results/part-00000.jsonl", check)
        assert directory.read("results/part-00000.jsonl") == left
        assert directory.names("_job/.drafts") == []
    with directory.staging() as staging:
        (staging / "made").write_bytes(b"new")
        directory.publish(staging / "made", "results/part-00000.jsonl", lambda: None)
    assert directory.read("results/part-00000.jsonl") == b"new"
    assert directory.names("_job/.drafts") == []


@pytest.mark.parametrize("asleep_at", ["after clean ", "before publish results/part-00000.jsonl"])
def test_zombie_cannot_put_its_results_in_the_place_of_newer_ones(
    new_world: NewWorld, location: Path | str, asleep_at: str
) -> None:
    def replaced(operation: str) -> None:
        if operation == asleep_at and not newer:
            newer.append(None)
            world.run()
            world.rows = ["new 1", "new 2", "new 3"]
            newer[0] = world.run(max_tries=1)

    world, newer = new_world(location=location, rows=["old 1", "old 2"]), []
    waiting = advance(world.attempt())
    assert isinstance(waiting, Waiting)
    world.wait(waiting)
    with pytest.raises(LedgerError, match=r"This one \(zombie\) stops"):
        advance(world.attempt("zombie", resuming=True, watch=replaced))
    assert [row["context"]["prompt"] for row in world.check_results(newer[0])] == world.rows


def test_names_of_files_in_a_folder(directory: JobDirectory) -> None:
    assert directory.names("_job/a") == []
    for name in ("_job/a/1", "_job/a/2", "_job/ab", "_job/b/3"):
        directory.write(name, b"x")
    assert sorted(directory.names("_job/a")) == ["1", "2"]


def test_local_path_has_the_content_while_it_is_needed(directory: JobDirectory) -> None:
    published(directory, "x/y.jsonl", b"1\n2\n")
    with directory.local("x/y.jsonl") as path:
        assert path.read_bytes() == b"1\n2\n"
    with pytest.raises(FileNotFoundError), directory.local("x/z.jsonl"):
        pass


def test_delete_is_content_with_what_is_gone(directory: JobDirectory) -> None:
    directory.write("_job/a/1", b"1")
    directory.write("_job/a/2", b"2")
    directory.write("_job/ab", b"3")
    directory.delete_folder("_job/a")
    directory.delete_folder("_job/a")
    directory.delete_folder("_job/never")
    assert [directory.exists(f"_job/{name}") for name in ("a/1", "a/2", "ab")] == [False, False, True]
    directory.delete("_job/ab")
    directory.delete("_job/ab")
    assert not directory.exists("_job/ab")


def test_requests_to_azure_are_not_in_the_log(abfs: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    open_directory(f"{abfs.uri}/{uuid.uuid4().hex}").write("f", b"x")
    assert not [record for record in caplog.records if record.name.startswith("azure.")]


def test_path_can_be_opened_by_readers_of_results(directory: JobDirectory) -> None:
    from airflow_provider_openai_batches.jobs.parts import read_results

    published(directory, "results/part-00000.jsonl", b'{"a": 1}\n{"a": 2}\n')
    manifest = {"results": [directory.path("results/part-00000.jsonl")]}
    assert [row["a"] for row in read_results(manifest)] == [1, 2]


def test_staging_is_gone_afterwards(directory: JobDirectory) -> None:
    with directory.staging() as staging:
        (staging / "left").write_text("over")
    assert not staging.exists()


def _write_for_ever(location: Path, ready: object) -> None:
    directory = open_directory(location)
    for number in range(1_000_000):
        directory.write("job.json", b"%d," % number * 5_000)
        published(directory, "part.jsonl", b"%d," % number * 50_000)
        if number == 2:
            ready.set()  # type: ignore[attr-defined]


def test_reader_that_has_a_file_open_reads_it_to_its_end_though_it_is_replaced(tmp_path: Path) -> None:
    directory = open_directory(tmp_path)
    for put in (directory.write, partial(published, directory)):
        put("file", b"old" * 1_000)
        with open(directory.path("file"), "rb", buffering=0) as reader:
            beginning = reader.read(10)
            put("file", b"new" * 1_000)
            assert beginning + reader.read() == b"old" * 1_000
        assert directory.read("file") == b"new" * 1_000


def test_file_is_whole_when_its_writer_is_killed_and_what_it_left_is_cleaned_up(tmp_path: Path) -> None:
    directory = open_directory(tmp_path)
    for _ in range(12):
        ready = processes.Event()
        writer = processes.Process(target=_write_for_ever, args=(tmp_path, ready))
        writer.start()
        assert ready.wait(30)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        for name, times in (("job.json", 5_000), ("part.jsonl", 50_000)):
            content = directory.read(name)
            assert content is not None
            numbers = content.decode().split(",")[:-1]
            assert len(numbers) == times
            assert len(set(numbers)) == 1
    directory.clean()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["job.json", "part.jsonl"]


def test_whole_job_runs_with_a_crash_in_the_middle(new_world: NewWorld, location: Path | str) -> None:
    class CrashedError(BaseException):
        pass

    def crash(operation: str) -> None:
        if operation == "after POST batches":
            raise CrashedError

    world = new_world(location=location, rows=[f"say {n}" for n in range(7)], per_batch=4)
    world.add_faults({"on": {"custom_id": "row-2"}, "do": {"outcome": "server_error"}})
    with pytest.raises(CrashedError):
        advance(world.attempt(watch=crash))
    outcome = world.run()
    rows = world.check_results(outcome)
    assert [row["status"] for row in rows] == ["succeeded"] * 7
    world.check_bought_once()
    world.rows = [*world.rows, "one more"]
    cleared = world.run(max_tries=1)
    world.check_results(cleared)
    assert (cleared.manifest["kept"], cleared.manifest["requests"]) == (7, 8)
