"""An object store in memory: what S3 promises, without its time.

An object is there whole or not at all, replaced at once, and of several who create one name only if it is free, one
can. Airflow leads ``s3://`` of one connection to it, so that a job's directory takes the way it takes on S3.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from tests.properties.attempts import changing

CONN_ID = "object_store_in_memory"


class ObjectStore(MemoryFileSystem):
    """Objects by their names. Each change is told before it is made, so that an attempt can die there."""

    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        changing()
        super().pipe_file(path, value, mode=mode, **options)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        # That of fsspec shows the object before it is complete.
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        changing()
        super().cp_file(path1, path2, **options)

    def _rm(self, path: str) -> None:
        changing()
        super()._rm(path)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        # Who reads an object reads what it was, whatever becomes of it.
        return io.BytesIO(self.cat_file(path)) if mode == "rb" else super()._open(path, mode, **options)


def new_location(name: str) -> str:
    """Return a URI of an empty place in the store."""
    attach(protocol="s3", conn_id=CONN_ID, fs=ObjectStore())
    return f"s3://{CONN_ID}@jobs/{name}"


def forget_all() -> None:
    """Remove all objects."""
    ObjectStore.store.clear()


def contents(location: str) -> list[bytes]:
    """Return the objects below a URI."""
    prefix = "/" + location.rpartition("@")[2] + "/"
    return [content.getvalue() for name, content in sorted(ObjectStore.store.items()) if name.startswith(prefix)]
