"""A job's directory on local disk or any object storage. Every file in it is whole or absent."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from airflow_provider_openai_batches.api.errors import InvalidInputError

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

_azure_requests = logging.getLogger("azure.core.pipeline.policies.http_logging_policy")
_DRAFTS = "_job/.drafts"
_COPIES_AT_ONCE = ("s3", "s3a", "gs", "gcs")
"""Stores where a copy is done when the call returns. In others it may only be scheduled by then."""
_CONDITIONAL = ("abfs", "abfss")
"""Stores where an upload can depend on what it replaces: Azure, which may show a file as empty while it copies."""


def open_directory(location: str | Path | ObjectStoragePath, *, drafts: str = _DRAFTS) -> JobDirectory:
    """Return the directory at a path or URI. It need not exist.

    :param location: local path, URI such as ``s3://conn@bucket/key``, or ObjectStoragePath
    :param drafts: folder in it for files in the making
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    # In Airflow 3.1 an ObjectStoragePath is a Path, too, wherever it leads.
    if not isinstance(location, (str, ObjectStoragePath)):
        return _LocalDirectory(Path(location), drafts)
    path = ObjectStoragePath(location) if isinstance(location, str) else location
    is_local = path.protocol in ("", "file", "local")
    if path.protocol in _CONDITIONAL and _azure_requests.level == logging.NOTSET:
        # Else a small job's log has a thousand lines of headers. The Azure provider's own hook does the same.
        _azure_requests.setLevel(logging.WARNING)
    return _LocalDirectory(Path(path.path), drafts) if is_local else _RemoteDirectory(path, drafts)


class JobDirectory(ABC):
    """What a job needs of its storage. Names are relative, with ``/`` between parts."""

    @abstractmethod
    def path(self, name: str) -> str:
        """Return a file's full path or URI."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return a small file's content, or None if there is no such file."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a small file, replacing what was there."""

    @abstractmethod
    def claim(self, name: str, content: bytes) -> bool:
        """Write a small file only if there is none; of several who try at once, one gets True."""

    @abstractmethod
    def publish(self, local: Path, name: str, check: Callable[[], None] | None = None) -> None:
        """Move a finished local file to its place. The local one is gone afterwards.

        :param check: raises if the file is not wanted any more. For files that others replace: once it has passed,
            neither a file that another has published meanwhile is replaced, nor, except on Azure, is a file put there
            after a :meth:`clean`
        """

    @abstractmethod
    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Give a local path to read a file from, for as long as the context is open.

        :raises FileNotFoundError: there is no such file
        """

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """List the names of the files in a folder; none if it is not there."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def delete_folder(self, name: str) -> None:
        """Remove a folder and all in it, if it is there."""

    @abstractmethod
    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give a local directory for files in the making; it is gone when the context closes."""

    @abstractmethod
    def clean(self, older_than_s: float = 0.0) -> None:
        """Remove the files in the making of processes that died. Those that live and publish get FileNotFoundError.

        :param older_than_s: leave those alone that are younger
        """


class _LocalDirectory(JobDirectory):
    """A job's directory on a file system that all workers share.

    :param root: the directory
    :param drafts: folder in it for files in the making
    """

    def __init__(self, root: Path, drafts: str = _DRAFTS) -> None:
        self.root, self._drafts = root, drafts

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> str:
        return str(self.root / _checked(name))

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / _checked(name)).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        self._draft(name, content).replace(self.root / _checked(name))

    def claim(self, name: str, content: bytes) -> bool:
        draft = self._draft(name, content)
        try:
            # Unlike opening with O_EXCL, a link makes the whole content appear at once.
            os.link(draft, self.root / _checked(name))
        except FileExistsError:
            return False
        except OSError:
            # SMB, FAT and some FUSE file systems have no links. This fails too if it was not about that.
            return self._create(name, content)
        finally:
            draft.unlink()
        return True

    def publish(self, local: Path, name: str, check: Callable[[], None] | None = None) -> None:
        target = self.root / _checked(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = self._new_draft()
        try:
            with local.open("rb") as content:
                os.fsync(content.fileno())
            # Within one file system this is a rename, across two a copy; only the second rename shows the file.
            shutil.move(local, draft)
            if check is not None:
                check()
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        path = self.root / _checked(name)
        if not path.exists():
            raise FileNotFoundError(path)
        yield path

    def names(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.root / _checked(folder))
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        return (self.root / _checked(name)).exists()

    def delete(self, name: str) -> None:
        (self.root / _checked(name)).unlink(missing_ok=True)

    def delete_folder(self, name: str) -> None:
        shutil.rmtree(self.root / _checked(name), ignore_errors=True)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        # On the same file system, so that publishing is a rename.
        directory = self._new_draft()
        directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def clean(self, older_than_s: float = 0.0) -> None:
        drafts = self.root / self._drafts
        if not older_than_s:
            shutil.rmtree(drafts, ignore_errors=True)
            return
        # Not behind a link, which rmtree does not follow either.
        for draft in () if drafts.is_symlink() else drafts.glob("*"):
            with suppress(OSError):
                if draft.lstat().st_mtime < time.time() - older_than_s:
                    draft.unlink()

    def _create(self, name: str, content: bytes) -> bool:
        try:
            with (self.root / _checked(name)).open("xb") as sink:
                sink.write(content)
                sink.flush()
                os.fsync(sink.fileno())
        except FileExistsError:
            return False
        return True

    def _new_draft(self) -> Path:
        drafts = self.root / self._drafts
        drafts.mkdir(parents=True, exist_ok=True)
        return drafts / uuid.uuid4().hex

    def _draft(self, name: str, content: bytes) -> Path:
        (self.root / _checked(name)).parent.mkdir(parents=True, exist_ok=True)
        draft = self._new_draft()
        with draft.open("wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        return draft


class _RemoteDirectory(JobDirectory):
    """A job's directory on object storage, where an object appears when its upload is complete.

    :param root: the directory
    :param drafts: folder in it for files in the making
    """

    def __init__(self, root: ObjectStoragePath, drafts: str = _DRAFTS) -> None:
        self.root, self._drafts = root, drafts

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> str:
        return str(self.root / _checked(name))

    def read(self, name: str) -> bytes | None:
        path = self.root / _checked(name)
        self._forget(path)
        try:
            content: bytes = path.fs.cat_file(path.path)
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        path = self.root / _checked(name)
        path.fs.pipe_file(path.path, content)

    def claim(self, name: str, content: bytes) -> bool:
        path = self.root / _checked(name)
        self._forget(path)
        try:
            # S3, GCS and Azure make this atomic; elsewhere fsspec looks first, which leaves a gap of milliseconds.
            path.fs.pipe_file(path.path, content, mode="create")
        except FileExistsError:
            return False
        return True

    def publish(self, local: Path, name: str, check: Callable[[], None] | None = None) -> None:
        path = self.root / _checked(name)
        if check is not None and self.root.protocol in _CONDITIONAL:
            self._replace_unchanged(path, local, check)
        elif check is None or self.root.protocol not in _COPIES_AT_ONCE:
            if check is not None:
                check()
            path.fs.put_file(str(local), path.path)
        else:
            draft = f"{self._drafts}/{uuid.uuid4().hex}"
            source = (self.root / draft).path
            path.fs.put_file(str(local), source)
            try:
                check()
                self._forget(path)
                path.fs.cp_file(source, path.path)
            finally:
                self.delete(draft)
        local.unlink()

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        path = self.root / _checked(name)
        with TemporaryDirectory(prefix="openai-batches-") as directory:
            copy = Path(directory, "copy")
            path.fs.get_file(path.path, str(copy))
            yield copy

    def names(self, folder: str) -> list[str]:
        path = self.root / _checked(folder)
        self._forget(path)
        try:
            return [found.rpartition("/")[2] for found in path.fs.ls(path.path, detail=False)]
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        path = self.root / _checked(name)
        self._forget(path)
        return bool(path.fs.exists(path.path))

    def delete(self, name: str) -> None:
        path = self.root / _checked(name)
        with suppress(FileNotFoundError):
            path.fs.rm_file(path.path)
        self._forget(path)

    def delete_folder(self, name: str) -> None:
        path = self.root / _checked(name)
        with suppress(FileNotFoundError):
            path.fs.rm(path.path, recursive=True)
        self._forget(path)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        with TemporaryDirectory(prefix="openai-batches-") as directory:
            yield Path(directory)

    def clean(self, older_than_s: float = 0.0) -> None:
        # Others are in the temporary directory of the machine that died. Of a publish with a check, no age is known.
        if not older_than_s:
            self.delete_folder(self._drafts)

    def _replace_unchanged(self, path: ObjectStoragePath, local: Path, check: Callable[[], None]) -> None:
        """Put a file only in the place of what was there before the check; else check again."""
        from azure.core import MatchConditions
        from azure.core.exceptions import HttpResponseError

        etag = self._etag(path)
        while True:
            check()
            same = {} if etag is None else {"etag": etag, "match_condition": MatchConditions.IfNotModified}
            try:
                path.fs.put_file(str(local), path.path, mode="create", **same)
                return
            except (FileExistsError, HttpResponseError):
                # The second is for a large file, whose blocks are gone when another's is put there.
                before, etag = etag, self._etag(path)
                if etag == before:
                    raise  # For another reason, such as a lease.

    def _etag(self, path: ObjectStoragePath) -> str | None:
        self._forget(path)
        try:
            etag: str | None = path.fs.info(path.path).get("etag")
        except FileNotFoundError:
            return None
        return etag

    def _forget(self, path: ObjectStoragePath) -> None:
        # Another worker may have changed what fsspec has listed before.
        path.fs.invalidate_cache()


def _checked(name: str) -> str:
    """Return a file's name. Some have parts from the ledger, which somebody may have changed.

    :raises InvalidInputError: it leads out of the directory
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise InvalidInputError(
            "output_path", f"{name!r} leads out of the job's directory. Has somebody changed the job's ledger?"
        )
    return name
