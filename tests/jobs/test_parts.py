from __future__ import annotations

import base64
import importlib
import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.models import Usage
from airflow_provider_openai_batches.jobs import parts
from airflow_provider_openai_batches.jobs.classify import RowFailure, RowStatus
from airflow_provider_openai_batches.jobs.parts import (
    OutputColumn,
    Part,
    output_column,
    read_results,
    read_results_frame,
    write_parts,
)
from airflow_provider_openai_batches.jobs.results import ResultRow
from tests.jobs.result_files import CHAT, EMBEDDINGS, RESPONSES


def good(index: int, output: Any = "yes", context: Any = None) -> ResultRow:
    return ResultRow(
        custom_id=f"row-{index}",
        index=index,
        status=RowStatus.SUCCEEDED,
        output=msgspec.Raw(json.dumps(output).encode()),
        error=None,
        finish_reason="stop",
        model="m",
        usage=Usage(1, 2, 3, 4, 5),
        batch_id="batch_1",
        request_id="req_1",
        attempts=1,
        context=msgspec.Raw(json.dumps(context).encode()),
    )


def bad(index: int) -> ResultRow:
    return ResultRow(
        custom_id=f"row-{index}",
        index=index,
        status=RowStatus.FAILED,
        output=None,
        error=RowFailure("invalid_value", "No.", 400),
        finish_reason=None,
        model=None,
        usage=None,
        batch_id=None,
        request_id=None,
        attempts=2,
        context=msgspec.Raw(b"null"),
    )


def plain(row: ResultRow) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(row))
    return decoded


def manifest(parts: list[Part]) -> dict[str, Any]:
    return {"results": [str(part.path) for part in parts]}


def column_for(output: Any) -> OutputColumn:
    if isinstance(output, str):
        return OutputColumn.TEXT
    return OutputColumn.VECTOR if isinstance(output, list) else OutputColumn.JSON


OUTPUTS: list[Any] = ["yés\n", "", {"label": "a", "sure": True}, [0.5, -0.25], [[0.5], [0.25, 1.0]]]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_rows_are_read_back_as_they_were_written(tmp_path: Path, format: Any, output: Any) -> None:
    rows = [bad(0), good(1, output, {"name": "Zoë", "n": [1]}), bad(2), good(3, output)]
    parts = list(write_parts([rows], tmp_path, format=format, column=column_for(output)))
    assert [part.rows for part in parts] == [4]
    found = list(read_results(manifest(parts)))
    assert found == [plain(row) for row in rows]
    assert [list(row) for row in found] == [list(plain(row)) for row in rows]


ODD_TEXTS: list[Any] = ["yes", ["yes", "no"], '["yes"]', {"tool_calls": [{"id": "é"}]}, [], [None, "a"], "{}", None]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_several_texts_and_tool_calls_among_texts_are_read_back_as_they_were(tmp_path: Path, format: Any) -> None:
    rows = [good(index, output, {"n": index}) for index, output in enumerate(ODD_TEXTS)]
    parts = list(write_parts([rows], tmp_path, format=format, column=OutputColumn.TEXT))
    assert list(read_results(manifest(parts))) == [plain(row) for row in rows]


def test_texts_that_were_written_without_the_column_about_json_stay_texts(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    (part,) = write_parts([map(good, range(2), ["a", ["b"]])], tmp_path, format="parquet", column=OutputColumn.TEXT)
    parquet.write_table(parquet.read_table(part.path).drop_columns(["output_is_json"]), part.path)
    assert [row["output"] for row in read_results(manifest([part]))] == ["a", '["b"]']


def test_rows_of_several_models_interleave_in_input_order(tmp_path: Path) -> None:
    chains = [[good(0), good(3), good(4)], [good(1)], [good(2), good(5)]]
    parts = list(write_parts(chains, tmp_path, rows_per_part=4))
    assert [(part.path.name, part.rows) for part in parts] == [("part-00000.jsonl", 4), ("part-00001.jsonl", 2)]
    assert [row["index"] for row in read_results(manifest(parts))] == [0, 1, 2, 3, 4, 5]


def test_a_part_is_given_as_soon_as_it_is_whole(tmp_path: Path) -> None:
    taken = 0

    def rows() -> Iterator[ResultRow]:
        nonlocal taken
        for index in range(10):
            taken += 1
            yield good(index)

    parts = write_parts([rows()], tmp_path, rows_per_part=2)
    first = next(parts)
    assert taken == 2
    assert len(first.path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_no_rows_are_no_parts(tmp_path: Path, format: Any) -> None:
    assert list(write_parts([[]], tmp_path, format=format)) == []
    assert list(read_results({"results": []})) == []


def test_reading_is_lazy(tmp_path: Path) -> None:
    parts = list(write_parts([[good(0)]], tmp_path))
    rows = read_results({"results": [str(parts[0].path), str(tmp_path / "gone.jsonl")]})
    assert next(rows)["index"] == 0
    with pytest.raises(FileNotFoundError):
        next(rows)


def test_vectors_are_columns_of_numbers(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    encoded = base64.b64encode(struct.pack("<2f", 0.5, 0.25)).decode()
    rows = [good(0, [0.5, 0.25]), good(1, encoded), bad(2)]
    (part,) = write_parts([rows], tmp_path, format="parquet", column=OutputColumn.VECTOR)
    table = parquet.read_table(part.path)
    assert str(table.schema.field("output").type) == "list<element: float>"
    assert table["output"].to_pylist() == [[0.5, 0.25], [0.5, 0.25], None]


def test_rows_with_several_vectors_have_a_column_of_their_own(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    encoded = base64.b64encode(struct.pack("<f", 0.5)).decode()
    outputs = [[0.5], [[0.5], [0.25, 1.0]], None, [[1.0]], [0.25]]
    rows = [bad(at) if output is None else good(at, output) for at, output in enumerate(outputs)]
    (part,) = write_parts([[*rows, good(5, [encoded])]], tmp_path, format="parquet", column=OutputColumn.VECTOR)
    table = parquet.read_table(part.path)
    assert table["output"].to_pylist() == [[0.5], None, None, None, [0.25], None]
    assert table["outputs"].to_pylist() == [None, [[0.5], [0.25, 1.0]], None, [[1.0]], None, [[0.5]]]
    found = list(read_results(manifest([part])))
    assert [row["output"] for row in found] == [*outputs, [[0.5]]]
    assert list(found[0]) == list(ResultRow.__struct_fields__)


def test_large_rows_are_cut_into_row_groups(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    rows = (good(index, "x" * 3_000_000) for index in range(5))
    (part,) = write_parts([rows], tmp_path, format="parquet", column=OutputColumn.TEXT)
    assert part.rows == 5
    assert parquet.ParquetFile(part.path).num_row_groups == 2


def test_all_of_a_row_counts_towards_its_row_group(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    large = "x" * 3_000_000
    failure = RowFailure("code", large)
    rows = [good(0, "a", {"text": large}), structs.replace(bad(1), error=failure), good(2, large), good(3), bad(4)]
    (part,) = write_parts([rows], tmp_path, format="parquet", column=OutputColumn.TEXT)
    file = parquet.ParquetFile(part.path)
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [3, 2]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_large_rows_are_written_and_read_in_little_memory(tmp_path: Path, format: Any) -> None:
    pyarrow = importlib.import_module("pyarrow")
    importlib.import_module("pyarrow.parquet")
    count, size, bound = 30, 2_000_000, 40_000_000
    most = 0

    def in_use() -> int:
        return int(tracemalloc.get_traced_memory()[0] + pyarrow.total_allocated_bytes() - before)

    def rows() -> Iterator[ResultRow]:
        nonlocal most
        for index in range(count):
            most = max(most, in_use())
            yield good(index, "a", {"text": str(index % 10) * size})

    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    try:
        parts = list(write_parts([rows()], tmp_path, format=format, column=OutputColumn.TEXT))
        assert most < bound < count * size
        found = 0
        for row in read_results(manifest(parts)):
            found += len(row["context"]["text"])
            most = max(most, in_use())
        assert found == count * size
        assert most < bound
        # Between two rows as well.
        assert tracemalloc.get_traced_memory()[1] < bound
    finally:
        tracemalloc.stop()


def test_vectors_of_several_lengths_are_in_one_column(tmp_path: Path) -> None:
    outputs = [[0.5], [0.25, 1.0, -1.0], [[0.5], [1.0, 2.0]], [0.5, 0.5]]
    rows = [good(at, output) for at, output in enumerate(outputs)]
    parts = list(write_parts([rows], tmp_path, format="parquet", column=OutputColumn.VECTOR))
    assert [row["output"] for row in read_results(manifest(parts))] == outputs


def test_the_column_type_fits_what_the_endpoint_answers() -> None:
    assert output_column(EMBEDDINGS, structured=False) is OutputColumn.VECTOR
    assert output_column(CHAT, structured=False) is OutputColumn.TEXT
    assert output_column(RESPONSES, structured=False) is OutputColumn.TEXT
    assert output_column(CHAT, structured=True) is OutputColumn.JSON
    assert output_column("/v1/moderations", structured=False) is OutputColumn.JSON


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
@pytest.mark.parametrize(
    "rows", [[good(0, "a", {"k": 1}), bad(1)], [good(0, {"label": "a"}), good(1, {"label": "b"})], []]
)
def test_a_frame_has_every_row_and_column(tmp_path: Path, library: Any, rows: list[ResultRow]) -> None:
    pytest.importorskip(library)
    frame: Any = read_results_frame(manifest(list(write_parts([rows], tmp_path))), library)
    names = frame.column_names if library == "pyarrow" else list(frame.columns)
    assert names == list(ResultRow.__struct_fields__)
    values = frame["output"].to_pylist() if library == "pyarrow" else frame["output"].to_list()
    # pandas shows a text that is not there as NaN.
    assert [value if value == value else None for value in values] == [plain(row)["output"] for row in rows]


def test_outputs_of_several_types_are_text_in_a_table(tmp_path: Path) -> None:
    parts = list(write_parts([[good(0, "a"), good(1, {"tool_calls": []}), bad(2)]], tmp_path))
    table: Any = read_results_frame(manifest(parts), "pyarrow")
    assert table["output"].to_pylist() == ['"a"', '{"tool_calls":[]}', None]


def test_numbers_that_a_table_has_no_type_for_are_text_in_it(tmp_path: Path) -> None:
    parts = list(write_parts([[good(0, 2**70), good(1, {"n": -(2**64)})]], tmp_path))
    table: Any = read_results_frame(manifest(parts), "pyarrow")
    assert table["output"].to_pylist() == [str(2**70), f'{{"n":{-(2**64)}}}']
    parts = list(write_parts([[good(0, 2**70)]], tmp_path))
    table = read_results_frame(manifest(parts), "pyarrow")
    assert table["output"].to_pylist() == [str(2**70)]


def test_an_unknown_library_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="expected 'pandas', 'polars' or 'pyarrow', got 'numpy'"):
        read_results_frame({"results": []}, "numpy")  # type: ignore[arg-type]


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"^pyarrow is not installed\..*is \[parquet\]\.$"):
        read_results_frame({"results": []}, "pyarrow")


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, airflow_provider_openai_batches.jobs.parts, airflow_provider_openai_batches.jobs.pricing;"
        "heavy = {'airflow', 'pyarrow', 'pandas', 'polars', 'pydantic', 'numpy', 'jsonschema'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
