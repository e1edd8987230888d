"""The rows of a job as a partitioned Parquet data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.jobs.json_text import shown
from airflow_provider_openai_batches.transfers.columns import parse_columns, value_at
from airflow_provider_openai_batches.transfers.dead_letters import dead_letter
from airflow_provider_openai_batches.transfers.files import is_local, put_file, storage_path
from airflow_provider_openai_batches.transfers.results import place_of, rows_of

if TYPE_CHECKING:
    import pyarrow
    from airflow.sdk import ObjectStoragePath

ROWS_PER_FILE = 1_000_000
MAX_PARTITIONS = 500
_ROWS_PER_BATCH = 1_000
_ROWS_PER_GROUP = 10_000
_LEAST_ROWS_PER_GROUP = 100
"""So many rows of each partition wait in memory."""
_INT64 = range(-(1 << 63), 1 << 63)
_EXACT_IN_64_BITS, _EXACT_IN_32_BITS = 1 << 53, 1 << 24
"""All whole numbers up to these are floats of so many bits."""
_LARGEST = 3.4028234663852886e38
"""Of floats of 32 bits."""
_LONGEST_NAME_BYTES = 255
_NULL = "__HIVE_DEFAULT_PARTITION__"
_NO_NAME = re.compile(r"[/\\=%\0]|^[._]")
"""What makes another path of a column's name, or one that readers change or pass over."""


class Kind(IntEnum):
    """What the values of a column are, from the narrowest on."""

    NOTHING = 0
    BOOLEAN = 1
    INTEGER = 2
    """A whole number that a 64-bit float holds, too."""
    LONG = 3
    NUMBER = 4
    TEXT = 5
    VECTOR = 6
    """Numbers that a 32-bit float holds, as far as its digits go."""
    JSON = 7


def kind_of(value: Any) -> Kind:
    """Return what a value is."""
    if value is None:
        return Kind.NOTHING
    if isinstance(value, bool):
        return Kind.BOOLEAN
    if isinstance(value, int):
        if abs(value) <= _EXACT_IN_64_BITS:
            return Kind.INTEGER
        return Kind.LONG if value in _INT64 else Kind.JSON
    if isinstance(value, float):
        return Kind.NUMBER
    if isinstance(value, str):
        return Kind.TEXT
    return Kind.VECTOR if isinstance(value, list) and _is_vector(value) else Kind.JSON


def _is_vector(values: list[Any]) -> bool:
    kinds = {*map(type, values)}
    if not kinds or not kinds <= {int, float} or max(values) > _LARGEST or min(values) < -_LARGEST:
        return False
    return int not in kinds or all(abs(each) <= _EXACT_IN_32_BITS for each in values if type(each) is int)


def common_kind(one: Kind, other: Kind) -> Kind:
    """Return what holds values of both kinds."""
    low, high = sorted((one, other))
    if low in (high, Kind.NOTHING) or (low is Kind.INTEGER and high in (Kind.LONG, Kind.NUMBER)):
        return high
    return Kind.JSON


def write_partitions(
    results: Any,
    path: Any,
    columns: Mapping[str, str],
    partition_by: Sequence[str],
    write_letter: Callable[[Mapping[str, Any]], None],
) -> tuple[list[str], int, int]:
    """Write the succeeded rows; replace the partitions that they belong to.

    The results are read twice, since a file's columns have their types before the first row.

    :param results: a manifest, or the ``output_path`` of a job
    :param path: directory or URI of the data set
    :param columns: where in a result row each column's value is
    :param partition_by: columns that become folders
    :param write_letter: takes a dead letter for each other row
    :return: paths of the files, rows in them, and other rows
    """
    target = storage_path(path, "path")
    _check_apart(results, target)
    paths = parse_columns(columns)
    if unknown := [name for name in partition_by if name not in paths]:
        raise InvalidInputError(
            "partition_by", f"{', '.join(map(repr, unknown))} is not among the columns {', '.join(paths)}."
        )
    if twice := [name for name, count in Counter(partition_by).items() if count > 1]:
        raise InvalidInputError("partition_by", f"{', '.join(map(repr, twice))} is there more than once.")
    if unfit := [name for name in partition_by if _NO_NAME.search(name)]:
        raise InvalidInputError(
            "partition_by",
            f"{', '.join(map(repr, unfit))} cannot name folders: no '/', '\\\\', '=', '%' or NUL, and no '.' or '_' at "
            "the beginning. Give the column another name.",
        )
    if len(partition_by) >= len(paths):
        raise InvalidInputError("partition_by", "no column would be left for the files.")
    kinds = dict.fromkeys(paths, Kind.NOTHING)
    partitions = set()
    stored = failed = 0
    for row in rows_of(results):
        if row["status"] != "succeeded":
            failed += 1
            write_letter(dead_letter(row))
            continue
        stored += 1
        for name, steps in paths.items():
            kinds[name] = common_kind(kinds[name], kind_of(value_at(row, steps)))
        folders = {name: value_at(row, paths[name]) for name in partition_by}
        _check_folders(row, folders)
        partitions.add(msgspec.json.encode(folders))
        if len(partitions) > MAX_PARTITIONS:
            raise InvalidInputError(
                "partition_by", f"there are more than {MAX_PARTITIONS:,} partitions. Choose coarser ones."
            )
    if not stored:
        return [], 0, failed
    good = (row for row in rows_of(results) if row["status"] == "succeeded")
    with TemporaryDirectory(prefix="openai-batches-") as directory:
        draft = Path(directory)
        _write(draft, good, paths, kinds, partition_by)
        files = [file for file in draft.rglob("*.parquet") if file.is_file()]
        if (written := _count_rows(files)) != stored:
            raise OpenAIBatchesError(
                f"{stored:,} rows were to be written, but the files have {written:,}; none of them was published. Were "
                "the results replaced meanwhile? If not, this is a defect; please report it."
            )
        return _publish(files, draft, target), stored, failed


def _check_apart(results: Any, target: ObjectStoragePath) -> None:
    """Refuse the folder with the job's own result files: one of the same name would be replaced, and others removed."""
    for place in place_of(results):
        own = storage_path(f"{place.rstrip('/')}/results", "results")
        if is_local(own) and is_local(target):
            is_same = Path(own.path).resolve() == Path(target.path).resolve()
        else:
            is_same = (own.protocol, own.path.strip("/")) == (target.protocol, target.path.strip("/"))
        if is_same:
            raise InvalidInputError("path", f"{target} has the job's own results. Give the data set another place.")


def _check_folders(row: Mapping[str, Any], folders: Mapping[str, Any]) -> None:
    """Refuse what would not be read back from the name of a folder as it is."""
    for name, value in folders.items():
        if not isinstance(value, str):
            continue
        folder = f"{name}={quote(value, safe='')}"
        if "\0" in value:
            problem = "has a NUL character, which ends the name of a folder"
        elif value == _NULL:
            problem = "is what null is called there"
        elif len(folder.encode()) > _LONGEST_NAME_BYTES:
            problem = f"makes a folder's name of {len(folder.encode()):,} bytes, and {_LONGEST_NAME_BYTES} is the most"
        else:
            continue
        raise InvalidInputError(
            "partition_by",
            f"row {row['index']} ({shown(row['custom_id'])}): {name!r} {problem}: {shown(value)}. Partition by another "
            "column, or change the value in the rows.",
        )


def _count_rows(files: Sequence[Path]) -> int:
    from pyarrow import parquet

    return sum(parquet.read_metadata(file).num_rows for file in files)


def _write(
    directory: Path,
    rows: Iterable[Mapping[str, Any]],
    paths: Mapping[str, tuple[str, ...]],
    kinds: Mapping[str, Kind],
    partition_by: Sequence[str],
) -> None:
    try:
        import pyarrow as pa
        from pyarrow import dataset
    except ImportError as error:
        raise InvalidInputError(
            "path", "writing Parquet needs pyarrow: pip install 'airflow-provider-openai-batches[parquet]'."
        ) from error
    types = {
        Kind.NOTHING: pa.string(),
        Kind.BOOLEAN: pa.bool_(),
        Kind.INTEGER: pa.int64(),
        Kind.LONG: pa.int64(),
        Kind.NUMBER: pa.float64(),
        Kind.TEXT: pa.string(),
        Kind.VECTOR: pa.list_(pa.float32()),
        Kind.JSON: pa.string(),
    }
    for name in partition_by:
        if kinds[name] not in (Kind.NOTHING, Kind.TEXT, Kind.INTEGER, Kind.LONG, Kind.BOOLEAN):
            raise InvalidInputError(
                "partition_by", f"{name!r} is {kinds[name].name.lower()}; only text and whole numbers name folders."
            )
    schema = pa.schema([pa.field(name, types[kinds[name]]) for name in paths])
    dataset.write_dataset(
        _batches(iter(rows), paths, kinds, schema),
        directory,
        schema=schema,
        format="parquet",
        partitioning=dataset.partitioning(pa.schema([schema.field(name) for name in partition_by]), flavor="hive"),
        basename_template="part-{i}.parquet",
        file_options=dataset.ParquetFileFormat().make_write_options(compression="zstd"),
        max_partitions=MAX_PARTITIONS,
        max_open_files=MAX_PARTITIONS + 1,  # Fewer, and partitions would have files for no reason.
        max_rows_per_file=ROWS_PER_FILE,
        min_rows_per_group=_LEAST_ROWS_PER_GROUP if partition_by else _ROWS_PER_GROUP,
        max_rows_per_group=_ROWS_PER_GROUP,
        preserve_order=True,
    )


def _batches(
    rows: Iterator[Mapping[str, Any]],
    paths: Mapping[str, tuple[str, ...]],
    kinds: Mapping[str, Kind],
    schema: pyarrow.Schema,
) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow as pa

    while chunk := list(islice(rows, _ROWS_PER_BATCH)):
        arrays = []
        for name, steps in paths.items():
            values = [value_at(row, steps) for row in chunk]
            if kinds[name] is Kind.JSON:
                values = [None if value is None else msgspec.json.encode(value).decode() for value in values]
            arrays.append(pa.array(values, type=schema.field(name).type))
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _publish(files: Sequence[Path], draft: Path, target: ObjectStoragePath) -> list[str]:
    """Move each partition's files to their places, and remove what else was there of it."""
    published = []
    for folder in sorted({file.parent for file in files}):
        place = target / folder.relative_to(draft).as_posix() if folder != draft else target
        # Arrow counts through all partitions. Under the same name as before, a file is replaced in one step.
        own = [file for file in files if file.parent == folder]
        drafts = sorted(own, key=lambda file: int(file.stem.removeprefix("part-")))
        names = [f"part-{number:05d}.parquet" for number in range(len(drafts))]
        for file, name in zip(drafts, names, strict=True):
            put_file(file, place / name)
            published.append(str(place / name))
        place.fs.invalidate_cache()
        for found in place.fs.ls(place.path, detail=True):
            name = found["name"].rpartition("/")[2]
            # A folder may be named so, too: a partition by something that ends like this.
            if name.endswith(".parquet") and name not in names and found["type"] == "file":
                place.fs.rm_file(found["name"])
    return published
