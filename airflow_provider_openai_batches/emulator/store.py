"""What survives a kill: files and batches in SQLite, file contents beside it, and the clock's last reading."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from airflow_provider_openai_batches.api.models import TERMINAL_STATUSES

_SCHEMA = """
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), elapsed REAL, now REAL);
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, filename TEXT, purpose TEXT,
    bytes INTEGER, created_at INTEGER, expires_at INTEGER);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, active INTEGER, model TEXT, tokens INTEGER, record TEXT);
CREATE INDEX IF NOT EXISTS active_batches ON batches (active, model);
"""


Note = Literal[".input", ".plan", ".plan.draft", ".spool", ".billed"]
"""What a running batch keeps beside its record, as a suffix to its id."""
_RECEIPT = (".input", ".billed")
"""The notes that say what was bought: the requests, and the numbers of the lines that were answered."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's facts; its content is at :meth:`Store.content_path`. Times are unix seconds."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None

    def to_api(self) -> dict[str, Any]:
        """The file as the API shows it."""
        shown: dict[str, Any] = {"object": "file", **dataclasses.asdict(self)}
        if self.expires_at is None:
            del shown["expires_at"]
        return {**shown, "status": "processed", "status_details": None}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch: what the API shows of it, and what its life needs to go on after a restart.

    Fields named ``*_at`` are shown unix seconds; ``born``, ``since`` and ``halted`` are readings of the clock's
    ``elapsed``.
    """

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None
    born: float
    """When it was created."""
    since: float
    """When its present status began."""
    status: str = "validating"
    output_expires_after: int | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    errors: list[dict[str, Any]] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: dict[str, Any] | None = None
    model: str | None = None
    """The model its lines name; shown only when it has ended."""
    tokens: int = 0
    """Prompt tokens it holds in the queue."""
    finished: int | None = None
    """How many requests had been answered when it was cancelled or expired; None if it may answer all."""
    ending: str = "completed"
    """The status that follows ``finalizing``."""
    outcome: dict[str, Any] | None = None
    """The scripted fault it is under, if any."""

    @property
    def is_terminal(self) -> bool:
        """Whether it will never change again."""
        return self.status in TERMINAL_STATUSES

    def to_api(self) -> dict[str, Any]:
        """The batch as the API shows it: https://platform.openai.com/docs/api-reference/batch/object."""
        shown: dict[str, Any] = {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model if self.is_terminal and self.usage is not None else None,
            "errors": {"object": "list", "data": self.errors} if self.errors is not None else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": self.completed_at,
            "failed_at": self.failed_at,
            "expired_at": self.expired_at,
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self.cancelled_at,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }
        if self.usage is not None:
            shown["usage"] = self.usage
        return shown


class Store:
    """The data directory. Used from the event loop's thread only; contents may be read and written anywhere.

    :param data_dir: created if missing; one emulator at a time may use it
    :param keep_requests: keep what each batch bought, even if its files are deleted
    :raises DataDirInUseError: another process has it open
    """

    def __init__(self, data_dir: Path, *, keep_requests: bool = False) -> None:
        self.keeps_requests = keep_requests
        for name in ("files", "drafts", "batches"):
            (data_dir / name).mkdir(parents=True, exist_ok=True)
        self._dir = data_dir
        self._reading: Callable[[], tuple[float, float]] | None = None
        self._db = sqlite3.connect(data_dir / "emulator.sqlite3", isolation_level=None, timeout=0.2)
        try:
            # Exclusive: two emulators would answer, and number, the same batches. The lock dies with the process.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            self._db.close()
            message = f"cannot use data directory {data_dir}: {error}; is another emulator using it?"
            raise DataDirInUseError(message) from error
        self._clean_up()

    def close(self) -> None:
        """Release the data directory."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the body's changes appear together or not at all."""
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _clean_up(self) -> None:
        """Remove what a kill has left behind."""
        for draft in (self._dir / "drafts").iterdir():
            draft.unlink()
        running = {batch.id for batch in self.unfinished_batches()}
        for note in (self._dir / "batches").iterdir():
            kept = self.keeps_requests and note.suffix in _RECEIPT
            if note.name.partition(".")[0] not in running and not kept:
                note.unlink()
        known = {row[0] for row in self._db.execute("SELECT id FROM files")}
        for content in (self._dir / "files").iterdir():
            if content.name not in known:
                content.unlink()

    # The clock

    def load_clock(self) -> tuple[float, float]:
        """The last saved ``elapsed`` and ``now``, zeros at first."""
        row = self._db.execute("SELECT elapsed, now FROM clock").fetchone()
        return (row[0], row[1]) if row else (0.0, 0.0)

    def follow_clock(self, reading: Callable[[], tuple[float, float]]) -> None:
        """From now on save this clock's reading with every change of a batch, so none is ahead of its time."""
        self._reading = reading

    def save_clock(self) -> None:
        """Save the clock's reading."""
        if self._reading is not None:
            self._db.execute("INSERT OR REPLACE INTO clock VALUES (1, ?, ?)", self._reading())

    # Files

    def draft_path(self, file_id: str) -> Path:
        """Where a content is written before its file exists; leftovers are removed at start."""
        return self._dir / "drafts" / file_id

    def content_path(self, file_id: str) -> Path:
        """Where a file's content is."""
        return self._dir / "files" / file_id

    def add_file(self, file: StoredFile) -> None:
        """Turn a draft into a file."""
        os.replace(self.draft_path(file.id), self.content_path(file.id))
        self._db.execute(
            "INSERT INTO files (id, filename, purpose, bytes, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
            dataclasses.astuple(file),
        )

    def file(self, file_id: str, *, now: int) -> StoredFile | None:
        """The file, or None if there is none, it was deleted, or it has expired."""
        row = self._db.execute(
            f"SELECT {_FILE_COLUMNS} FROM files WHERE id = ? AND (expires_at IS NULL OR expires_at > ?)",  # noqa: S608
            (file_id, now),
        ).fetchone()
        return StoredFile(*row) if row else None

    def files(
        self, *, now: int, purpose: str | None, after: str | None, ascending: bool, limit: int
    ) -> list[StoredFile]:
        """A page of files, by age.

        :raises KeyError: there is no file ``after``
        """
        start = self._seq("files", after)
        compare, order = (">", "ASC") if ascending else ("<", "DESC")
        rows = self._db.execute(
            f"SELECT {_FILE_COLUMNS} FROM files WHERE (expires_at IS NULL OR expires_at > :now) "  # noqa: S608
            f"AND (:purpose IS NULL OR purpose = :purpose) AND (:start IS NULL OR seq {compare} :start) "
            f"ORDER BY seq {order} LIMIT :limit",
            {"now": now, "purpose": purpose, "start": start, "limit": limit},
        )
        return [StoredFile(*row) for row in rows]

    def delete_expired_files(self, *, now: int) -> None:
        """Give back the disk space of files that have expired."""
        for row in self._db.execute("SELECT id FROM files WHERE expires_at <= ?", (now,)).fetchall():
            self.delete_file(row[0])

    def delete_file(self, file_id: str) -> None:
        """Forget a file and its content."""
        self._db.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.content_path(file_id).unlink(missing_ok=True)

    # Batches

    @property
    def direct_path(self) -> Path:
        """Where the requests are kept that came without a batch, see keep_requests."""
        return self._dir / "direct.jsonl"

    def notes_path(self, batch_id: str, suffix: Note) -> Path:
        """Where a running batch keeps what is too large for its record; removed when it ends, see keep_requests."""
        return self._dir / "batches" / f"{batch_id}{suffix}"

    def remove_notes(self, batch_id: str) -> None:
        """Remove a finished batch's notes."""
        for suffix in set(get_args(Note)) - set(_RECEIPT if self.keeps_requests else ()):
            self.notes_path(batch_id, suffix).unlink(missing_ok=True)

    def add_batch(self, batch: StoredBatch) -> None:
        """Store a new batch."""
        self._db.execute(
            "INSERT INTO batches (id, active, model, tokens, record) VALUES (?, ?, ?, ?, ?)", _batch_row(batch)
        )
        self.save_clock()

    def save_batch(self, batch: StoredBatch) -> None:
        """Store a batch's new state."""
        row = _batch_row(batch)
        self._db.execute(
            "UPDATE batches SET active = ?, model = ?, tokens = ?, record = ? WHERE id = ?", (*row[1:], batch.id)
        )
        self.save_clock()

    def batch(self, batch_id: str) -> StoredBatch | None:
        """The batch, or None."""
        row = self._db.execute("SELECT record FROM batches WHERE id = ?", (batch_id,)).fetchone()
        return _load_batch(row[0]) if row else None

    def batches(self, *, after: str | None = None, limit: int = -1) -> list[StoredBatch]:
        """A page of batches, newest first.

        :raises KeyError: there is no batch ``after``
        """
        start = self._seq("batches", after)
        rows = self._db.execute(
            "SELECT record FROM batches WHERE :start IS NULL OR seq < :start ORDER BY seq DESC LIMIT :limit",
            {"start": start, "limit": limit},
        )
        return [_load_batch(row[0]) for row in rows]

    def unfinished_batches(self) -> Iterator[StoredBatch]:
        """Every batch that is not in a terminal state, oldest first."""
        rows = self._db.execute("SELECT record FROM batches WHERE active ORDER BY seq").fetchall()
        return (_load_batch(row[0]) for row in rows)

    def queued_tokens(self, model: str | None) -> int:
        """Prompt tokens of all unfinished batches of a model."""
        query = "SELECT COALESCE(SUM(tokens), 0) FROM batches WHERE active AND model IS ?"
        total: int = self._db.execute(query, (model,)).fetchone()[0]
        return total

    def _seq(self, table: str, object_id: str | None) -> int | None:
        if object_id is None:
            return None
        row = self._db.execute(f"SELECT seq FROM {table} WHERE id = ?", (object_id,)).fetchone()  # noqa: S608
        if row is None:
            raise KeyError(object_id)
        seq: int = row[0]
        return seq


class DataDirInUseError(RuntimeError):
    """The data directory belongs to a running emulator."""


_FILE_COLUMNS = ", ".join(field.name for field in dataclasses.fields(StoredFile))


def _batch_row(batch: StoredBatch) -> tuple[str, int, str | None, int, str]:
    record = json.dumps(dataclasses.asdict(batch))
    return batch.id, int(not batch.is_terminal), batch.model, batch.tokens, record


def _load_batch(record: str) -> StoredBatch:
    return StoredBatch(**json.loads(record))
