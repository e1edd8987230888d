"""Files of a transfer: each appears whole at its place, or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.locations import check_location

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


def storage_path(location: Any, param: str) -> ObjectStoragePath:
    """Return a path or URI as Airflow's path, wherever it leads.

    :param location: the path
    :param param: what to name in an error
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    check_location(location, param)
    return location if isinstance(location, ObjectStoragePath) else ObjectStoragePath(str(location))


def is_local(path: ObjectStoragePath) -> bool:
    """Whether a path is one of this machine's file systems."""
    return path.protocol in ("", "file", "local")


def put_file(local: Path, target: ObjectStoragePath) -> None:
    """Show a finished file at its place, instead of what was there.

    :param local: the file
    :param target: where it is to be seen
    """
    if not is_local(target):
        target.fs.put_file(str(local), target.path)
        return
    place = Path(target.path)
    place.parent.mkdir(parents=True, exist_ok=True)
    # What reads a folder of files passes over names with a dot.
    draft = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        shutil.copyfile(local, draft)
        os.replace(draft, place)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def letters_file(location: Any) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give what writes rows to a JSONL file, which replaces an earlier one at the end. Without rows there is none.

    :param location: path or URI; None for no file, so that rows go nowhere
    """
    if location is None:
        yield lambda letter: None
        return
    target = storage_path(location, "failed_path")
    if is_local(target) and Path(target.path).is_dir():
        raise InvalidInputError("failed_path", f"{target} is a directory; give the path of a JSONL file.")
    with TemporaryDirectory(prefix="openai-batches-") as directory:
        draft = Path(directory, "letters.jsonl")
        with draft.open("wb") as file:
            yield lambda letter: file.writelines((msgspec.json.encode(letter), b"\n"))
        if draft.stat().st_size:
            put_file(draft, target)
        else:
            target.unlink(missing_ok=True)
