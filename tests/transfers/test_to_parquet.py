"""Answers of a job in a partitioned Parquet data set."""

from __future__ import annotations

import json
import os
import re
from array import array
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk import ObjectStoragePath
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import dataset, parquet

from airflow_provider_openai_batches.api.errors import InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.transfers import dataset as ours
from airflow_provider_openai_batches.transfers.dataset import Kind, common_kind, kind_of
from airflow_provider_openai_batches.transfers.openai_batches_to_parquet import OpenAIBatchResultsToParquetOperator
from tests.transfers.rows import answered, failed, written

COLUMNS = {"id": "context.id", "label": "output", "day": "context.day"}


def store(results: Any, path: Any, **change: Any) -> dict[str, Any]:
    """Run the operator."""
    usual: dict[str, Any] = {"task_id": "store", "columns": COLUMNS, "partition_by": ["day"]}
    return OpenAIBatchResultsToParquetOperator(results=results, path=path, **usual | change).execute({})


def labels(path: Path) -> list[tuple[Any, ...]]:
    """What somebody else reads there."""
    found = dataset.dataset(path, partitioning="hive").to_table().to_pylist()
    return sorted((row["id"], row["label"], row["day"]) for row in found)


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_partitions_of_the_job_are_replaced_and_others_left_alone(tmp_path: Path) -> None:
    there = tmp_path / "labels"
    first = [answered(1, day="a"), answered(2, day="a"), answered(3, day="b"), failed(4, day="b")]
    for _ in range(2):
        returned = store(written(tmp_path, first), str(there))
        assert (returned["stored"], returned["failed"]) == (3, 1)
        assert labels(there) == [(1, "positive", "a"), (2, "positive", "a"), (3, "positive", "b")]
        assert returned["files"] == [f"{there}/day=a/part-00000.parquet", f"{there}/day=b/part-00000.parquet"]
    store(written(tmp_path, [answered(5, "negative", day="b"), answered(6, day="c")]), str(there))
    assert labels(there) == [
        (1, "positive", "a"),
        (2, "positive", "a"),
        (5, "negative", "b"),
        (6, "positive", "c"),
    ]
    assert files(there) == [f"day={day}/part-00000.parquet" for day in "abc"]


def test_without_partitions_all_is_replaced(tmp_path: Path) -> None:
    for count in (3, 2):
        store(
            written(tmp_path, [answered(n, day="a") for n in range(count)]), str(tmp_path / "labels"), partition_by=[]
        )
    assert len(labels(tmp_path / "labels")) == 2


def test_files_that_are_too_many_by_now_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "ROWS_PER_FILE", 10)
    monkeypatch.setattr(ours, "_ROWS_PER_GROUP", 10)
    monkeypatch.setattr(ours, "_LEAST_ROWS_PER_GROUP", 10)
    there = tmp_path / "labels"
    for rows, count in ((35, 4), (15, 2)):
        store(written(tmp_path, [answered(n, day="a") for n in range(rows)]), str(there))
        assert files(there) == [f"day=a/part-{number:05d}.parquet" for number in range(count)]
        assert [row[0] for row in labels(there)] == list(range(rows))


def test_rows_keep_their_order(tmp_path: Path) -> None:
    results = written(tmp_path, [answered(n, day="ab"[n % 2]) for n in range(10_000)])
    for _ in range(10):  # Arrow's threads race: without its word for it the order is right most of the time.
        stored = store(results, str(tmp_path / "labels"))
        for start, file in enumerate(stored["files"]):
            assert parquet.read_table(file, partitioning=None)["id"].to_pylist() == list(range(start, 10_000, 2)), file


def test_on_object_storage(tmp_path: Path, memory_storage: None) -> None:
    there = ObjectStoragePath("memory://labels/here")
    for days in ("ab", "b"):
        store(written(tmp_path, [answered(n, day=day) for n, day in enumerate(days)]), str(there))
    found = sorted(there.fs.find(there.path))
    assert [name.rpartition("labels/here/")[2] for name in found] == [f"day={day}/part-00000.parquet" for day in "ab"]


def test_columns_have_the_type_of_all_their_values(tmp_path: Path) -> None:
    outputs = [
        {
            "whole": 1,
            "number": 1,
            "text": "a",
            "yes": True,
            "vector": [1, 0.5],
            "mixed": 1,
            "dict": {"a": 1},
            "none": None,
        },
        {
            "whole": None,
            "number": 0.5,
            "text": None,
            "yes": False,
            "vector": [2.0],
            "mixed": "a",
            "dict": {},
            "none": None,
        },
    ]
    columns = {name: f"output.{name}" for name in outputs[0]} | {"id": "context.id"}
    rows = [answered(n, output) for n, output in enumerate(outputs)]
    [file] = store(written(tmp_path, rows), str(tmp_path / "labels"), columns=columns, partition_by=[])["files"]
    table = parquet.read_table(file)
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "whole": "int64",
        "number": "double",
        "text": "string",
        "yes": "bool",
        "vector": "list<element: float>",
        "mixed": "string",
        "dict": "string",
        "none": "string",
        "id": "int64",
    }
    assert table["mixed"].to_pylist() == ["1", '"a"']
    assert table["dict"].to_pylist() == ['{"a":1}', "{}"]
    assert table["vector"].to_pylist() == [[1.0, 0.5], [2.0]]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.lists(st.integers(-9, 9)),
    st.lists(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1),
    st.lists(st.sampled_from([2**24, 2**24 + 1, -(2**24) - 1, 0.5, 3.4e38, 3.5e38, -1e300]), min_size=1),
    st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1]),
    st.dictionaries(st.text(), st.none()),
)


@given(st.lists(VALUES))
def test_a_columns_kind_does_not_depend_on_the_order_and_holds_every_value(values: list[Any]) -> None:
    kinds = [kind_of(value) for value in values]
    forwards = backwards = Kind.NOTHING
    for kind in kinds:
        forwards = common_kind(forwards, kind)
    for kind in reversed(kinds):
        backwards = common_kind(backwards, kind)
    assert forwards == backwards
    assert all(common_kind(forwards, kind) == forwards for kind in kinds)


@settings(max_examples=150)
@example([2**53 + 1, 0.5])
@example([[16_777_217, 1], [0.5]])
@example([[2**70]])
@example([[1e300, 1.0]])
@given(st.lists(VALUES, min_size=1))
def test_a_column_gives_back_every_value_as_it_was(values: list[Any]) -> None:
    with TemporaryDirectory() as directory:
        rows = [answered(n, value) for n, value in enumerate(values)]
        columns = {"id": "context.id", "value": "output"}
        stored = store(written(Path(directory), rows), f"{directory}/there", columns=columns, partition_by=[])
        column = parquet.read_table(stored["files"][0])["value"]
    found = column.to_pylist()
    if pa.types.is_string(column.type) and not all(isinstance(value, str | None) for value in values):
        found = [None if text is None else json.loads(text) for text in found]
    if pa.types.is_list(column.type):
        values = [value and [array("f", [number])[0] for number in value] for value in values]
    assert found == values


def test_partition_may_be_named_as_a_file_is(tmp_path: Path) -> None:
    there = tmp_path / "labels"
    for outputs in (["a", "b"], ["c", "d"]):
        rows = [answered(n, output, day="x.parquet", hour=f"{n}.parquet") for n, output in enumerate(outputs)]
        store(
            written(tmp_path, rows),
            str(there),
            columns=COLUMNS | {"hour": "context.hour"},
            partition_by=["day", "hour"],
        )
        # The folders of its partitions are none of this one's files.
        store(written(tmp_path, [answered(2, "e", day="x.parquet")]), str(there))
        assert files(there) == [
            *(f"day=x.parquet/hour={n}.parquet/part-00000.parquet" for n in (0, 1)),
            "day=x.parquet/part-00000.parquet",
        ]


@pytest.mark.parametrize("end", ["", "/", "/../results"])
@pytest.mark.parametrize("by_path", [True, False])
def test_jobs_own_results_are_not_replaced(tmp_path: Path, end: str, by_path: bool) -> None:
    manifest = written(tmp_path, [answered(1, day="a")])
    before = Path(manifest["results"][0]).read_bytes()
    with pytest.raises(InvalidInputError, match=r"path: .* has the job's own results"):
        store(str(tmp_path) if by_path else manifest, f"{tmp_path}/results{end}", partition_by=[])
    assert [path.read_bytes() for path in (tmp_path / "results").iterdir()] == [before]


def test_jobs_own_results_on_object_storage_are_not_replaced(memory_storage: None) -> None:
    with pytest.raises(InvalidInputError, match=r"path: .* has the job's own results"):
        store("memory://jobs/labels/", "memory://jobs/labels/results", partition_by=[])


def test_results_that_change_while_they_are_read_are_not_published(tmp_path: Path) -> None:
    rows = [answered(1, day="a"), answered(2, day="a"), failed(3)]

    def replace(_: Any) -> None:
        written(tmp_path / "other", rows[:1])
        os.replace(tmp_path / "other" / "results" / "part-00000.jsonl", manifest["results"][0])

    manifest = written(tmp_path, rows)
    with pytest.raises(OpenAIBatchesError, match="2 rows were to be written, but the files have 1"):
        ours.write_partitions(manifest, str(tmp_path / "labels"), COLUMNS, ["day"], replace)
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize(
    ("day", "message"),
    [
        ("a\0b", r"row 3 \('review-3'\): 'day' has a NUL character, .*: 'a\\x00b'\. Partition by another column"),
        ("__HIVE_DEFAULT_PARTITION__", r"row 3 \('review-3'\): 'day' is what null is called there"),
        ("я" * 42, r"row 3 \('review-3'\): 'day' makes a folder's name of 256 bytes, and 255 is the most"),
        ("x" * 252, r"row 3 \('review-3'\): 'day' makes a folder's name of 256 bytes, and 255 is the most"),
    ],
)
def test_what_a_folder_cannot_be_named_is_refused_by_row_and_leaves_all_as_it_was(
    tmp_path: Path, day: str, message: str
) -> None:
    there = tmp_path / "labels"
    store(written(tmp_path, [answered(1, day="a")]), str(there))
    with pytest.raises(InvalidInputError, match=message):
        store(written(tmp_path, [answered(2, day="a"), answered(3, day=day)]), str(there))
    assert [row[0] for row in labels(there)] == [1]


def test_longest_name_of_a_folder_is_written(tmp_path: Path) -> None:
    days = ["x" * 251, "é" * 41 + "x" * 5]
    store(written(tmp_path, [answered(n, day=day) for n, day in enumerate(days)]), str(tmp_path / "labels"))
    assert [row[2] for row in labels(tmp_path / "labels")] == days


def test_text_of_rows_makes_no_path(tmp_path: Path) -> None:
    there = tmp_path / "in" / "labels"
    store(written(tmp_path, [answered(1, day="../../out"), answered(2, day="a/b=c%2F")]), str(there))
    assert {file.partition("/")[0] for file in files(tmp_path)} == {"in", "results"}
    assert [row[2] for row in labels(there)] == ["../../out", "a/b=c%2F"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partition_by": None}, "partition_by: expected names of columns, got None"),
        ({"partition_by": 5}, "partition_by: expected names of columns, got 5"),
        ({"partition_by": ["month"]}, "partition_by: 'month' is not among the columns id, label, day"),
        ({"partition_by": ["id", "label", "day"]}, "partition_by: no column would be left"),
        ({"partition_by": ["day", "day"]}, "partition_by: 'day' is there more than once"),
        *(
            (
                {"columns": {"id": "context.id", name: "output"}, "partition_by": [name]},
                f"partition_by: {re.escape(repr(name))} cannot name folders",
            )
            for name in ["../x", "..", "a/b", "a\\b", "a=b", "a%20b", "a\0b", ".day", "_day"]
        ),
        ({"columns": {**COLUMNS, "day": "context.score"}}, "partition_by: 'day' is number; only text and whole"),
        ({"columns": {**COLUMNS, "id": "context.number"}}, "row 0 .* has no 'context.number': context has no 'number'"),
        ({"partition_by": ["id"]}, "partition_by: there are more than 500 partitions"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_all_as_it_was(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    manifest = written(tmp_path, [answered(n, day="a", score=0.5) for n in range(1_100)])
    with pytest.raises(InvalidInputError, match=message):
        store(manifest, str(tmp_path / "labels"), **change)
    assert not (tmp_path / "labels").exists()


def test_rows_that_failed_go_to_a_file(tmp_path: Path) -> None:
    letters = tmp_path / "letters.jsonl"
    store(written(tmp_path, [answered(1, day="a"), failed(2)]), str(tmp_path / "labels"), failed_path=str(letters))
    assert [json.loads(line)["custom_id"] for line in letters.read_text().splitlines()] == ["review-2"]


def test_where_nothing_succeeded_nothing_is_replaced(tmp_path: Path) -> None:
    there = tmp_path / "labels"
    store(written(tmp_path, [answered(1, day="a")]), str(there))
    assert store(written(tmp_path, [failed(1, day="a")]), str(there))["files"] == []
    assert len(labels(there)) == 1


def test_partitions_of_whole_numbers_and_of_nothing(tmp_path: Path) -> None:
    there = tmp_path / "labels"
    store(written(tmp_path, [answered(1, day=7), answered(2, day=None)]), str(there))
    table = dataset.dataset(there, partitioning=dataset.partitioning(flavor="hive")).to_table()
    assert pa.types.is_integer(table["day"].type)
    assert sorted(table["day"].to_pylist(), key=str) == [7, None]
