"""Answers that any job has paid for, found by the content of the request: a directory that jobs and DAGs share.

Answers lie in ``v1/<first two hex digits of the key>/``, in segments (see :mod:`~.segments`) that are written once. So
writers cannot disturb each other, and a job reads only the folders of its own rows. Where many small segments have
come together, the next writer puts them into one. What is damaged is not found, and reported; it never fails a job.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.models import Usage
from airflow_provider_openai_batches.jobs.directory import JobDirectory, open_directory
from airflow_provider_openai_batches.jobs.json_text import encode
from airflow_provider_openai_batches.jobs.lines import UNREADABLE
from airflow_provider_openai_batches.jobs.requests import Request
from airflow_provider_openai_batches.jobs.scratch import scratch
from airflow_provider_openai_batches.jobs.segments import (
    KEY_BYTES,
    NEVER,
    SegmentName,
    answer_in,
    heads,
    line,
    new_name,
    read_names,
)

if TYPE_CHECKING:
    import sqlite3

    from airflow.sdk import ObjectStoragePath

    from airflow_provider_openai_batches.api.settings import ClientSettings
    from airflow_provider_openai_batches.jobs.structured import Parsed

log = logging.getLogger(__name__)

MANY_SEGMENTS = 16
"""Small segments in a folder that the next writer puts into one."""

SMALL_SEGMENT = 1_000
"""Answers that a segment worth merging has at most."""

_FORM = b"2\n"
"""Form of what is kept: what the model wrote. No other is found, such as the first: what an output type made of it."""

_PROBE = ".probe"
_FLUSH_BYTES = 1 << 15
_STALE_DRAFT_S = 86_400.0


class ContentKeys:
    """Tells which requests ask the same of the same service: all of the line counts but its custom_id.

    :param settings: of the service. Two may call different models by one name, and a gateway may stand before several,
        of which the query or a header names one
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._digest = hashlib.blake2b(settings.base_url.rstrip("/").encode() + b"\n", digest_size=KEY_BYTES)
        self._digest.update(_FORM)
        if settings.query:
            self._digest.update(msgspec.json.encode(dict(settings.query), order="sorted") + b"\n")
        if settings.headers:
            headers = {str(name).strip().lower(): str(value).strip() for name, value in settings.headers.items()}
            self._digest.update(b"headers" + msgspec.json.encode(headers, order="sorted") + b"\n")

    @property
    def service(self) -> str:
        """Names the service among all."""
        return self._digest.hexdigest()

    def of(self, request: Request) -> bytes:
        """Return the key of a request's content."""
        digest = self._digest.copy()
        # Method, endpoint and body, with all defaults; what comes before is its name.
        digest.update(request.line[len(b'{"custom_id":') + len(encode(request.custom_id)) :])
        return digest.digest()


class CachedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a result row needs of an answer.

    :param output: what the model wrote, a text or a list of texts, before any output type made something of it; where
        it wrote none, what a row without an output type has
    :param is_text: whether it is what the model wrote
    """

    output: msgspec.Raw
    is_text: bool
    finish_reason: str | None
    model: str | None
    usage: Usage | None
    batch_id: str | None
    request_id: str | None


@dataclass(frozen=True)
class AnswerCache:
    """A directory of answers.

    :param directory: the cache's
    :param expires_after_s: seconds after which an answer is not used any more; None for never
    """

    directory: JobDirectory
    expires_after_s: float | None

    @classmethod
    def at(cls, location: str | Path | ObjectStoragePath, expires_after_s: float | None) -> AnswerCache:
        """Return the cache at a path or URI. It need not exist."""
        return cls(open_directory(location, drafts=".drafts"), expires_after_s)

    def check(self) -> None:
        """Refuse a place where there is no cache and none can be made. One that has begun may be there to read only.

        :raises InvalidInputError: with the place
        """
        try:
            if not self.directory.names(""):
                self.directory.write(_PROBE, b"")
                self.directory.delete(_PROBE)
        except Exception as error:  # noqa: BLE001 - each kind of storage has errors of its own
            raise InvalidInputError(
                "answer_cache",
                f"{self.directory} cannot be read or made ({error}). Use a directory that all workers may write to.",
            ) from None

    @contextmanager
    def answers(self, now: float, parse_output: Callable[[str], Parsed] | None) -> Iterator[CachedAnswers]:
        """Open the cache to look for answers.

        :param now: unix time
        :param parse_output: what answers have to satisfy; None where any text will do
        """
        table = (
            "CREATE TABLE answers (key BLOB, at INTEGER, segment TEXT, offset INTEGER, length INTEGER,"
            " PRIMARY KEY (key, at, segment, offset)) WITHOUT ROWID"
        )
        with scratch(table) as index, ExitStack() as copies:
            oldest = -math.inf if self.expires_after_s is None else now - self.expires_after_s
            yield CachedAnswers(self.directory, index, copies, now=now, oldest=oldest, parse_output=parse_output)

    def until(self, at: float) -> int:
        """Return the time after which an answer is not wanted.

        :param at: unix time at which it came
        """
        return NEVER if self.expires_after_s is None else min(math.ceil(at + self.expires_after_s), NEVER)


class CachedAnswers:
    """Finds answers. A folder is read when the first request asks for one of its answers."""

    def __init__(
        self,
        directory: JobDirectory,
        index: sqlite3.Connection,
        copies: ExitStack,
        *,
        now: float,
        oldest: float,
        parse_output: Callable[[str], Parsed] | None,
    ) -> None:
        self._directory, self._index, self._copies = directory, index, copies
        self._now, self._oldest, self._parse_output = now, oldest, parse_output
        self._paths: dict[str, Path] = {}
        self._folders: set[str] = set()
        self._damaged: set[str] = set()

    def find(self, key: bytes) -> CachedAnswer | None:
        """Return the newest answer to a content that is of use; None if there is none.

        :param key: see :class:`ContentKeys`
        """
        folder = _folder(key)
        if folder not in self._folders:
            self._read_folder(folder)
        answer, is_sure = self._found(key)
        if answer is None and not is_sure:
            self._read_folder(folder)
            answer, _ = self._found(key)
        return answer

    def _found(self, key: bytes) -> tuple[CachedAnswer | None, bool]:
        """Return the answer as far as segments are still there, and whether all are."""
        all_there = True
        query = "SELECT segment, offset, length FROM answers WHERE key = ? ORDER BY at DESC"
        for segment, offset, length in self._index.execute(query, (key,)).fetchall():
            if segment not in self._paths:
                continue
            try:
                answer = self._usable(_read(self._paths[segment], offset, length), segment)
            except FileNotFoundError:
                # Another job has just put it into a larger segment.
                del self._paths[segment]
                all_there = False
                continue
            if answer is not None:
                return answer, True
        return None, all_there

    def _usable(self, raw: bytes, segment: str) -> CachedAnswer | None:
        content = answer_in(raw)
        try:
            answer = None if content is None else _decoder.decode(content)
        except UNREADABLE:
            answer = None
        if answer is None:
            self._tell_of_damage(segment)
            return None
        return answer if self._parse_output is None else _checked(answer, self._parse_output)

    def _read_folder(self, folder: str) -> None:
        self._folders.add(folder)
        for _ in range(3):
            gone = False
            for name, until, _ in read_names(self._directory.names(folder)):
                segment = f"{folder}/{name}"
                if until < self._now or segment in self._paths:
                    continue
                try:
                    self._read_segment(segment)
                except FileNotFoundError:
                    gone = True
            if not gone:
                return

    def _read_segment(self, segment: str) -> None:
        path = self._copies.enter_context(self._directory.local(segment))
        is_damaged = False

        def wanted() -> Iterator[tuple[bytes, int, str, int, int]]:
            nonlocal is_damaged
            for head in heads(path):
                if head is None:
                    is_damaged = True
                elif head.until >= self._now and head.at >= self._oldest:
                    yield head.key, head.at, segment, head.offset, head.length

        self._index.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", wanted())
        self._paths[segment] = path
        if is_damaged:
            self._tell_of_damage(segment)

    def _tell_of_damage(self, segment: str) -> None:
        """Say it once for each segment: there may be a million lines."""
        if segment not in self._damaged:
            self._damaged.add(segment)
            log.warning("%s is damaged: what cannot be read of it is not used.", self._directory.path(segment))


class NewAnswers:
    """Answers on their way into a cache: gathered in local files, and then published, folder by folder.

    :param cache: where they go
    :param staging: an empty local directory
    """

    def __init__(self, cache: AnswerCache, staging: Path) -> None:
        self._cache, self._staging = cache, staging
        self._gathered: dict[str, _Gathered] = {}

    @property
    def directory(self) -> JobDirectory:
        """Where they go."""
        return self._cache.directory

    def add(self, key: bytes, at: float, answer: CachedAnswer) -> None:
        """Gather an answer.

        :param key: of the request's content
        :param at: unix time at which it came
        :param answer: the answer
        """
        folder = _folder(key)
        gathered = self._gathered.get(folder)
        if gathered is None:
            gathered = self._gathered[folder] = _Gathered(self._staging / folder.replace("/", "-"))
        until = self._cache.until(at)
        gathered.add(line(key, int(at), until, msgspec.json.encode(answer)), until)

    def publish(self, now: float) -> int:
        """Put what was gathered into the cache; what has expired there is removed.

        :param now: unix time
        :return: how many answers
        """
        directory = self.directory
        count = sum(gathered.answers for gathered in self._gathered.values())
        for folder, gathered in self._gathered.items():
            segments = read_names(directory.names(folder))
            useless = [segment for segment in segments if segment.until < now]
            small = [each for each in segments if each.until >= now and each.answers <= SMALL_SEGMENT]
            if len(small) >= MANY_SEGMENTS:
                useless += self._merged(folder, small, gathered, now)
            gathered.flush()
            directory.publish(gathered.path, f"{folder}/{new_name(gathered.until, gathered.answers)}")
            # Only now: whoever looks finds each answer in one or the other.
            for segment in useless:
                directory.delete(f"{folder}/{segment.name}")
        directory.clean(_STALE_DRAFT_S)
        return count

    def _merged(
        self, folder: str, segments: list[SegmentName], gathered: _Gathered, now: float
    ) -> Iterator[SegmentName]:
        """Add what is good of small segments, which are of no use then."""
        seen: set[bytes] = set()  # Digests of at most some thousands of lines, which may be large.
        for segment in segments:
            try:
                with self.directory.local(f"{folder}/{segment.name}") as path:
                    for head in heads(path):
                        if head is None or head.until < now:
                            continue
                        raw = _read(path, head.offset, head.length)
                        digest = hashlib.blake2b(raw, digest_size=16).digest()
                        if digest not in seen and answer_in(raw) is not None:
                            seen.add(digest)
                            gathered.add(raw, head.until)
            except FileNotFoundError:
                continue  # Another writer was faster.
            yield segment


class _Gathered:
    """The lines of a segment in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers = 0
        self.until = 0
        self._lines = bytearray()

    def add(self, raw: bytes, until: int) -> None:
        self._lines += raw
        self.answers += 1
        self.until = max(self.until, until)
        if len(self._lines) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        with self.path.open("ab") as sink:
            sink.write(self._lines)
        self._lines.clear()


def _folder(key: bytes) -> str:
    return f"v1/{key[:1].hex()}"


def _read(path: Path, offset: int, length: int) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.pread(handle, length, offset)
    finally:
        os.close(handle)


def _checked(answer: CachedAnswer, parse_output: Callable[[str], Parsed]) -> CachedAnswer | None:
    """Let today's output type read what was written: of its validators, which are code, the request says nothing."""
    if not answer.is_text:
        return None
    several = bytes(answer.output)[:1] == b"["
    try:
        texts = msgspec.json.decode(answer.output if several else b"[%b]" % answer.output, type=list[str])
    except UNREADABLE:
        return None  # Nobody who took it for a text had to decode it.
    parsed = [parse_output(text) for text in texts]
    if any(each.error is not None for each in parsed):
        return None
    values = [each.value for each in parsed]
    return msgspec.structs.replace(answer, output=msgspec.Raw(msgspec.json.encode(values if several else values[0])))


_decoder = msgspec.json.Decoder(CachedAnswer)
