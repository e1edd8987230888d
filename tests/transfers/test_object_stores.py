"""Files of rows, and data sets of answers, in S3 and GCS: their own clients over HTTP against local servers."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from pyarrow import dataset, parquet

from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
from airflow_provider_openai_batches.results import read_results
from airflow_provider_openai_batches.transfers.openai_batches_to_parquet import OpenAIBatchResultsToParquetOperator
from tests.transfers.rows import answered, written

CONN_ID = "local_store"
COUNT = 1_500


def s3() -> Iterator[Any]:
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    client = {"endpoint_url": f"http://{host}:{port}", "region_name": "eu-central-1"}
    try:
        yield s3fs.S3FileSystem(key="somebody", secret="sesame", client_kwargs=client, skip_instance_cache=True)
    finally:
        server.stop()


def gs() -> Iterator[Any]:
    # Without it the client looks, by gRPC, for features that the local server does not have.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    gcsfs = pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True)
    server.start()
    try:
        yield gcsfs.GCSFileSystem(
            endpoint_url=f"http://127.0.0.1:{port}", token="anon", project="p", skip_instance_cache=True
        )
    finally:
        server.stop()


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """A store behind the Airflow connection `local_store`, which Airflow keeps for as long as the process lasts."""
    for fs in {"s3": s3, "gs": gs}[request.param]():
        attach(request.param, conn_id=CONN_ID, fs=fs)
        yield request.param


@pytest.fixture
def bucket(store: str) -> ObjectStoragePath:
    """An empty bucket."""
    place = ObjectStoragePath(f"{store}://{CONN_ID}@tickets-{uuid.uuid4().hex}")
    place.fs.mkdir(place.path.strip("/"))
    return place


def content(form: str) -> bytes:
    """A file of rows."""
    if form == "jsonl":
        return b"".join(b'{"prompt": "Ticket %d", "number": %d}\n' % (n, n) for n in range(COUNT))
    if form == "csv":
        return b"prompt,number\n" + b"".join(b"Ticket %d,%d\n" % (n, n) for n in range(COUNT))
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"prompt": [f"Ticket {n}" for n in range(COUNT)], "number": range(COUNT)}), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_every_kind_of_file_is_a_source(bucket: ObjectStoragePath, form: str) -> None:
    path = bucket / f"rows.{form}"
    path.fs.pipe_file(path.path, content(form))
    requests = list(read_requests(str(path), RequestTemplate(model="m")))
    assert len(requests) == COUNT
    assert b"Ticket 1499" in requests[-1].line
    number = b'"1499"' if form == "csv" else b"1499"
    assert requests[-1].context == b'{"number":%b}' % number


def test_partitions_are_replaced(bucket: ObjectStoragePath, tmp_path: Any) -> None:
    there = bucket / "labels"
    columns = {"id": "context.id", "day": "context.day"}
    for rows in ([answered(1, day="a"), answered(2, day="b")], [answered(3, day="b")]):
        OpenAIBatchResultsToParquetOperator(
            task_id="store",
            results=written(tmp_path, rows),
            path=str(there),
            columns=columns,
            partition_by=["day"],
            failed_path=str(bucket / "letters.jsonl"),
        ).execute({})
    found = dataset.dataset(there.path, filesystem=there.fs, partitioning="hive").to_table().to_pylist()
    assert sorted((row["id"], row["day"]) for row in found) == [(1, "a"), (3, "b")]


def test_results_are_found_by_their_path(bucket: ObjectStoragePath, tmp_path: Any) -> None:
    [part] = written(tmp_path, [answered(1)])["results"]
    place = bucket / "out" / "results" / "part-00000.jsonl"
    place.fs.put_file(part, place.path)
    assert [row["custom_id"] for row in read_results(str(bucket / "out"))] == ["review-1"]
