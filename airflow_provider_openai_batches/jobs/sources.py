"""Where the rows of a job come from: lists, generators, and files of rows. Each is read once, one row at a time."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import MAX_BYTES
from airflow_provider_openai_batches.jobs.locations import check_location

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    Source: TypeAlias = "Iterable[Any] | Callable[[], Any] | str | os.PathLike[str] | ObjectStoragePath"

REQUEST_FIELDS = frozenset({"custom_id", "prompt", "input", "messages", "body", "model", "context"})
"""What a dict may say about its request."""

LINE_FIELDS = frozenset({"method", "url", "body"})
"""A dict that has all of these is a complete API line."""

_PARQUET_BATCH_ROWS = 200
_PARQUET_BUFFER_BYTES = 1 << 20
_LINES_BUFFER_BYTES = 1 << 18


class RowError(ValueError):
    """What is wrong with the row being read, and the remedy. Whoever counts the rows adds which one it is."""


class Rows(NamedTuple):
    """A source that has been understood, but not read yet."""

    name: str
    """The file's path, or "" for rows that come from no file."""
    items: Iterator[Any]


def open_source(source: Source) -> Rows:
    """Find out what a source is. Files are opened when the first row is asked for.

    :param source: an iterable of requests, a callable that returns one, or a path or URI of a ``.jsonl``, ``.csv`` or
        ``.parquet`` file
    :raises InvalidInputError: it is none of these
    """
    if callable(source) and not isinstance(source, type):
        source = source()
        if callable(source):
            raise _refuse("the function returned another function; return or yield the requests.")
    if isinstance(source, str):
        return _file_rows(_path(source))
    if isinstance(source, os.PathLike):
        return _file_rows(Path(source))
    if hasattr(source, "open") and hasattr(source, "suffix"):
        return _file_rows(source)
    if isinstance(source, Mapping):
        raise _refuse("a dict is one request, not a list of requests. Put it into a list.")
    if isinstance(source, (bytes, bytearray, memoryview)):
        raise _refuse("bytes are not a list of requests. Write them to a file and give its path.")
    if isinstance(source, (set, frozenset)):
        raise _refuse("a set has no order, so rows could not be matched on a re-run. Give a list.")
    if hasattr(source, "columns"):
        # Iterating a frame gives its column names, which would be sent as prompts.
        raise _refuse("a data frame is not a list of requests. Give its rows, e.g. frame.to_dict('records').")
    if not isinstance(source, Iterable):
        raise _refuse(
            f"expected requests (a list, a generator, a function, or a file's path), got {type(source).__name__}."
        )
    return Rows("", iter(source))


def path_of(text: str) -> Any:
    """Return the local path or the ObjectStoragePath that a path or URI names."""
    if "://" not in text:
        return Path(text)
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    return ObjectStoragePath(text)


def open_lines(path: Any) -> BinaryIO:
    """Open a file to read its lines.

    An object store's own file copies up to a block of some MB for each line, and cannot stop in the middle of one.

    :param path: local path or ObjectStoragePath
    """
    return io.BufferedReader(path.open("rb"), _LINES_BUFFER_BYTES)


def _refuse(message: str) -> InvalidInputError:
    return InvalidInputError("requests", message)


def _path(text: str) -> Any:
    suffix = Path(text).suffix.lower()
    if suffix not in _READERS or "\n" in text:
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise _refuse(
            f"a bare string is not a list of requests: {shown!r}. Put a prompt into a list, or give the path of a file "
            f"that ends in {_SUFFIXES}."
        )
    check_location(text, "requests")
    return path_of(text)


def _file_rows(path: Any) -> Rows:
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise _refuse(f"{path}: cannot tell what this file holds. Its name must end in {_SUFFIXES}.")
    return Rows(str(path), read(path))


def _jsonl_items(path: Any) -> Iterator[Any]:
    decode = msgspec.json.Decoder().decode
    with open_lines(path) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_BYTES + 1), b"")):
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) > MAX_BYTES:
                raise RowError(f"the line is longer than {MAX_BYTES:,} bytes, what a whole batch may have.")
            if line.isspace() or not line:
                continue
            try:
                row = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise RowError(f"not valid JSON ({error}). Each line must be one complete JSON value.") from error
            yield request_of(row) if isinstance(row, dict) else row


def _csv_items(path: Any) -> Iterator[Any]:
    # The module's default, 128 KB, is less than many prompts; there is no limit of a reader's own.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_BYTES))
    with io.TextIOWrapper(open_lines(path), encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if twice := {name for name in header if header.count(name) > 1}:
                raise RowError(f"the header names {', '.join(sorted(twice))} more than once. Rename the columns.")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise RowError(f"{len(cells)} cells for {len(header)} columns. Quote cells that hold commas.")
                yield request_of(_csv_row(header, cells))
        except (csv.Error, UnicodeDecodeError) as error:
            raise RowError(f"not valid CSV in UTF-8 ({error}).") from error


def _csv_row(header: list[str], cells: list[str]) -> dict[str, Any]:
    # CSV has no null: an empty cell under a name of ours is "not given".
    row: dict[str, Any] = {
        name: None if not cell and name in REQUEST_FIELDS else cell for name, cell in zip(header, cells, strict=True)
    }
    for name in ("messages", "body"):
        if row.get(name) is not None:
            try:
                row[name] = msgspec.json.decode(row[name])
            except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
                raise RowError(f"the cell {name!r} is not valid JSON ({error}).") from error
    return row


def _parquet_items(path: Any) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _refuse(
            f"{path}: reading Parquet needs pyarrow: pip install 'airflow-provider-openai-batches[parquet]'."
        ) from error
    with path.open("rb") as file:
        try:
            # Without these, whole row groups are held in memory.
            table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES)
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                yield from map(request_of, batch.to_pylist())
        except ArrowException as error:
            raise RowError(f"not a readable Parquet file ({error}).") from error


_READERS: dict[str, Callable[[Any], Iterator[Any]]] = {
    ".jsonl": _jsonl_items,
    ".ndjson": _jsonl_items,
    ".csv": _csv_items,
    ".parquet": _parquet_items,
}
_SUFFIXES = ", ".join(sorted(_READERS))


def request_of(row: dict[str, Any]) -> dict[str, Any]:
    """Move the columns that are not about the request into its context."""
    if row.keys() >= LINE_FIELDS:
        return row
    request: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for name, value in row.items():
        (request if name in REQUEST_FIELDS else columns)[name] = value
    own = request.get("context")
    if isinstance(own, dict):
        columns |= own
    elif own is not None:
        columns["context"] = own
    request["context"] = columns or None
    return request
