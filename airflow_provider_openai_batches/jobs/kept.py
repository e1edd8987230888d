"""Answers that an earlier generation of a job has already paid for.

When a finished job is planned again, a row whose custom_id and request are the same as before keeps its answer. Each
plan writes a key per row for that, in input order; the keys and the result rows of the one before are joined
through a temporary index on disk, so that a million rows need no memory. Where rows that ask the same are bought once,
the keys of what they ask are joined, too: whatever a row's custom_id, the answer is there.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from airflow_provider_openai_batches.jobs.parts import read_results
from airflow_provider_openai_batches.jobs.requests import Request
from airflow_provider_openai_batches.jobs.results import ResultRow
from airflow_provider_openai_batches.jobs.segments import KEY_BYTES as CONTENT_KEY_BYTES

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.directory import JobDirectory

KEY_BYTES = 16


def keys_file(plan: str) -> str:
    """Name the file with the keys of a plan's rows, 16 bytes per row in input order."""
    return f"_job/plan-{plan}.keys.bin"


def kept_file(plan: str) -> str:
    """Name the file with the result rows that a plan took over from elsewhere, in input order."""
    return f"_job/plan-{plan}.kept.jsonl"


def contents_file(plan: str) -> str:
    """Name the file with the keys of what a plan's rows ask, 32 bytes per row in input order."""
    return f"_job/plan-{plan}.contents.bin"


def row_key(request: Request) -> bytes:
    """Identify a row by its custom_id and all of its request."""
    # The line holds the custom_id too.
    return hashlib.blake2b(request.line, digest_size=KEY_BYTES).digest()


class EarlierAnswers:
    """Finds the answers of rows that are asked again."""

    def __init__(self, index: sqlite3.Connection | None) -> None:
        self._index = index

    def find(self, request: Request) -> ResultRow | None:
        """Return the result row of the same request, at its new place in the input; None if there is none.

        :param request: the row as it is now
        """
        return self._find(request, "SELECT row FROM answers WHERE key = ?", row_key(request))

    def find_same(self, request: Request, content: bytes) -> ResultRow | None:
        """Return the result row of a row that asked the same, as the request's own; None if there is none.

        :param request: the row as it is now
        :param content: key of what it asks
        """
        query = "SELECT row FROM contents JOIN answers ON answers.key = contents.key WHERE content = ?"
        return self._find(request, query, content)

    def _find(self, request: Request, query: str, key: bytes) -> ResultRow | None:
        found = None if self._index is None else self._index.execute(query, (key,)).fetchone()
        if found is None:
            return None
        row = _row_decoder.decode(found[0])
        row.custom_id, row.index, row.context = request.custom_id, request.index, request.raw_context
        return row


@contextmanager
def earlier_answers(directory: JobDirectory, plan: str, results: list[str]) -> Iterator[EarlierAnswers]:
    """Open the answers of a generation.

    :param directory: the job's
    :param plan: the earlier one's
    :param results: its result files, in input order; empty if it left none
    """
    if not results or not directory.exists(keys_file(plan)):
        yield EarlierAnswers(None)
        return
    with TemporaryDirectory(prefix="openai-batches-") as place, ExitStack() as stack:
        index = stack.enter_context(closing(sqlite3.connect(Path(place, "answers"))))
        index.execute("PRAGMA journal_mode = OFF")
        index.execute("PRAGMA synchronous = OFF")
        index.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")
        index.execute("CREATE TABLE contents (content BLOB PRIMARY KEY, key BLOB) WITHOUT ROWID")

        def opened(name: str) -> BinaryIO:
            return stack.enter_context(stack.enter_context(directory.local(name)).open("rb"))

        contents = opened(contents_file(plan)) if directory.exists(contents_file(plan)) else None
        # Row by row: answers and contexts can be large.
        for key, content, row in _succeeded(opened(keys_file(plan)), contents, results):
            index.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, row))
            if content is not None:
                index.execute("INSERT OR IGNORE INTO contents VALUES (?, ?)", (content, key))
        yield EarlierAnswers(index)


def kept_rows(path: Path) -> Iterator[ResultRow]:
    """Iterate over the result rows that a plan took over.

    :param path: local copy of :func:`kept_file`
    """
    with path.open("rb") as lines:
        for line in lines:
            yield _row_decoder.decode(line)


def _succeeded(
    keys: BinaryIO, contents: BinaryIO | None, results: list[str]
) -> Iterator[tuple[bytes, bytes | None, bytes]]:
    """Iterate over the rows that have an answer: key, key of the content if there is one, and result row."""
    for row in read_results({"results": results}):
        key = keys.read(KEY_BYTES)
        content = None if contents is None else contents.read(CONTENT_KEY_BYTES)
        if row["status"] == "succeeded":
            yield key, content, msgspec.json.encode(row)


_row_decoder = msgspec.json.Decoder(ResultRow)
