"""Files of rows, and data sets of answers, in S3 and GCS: their own clients over HTTP against local servers."""

from __future__ import annotations

import uuid
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk import ObjectStoragePath
from fsspec.spec import AbstractBufferedFile
from pyarrow import dataset, parquet

from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
from airflow_provider_openai_batches.results import read_results
from airflow_provider_openai_batches.transfers.openai_batches_to_parquet import OpenAIBatchResultsToParquetOperator
from tests.stores import Bucket
from tests.transfers.rows import answered, written

COUNT = 1_500


@pytest.fixture
def there(bucket: Bucket) -> ObjectStoragePath:
    """A place in a bucket that is not there yet."""
    return ObjectStoragePath(f"{bucket.uri}/{uuid.uuid4().hex}")


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
def test_every_kind_of_file_is_a_source(there: ObjectStoragePath, form: str) -> None:
    path = there / f"rows.{form}"
    path.fs.pipe_file(path.path, content(form))
    requests = list(read_requests(str(path), RequestTemplate(model="m")))
    assert len(requests) == COUNT
    assert b"Ticket 1499" in requests[-1].line
    number = b'"1499"' if form == "csv" else b"1499"
    assert requests[-1].context == b'{"number":%b}' % number


def test_partitions_are_replaced(there: ObjectStoragePath, tmp_path: Any) -> None:
    labels = there / "labels"
    columns = {"id": "context.id", "day": "context.day"}
    for rows in ([answered(1, day="a"), answered(2, day="b")], [answered(3, day="b")]):
        OpenAIBatchResultsToParquetOperator(
            task_id="store",
            results=written(tmp_path, rows),
            path=str(labels),
            columns=columns,
            partition_by=["day"],
            failed_path=str(there / "letters.jsonl"),
        ).execute({})
    found = dataset.dataset(labels.path, filesystem=labels.fs, partitioning="hive").to_table().to_pylist()
    assert sorted((row["id"], row["day"]) for row in found) == [(1, "a"), (3, "b")]


def test_results_are_found_by_their_path(there: ObjectStoragePath, tmp_path: Any) -> None:
    [part] = written(tmp_path, [answered(1)])["results"]
    place = there / "out" / "results" / "part-00000.jsonl"
    place.fs.put_file(part, place.path)
    assert [row["custom_id"] for row in read_results(str(there / "out"))] == ["review-1"]


@pytest.mark.parametrize("read", ["results", "jsonl", "csv"])
def test_lines_are_read_many_at_once(there: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    path = there / "results" / f"part-00000.{'csv' if read == 'csv' else 'jsonl'}"
    path.fs.pipe_file(path.path, content(path.suffix[1:]))
    sizes: list[int] = []
    plain_read = AbstractBufferedFile.read

    def counted(file: Any, length: int = -1) -> Any:
        sizes.append(length)
        return plain_read(file, length)

    monkeypatch.setattr(AbstractBufferedFile, "read", counted)
    template = RequestTemplate(model="m")
    rows = list(read_results(str(there)) if read == "results" else read_requests(str(path), template))
    assert len(rows) == COUNT
    assert 1 <= len(sizes) <= 5
