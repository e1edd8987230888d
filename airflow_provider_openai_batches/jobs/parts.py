"""Result rows to files, and back: JSON Lines, or Parquet with the ``parquet`` extra.

In Parquet, columns keep the rows' names. ``context``, and ``output`` unless it is text or a vector, are JSON text, as
rows need not be alike. Texts have one column more: ``output_is_json`` tells which rows have JSON text in their place,
such as tool calls, or the list of texts that ``n`` asks for. So have embeddings: ``outputs``, for rows whose input was
a list of texts. :func:`read_results` gives both formats back the same, but for vectors: their numbers are of 32 bits.
"""

from __future__ import annotations

import base64
import heapq
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from importlib.util import find_spec
from itertools import accumulate, chain, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.results import ResultRow
from airflow_provider_openai_batches.jobs.sources import open_lines, path_of

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

Format = Literal["jsonl", "parquet"]

ROWS_PER_PART = 100_000
_GROUP_ROWS = 10_000
_GROUP_BYTES = 8_000_000
_IS_JSON = "output_is_json"
_SEVERAL = "outputs"
_JSON_TEXT = {b"openai_batches": b"json"}
"""Field metadata of columns that hold JSON text."""


class OutputColumn(StrEnum):
    """What a Parquet file's ``output`` column holds."""

    TEXT = "text"
    JSON = "json"
    VECTOR = "vector"


class Part(msgspec.Struct, frozen=True):
    """One written file."""

    path: Path
    rows: int


def output_column(endpoint: str, *, structured: bool) -> OutputColumn:
    """Choose the type of column that holds a job's outputs.

    :param endpoint: path of the requests
    :param structured: whether there is an output type
    """
    if endpoint.endswith("/embeddings"):
        return OutputColumn.VECTOR
    if structured or not endpoint.endswith(("/chat/completions", "/responses")):
        return OutputColumn.JSON
    return OutputColumn.TEXT


def in_order(chains: Sequence[Iterable[ResultRow]]) -> Iterator[ResultRow]:
    """Iterate over rows of several chains, each of which is in input order, in input order."""
    return iter(chains[0]) if len(chains) == 1 else heapq.merge(*chains, key=attrgetter("index"))


def write_parts(
    chains: Sequence[Iterable[ResultRow]],
    directory: Path,
    *,
    format: Format = "jsonl",
    column: OutputColumn = OutputColumn.JSON,
    rows_per_part: int = ROWS_PER_PART,
) -> Iterator[Part]:
    """Write result rows to numbered files, all in input order. Each is yielded when it is whole.

    :param chains: rows, each iterable in input order; rows of several models interleave
    :param directory: where the files go; they are named ``part-00000.jsonl`` and so on
    :param format: ``jsonl`` or ``parquet``
    :param column: what a Parquet file's outputs are
    :param rows_per_part: most rows of one file
    """
    rows = in_order(chains)
    write = _write_jsonl if format == "jsonl" else _write_parquet
    for number, first in enumerate(rows):
        path = directory / f"part-{number:05d}.{format}"
        yield Part(path, write(path, chain([first], islice(rows, rows_per_part - 1)), column))


def read_results(manifest: Mapping[str, Any] | str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Iterate over a job's result rows, in input order, without holding them.

    :param manifest: what the job's task returned, or its ``output_path``: a task that failed returned nothing
    :raises InvalidInputError: while iterating: there are no results at that path
    """
    for path in manifest["results"] if isinstance(manifest, Mapping) else _parts_at(manifest):
        if path.endswith(".parquet"):
            with path_of(path).open("rb") as file:
                yield from _parquet_rows(file)
        else:
            with open_lines(path_of(path)) as lines:
                yield from map(msgspec.json.decode, lines)


def read_results_frame(
    manifest: Mapping[str, Any], library: Literal["pandas", "polars", "pyarrow"] = "pandas"
) -> pandas.DataFrame | polars.DataFrame | pyarrow.Table:
    """Read a job's result rows as one table in memory.

    :param manifest: what the job's task returned
    :param library: whose table
    :raises ModuleNotFoundError: it is not installed; names the extra
    """
    if library in ("pandas", "polars", "pyarrow") and find_spec(library) is None:
        extra = {"pyarrow": "parquet"}.get(library, library)
        raise ModuleNotFoundError(
            f"{library} is not installed. The extra of this package that brings it is [{extra}].", name=library
        )
    if library == "pandas":
        import pandas as pd

        return pd.DataFrame.from_records(list(read_results(manifest)), columns=list(ResultRow.__struct_fields__))
    if library not in ("polars", "pyarrow"):
        raise InvalidInputError("library", f"expected 'pandas', 'polars' or 'pyarrow', got {library!r}.")
    table = _arrow_table(list(read_results(manifest)))
    if library == "pyarrow":
        return table
    import polars as pl

    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _parts_at(output_path: Any) -> list[str]:
    """Return the paths of the result files in a job's directory, in order."""
    from airflow_provider_openai_batches.jobs.directory import open_directory

    directory = open_directory(output_path)
    names = sorted(name for name in directory.names("results") if name.startswith("part-"))
    if not names:
        raise InvalidInputError(
            "results", f"there are none in {directory}/results. Give the output_path of a job that has ended."
        )
    return [directory.path(f"results/{name}") for name in names]


def _write_jsonl(path: Path, rows: Iterable[ResultRow], column: OutputColumn) -> int:
    count = 0
    encoder = msgspec.json.Encoder()
    with path.open("wb", buffering=1 << 18) as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007
            file.write(encoder.encode(row))
            file.write(b"\n")
    return count


def _write_parquet(path: Path, rows: Iterable[ResultRow], column: OutputColumn) -> int:
    from pyarrow import parquet

    schema = _schema(column)
    count = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _groups(rows):
            writer.write_table(_group_table(group, schema, column))
            count += len(group)
    return count


def _groups(rows: Iterable[ResultRow]) -> Iterator[list[ResultRow]]:
    """Cut rows into row groups of bounded count and size: a group is in memory as a whole, here and when it is read."""
    group: list[ResultRow] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(_json(row))
        if len(group) >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _schema(column: OutputColumn) -> pyarrow.Schema:
    import pyarrow as pa

    vector = pa.list_(pa.float32())
    outputs = {
        OutputColumn.TEXT: [pa.field("output", pa.string()), pa.field(_IS_JSON, pa.bool_())],
        OutputColumn.JSON: [pa.field("output", pa.string(), metadata=_JSON_TEXT)],
        OutputColumn.VECTOR: [pa.field("output", vector), pa.field(_SEVERAL, pa.list_(vector))],
    }
    counts = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens")
    error = {"code": pa.string(), "message": pa.string(), "http_status": pa.int64()}
    return pa.schema(
        [
            pa.field("custom_id", pa.string()),
            pa.field("index", pa.int64()),
            pa.field("status", pa.string()),
            *outputs[column],
            pa.field("error", pa.struct(list(error.items()))),
            pa.field("finish_reason", pa.string()),
            pa.field("model", pa.string()),
            pa.field("usage", pa.struct([(name, pa.int64()) for name in counts])),
            pa.field("batch_id", pa.string()),
            pa.field("request_id", pa.string()),
            pa.field("attempts", pa.int32()),
            pa.field("context", pa.string(), metadata=_JSON_TEXT),
        ]
    )


def _group_table(rows: list[ResultRow], schema: pyarrow.Schema, column: OutputColumn) -> pyarrow.Table:
    import pyarrow as pa

    build = {OutputColumn.TEXT: _text_columns, OutputColumn.VECTOR: _vector_columns}.get(column)
    columns = {} if build is None else build([row.output for row in rows])
    for field in schema:
        if field.name in columns:
            continue
        values = (getattr(row, field.name) for row in rows)
        if field.metadata == _JSON_TEXT:
            plain = (None if (written := _json(value)) == b"null" else written.decode() for value in values)
        else:
            plain = (msgspec.to_builtins(value) for value in values)
        columns[field.name] = pa.array(plain, type=field.type)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _text_columns(outputs: list[Any]) -> dict[str, pyarrow.Array]:
    """Build the columns of texts, as they are or as JSON text where they are something else, and of which those are."""
    import pyarrow as pa

    values = [msgspec.json.decode(_json(output)) for output in outputs]
    is_json = [value is not None and not isinstance(value, str) for value in values]
    texts = [_json(value).decode() if coded else value for value, coded in zip(values, is_json, strict=True)]
    return {"output": pa.array(texts, type=pa.string()), _IS_JSON: pa.array(is_json, type=pa.bool_())}


def _vector_columns(outputs: list[Any]) -> dict[str, pyarrow.Array]:
    """Build the columns of single vectors and of lists of them. A row is null in at least one of the two."""
    values = [msgspec.json.decode(_json(output)) for output in outputs]
    listed = [isinstance(value, list) and bool(value) and isinstance(value[0], (list, str)) for value in values]
    single = _vector_array(None if several else value for value, several in zip(values, listed, strict=True))
    lists = [value if several else None for value, several in zip(values, listed, strict=True)]
    vectors = _vector_array(vector for several in lists for vector in several or ())
    return {"output": single, _SEVERAL: _list_array((several and len(several) for several in lists), vectors)}


def _vector_array(vectors: Iterable[list[float] | str | None]) -> pyarrow.Array:
    """Build a column of vectors. The numbers go to Arrow as one array, not one by one."""
    import pyarrow as pa

    numbers = array("f")
    sizes: list[int | None] = []
    for vector in vectors:
        before = len(numbers)
        if isinstance(vector, str):
            numbers.frombytes(base64.b64decode(vector))
        elif vector is not None:
            numbers.extend(vector)
        sizes.append(None if vector is None else len(numbers) - before)
    return _list_array(sizes, _arrow_array(numbers, pa.float32()))


def _list_array(sizes: Iterable[int | None], values: pyarrow.Array) -> pyarrow.Array:
    """Cut values into lists, None being a list that is not there."""
    import pyarrow as pa

    known = list(sizes)
    ends = array("i", accumulate((size or 0 for size in known), initial=0))
    missing = pa.array([size is None for size in known], type=pa.bool_())
    return pa.ListArray.from_arrays(_arrow_array(ends, pa.int32()), values, mask=missing)


def _arrow_array(numbers: array[Any], kind: pyarrow.DataType) -> pyarrow.Array:
    import pyarrow as pa

    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _parquet_rows(file: BinaryIO) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    content = parquet.ParquetFile(file)
    encoded = [field.name for field in content.schema_arrow if (field.metadata or {}).items() >= _JSON_TEXT.items()]
    for group in range(content.num_row_groups):
        # A batch of rows is never from several groups: those are cut by size, which batches cannot be.
        for batch in content.iter_batches(batch_size=1_000, row_groups=[group]):
            for row in batch.to_pylist():
                if row.pop(_IS_JSON, False):
                    row["output"] = msgspec.json.decode(row["output"])
                several = row.pop(_SEVERAL, None)
                if several is not None:
                    row["output"] = several
                yield row | {name: msgspec.json.decode(row[name]) for name in encoded if row[name] is not None}


def _arrow_table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    import pyarrow as pa

    columns = {}
    for field in _schema(OutputColumn.JSON):
        values = [row[field.name] for row in rows]
        if field.name not in ("output", "context"):
            columns[field.name] = pa.array(values, type=field.type)
            continue
        try:
            columns[field.name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            # A column has one type. Rows that differ too much for that can still be read as text.
            texts = [None if value is None else _json(value).decode() for value in values]
            columns[field.name] = pa.array(texts, type=pa.string())
    return pa.table(columns)
