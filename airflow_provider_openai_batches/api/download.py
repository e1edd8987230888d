"""A file's content to disk: streamed, verified, and never half there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import requests

from airflow_provider_openai_batches.api.errors import BadRequestError, DownloadIncompleteError, InvalidResponseError
from airflow_provider_openai_batches.api.session import ServiceSession

_CHUNK_BYTES = 1 << 20
_MOST_DIGITS = 18
LONGEST_LINE_BYTES = 1 << 29
"""Whoever reads a file by lines holds one in memory. The longest known come to 280 MB: ten choices, each with the 20
likeliest tokens at each place. 2,048 vectors of an embeddings request are 133 MB."""


def download(
    session: ServiceSession,
    file_id: str,
    destination: Path,
    *,
    retry: Callable[[Callable[[], int]], int],
    check: Callable[[Path], None] | None = None,
    by_lines: bool = True,
) -> int:
    """Write the content of a file to ``destination``, which appears whole or not at all.

    :param session: where from
    :param file_id: the file
    :param destination: local path; its directory has to exist
    :param retry: runs one attempt under the client's retry policy
    :param check: called with the path of the finished content before it gets its name; what it raises leaves
        ``destination`` as it was
    :param by_lines: whether anybody will read it by lines, so that none may be endless
    :return: size in bytes
    """
    # Without the destination's name: that may be as long as names can be.
    part = destination.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as sink:
            size = retry(_Download(session, file_id, sink, by_lines=by_lines).attempt)
            sink.flush()
            os.fsync(sink.fileno())
        if check is not None:
            check(part)
        part.replace(destination)
    finally:
        part.unlink(missing_ok=True)
    return size


class Partial(NamedTuple):
    """What a batch that may go on has answered.

    :param lines: answers written; blank lines are none
    :param next_offset: where to go on reading
    :param is_complete: whether no more will come
    """

    lines: int
    next_offset: int
    is_complete: bool


def download_partial(
    session: ServiceSession,
    file_id: str,
    destination: Path,
    offset: int,
    *,
    is_over: bool,
    retry: Callable[[Callable[[], int]], int],
) -> Partial:
    """Write the whole lines that a growing file has behind an offset; ``destination`` appears whole or not at all.

    Doubleword serves an output file while its batch goes on, from the line ``offset``, and says in ``X-Incomplete``
    whether more will come: github.com/doublewordai/control-layer, dwctl/src/api/handlers/files.rs.

    :param session: where from
    :param file_id: the file
    :param destination: local path; its directory has to exist
    :param offset: lines to leave out
    :param is_over: whether the batch was over before, so that no more will come if the service does not say
    :param retry: runs one attempt under the client's retry policy
    """
    part = destination.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("w+b") as sink:
            coming = _Download(session, file_id, sink, params={"offset": offset})
            retry(coming.attempt)
            is_complete = is_over if coming.incomplete is None else coming.incomplete.lower() != "true"
            lines = _keep_answers(sink, file_id, is_complete=is_complete)
        part.replace(destination)
    finally:
        part.unlink(missing_ok=True)
    return Partial(lines, offset + lines, is_complete)


def _keep_answers(sink: BinaryIO, file_id: str, *, is_complete: bool) -> int:
    """Cut off a last line that is still being written, and comes whole next time; return the number of answers.

    :raises DownloadIncompleteError: no more will come, and the last line is not whole
    """
    sink.seek(0)
    lines, line = 0, b""
    for line in sink:
        lines += not line.isspace()
    if line.endswith(b"\n") or not line.strip():
        return lines
    if not is_complete:
        sink.truncate(sink.tell() - len(line))
        return lines - 1
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DownloadIncompleteError(
            f"File {file_id} ended within answer {lines:,}. Try again in a minute."
        ) from error
    sink.write(b"\n")
    return lines


class _Version(NamedTuple):
    """An unchanging version of the content, of which the server hands out byte ranges."""

    etag: str
    total: int


class _Download:
    """One file on its way; an attempt goes on where the last one was cut, if the server proved that it can.

    The proof is ``Accept-Ranges: bytes`` with a strong ``ETag``: without an unchanging version to name, a range could
    splice two contents together. OpenAI documents no ranges, so starting over is the normal case.
    """

    def __init__(
        self,
        session: ServiceSession,
        file_id: str,
        sink: BinaryIO,
        *,
        by_lines: bool = True,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self.session, self.file_id, self.sink, self.by_lines = session, file_id, sink, by_lines
        self.params = params
        self.version: _Version | None = None
        self.incomplete: str | None = None
        """What the service says of a file that may grow."""
        self.line_bytes = 0
        """Of the line that goes on at the end of what is there."""

    def attempt(self) -> int:
        start = self.sink.tell() if self.version else 0
        headers = {"Accept": "application/octet-stream, */*"}
        if self.version and start:
            headers |= {"Range": f"bytes={start}-", "If-Range": self.version.etag}
        with closing(self._content(headers)) as response:
            self.incomplete = response.headers.get("x-incomplete")
            if response.status_code == 206:
                # A part that nobody asked for is not the content, whatever it says of itself.
                if not (start and self.version and _continues(response, start, self.version)):
                    raise self._changed()
                expected: int | None = self.version.total
            else:
                self.sink.seek(0)
                self.sink.truncate()
                self.line_bytes = 0
                expected = _content_length(response)
                self.version = _offered(response, expected)
            try:
                for chunk in response.iter_content(_CHUNK_BYTES):
                    self.sink.write(chunk)
                    if self.by_lines:
                        self._measure(chunk)
            except requests.RequestException as error:
                raise self._incomplete(expected) from error
        if expected is not None and self.sink.tell() != expected:
            raise self._incomplete(expected)
        return self.sink.tell()

    def _content(self, headers: dict[str, str]) -> requests.Response:
        """Ask for the content, or the rest of it.

        :raises InvalidResponseError: the answer is a page for people, or no content at all
        """
        try:
            response = self.session.send(
                "GET",
                "files",
                self.file_id,
                "content",
                params=self.params,
                headers=headers,
                follow_redirects=True,
                transfer=True,
            )
        except BadRequestError as error:
            if error.status != 416:
                raise
            raise self._changed() from error
        is_page = response.headers.get("content-type", "").lower().startswith("text/html")
        if response.status_code not in (200, 206) or is_page:
            response.close()
            raise InvalidResponseError(
                f"The content of file {self.file_id} was answered with HTTP {response.status_code} and "
                f"{'an HTML page' if is_page else 'no content'}. Something between here and the service does not speak "
                "the API: check the connection's host and the network's proxy."
            )
        return response

    def _measure(self, chunk: bytes) -> None:
        end = chunk.rfind(b"\n")
        self.line_bytes = self.line_bytes + len(chunk) if end < 0 else len(chunk) - end - 1
        if self.line_bytes > LONGEST_LINE_BYTES:
            raise InvalidResponseError(
                f"File {self.file_id} has a line of more than {LONGEST_LINE_BYTES:,} bytes, too long to be read into "
                "memory; nothing was written here, and the file stays at the service. If the connection's host does "
                "serve batches, fetch the file as it is, with the hook's download_file or `openai-batches results`."
            )

    def _changed(self) -> DownloadIncompleteError:
        self.version = None
        return DownloadIncompleteError(f"File {self.file_id} changed on the way; starting over.")

    def _incomplete(self, expected: int | None) -> DownloadIncompleteError:
        of = "an unknown number of" if expected is None else f"{expected:,}"
        return DownloadIncompleteError(f"File {self.file_id} ended after {self.sink.tell():,} of {of} bytes.")


def _content_length(response: requests.Response) -> int | None:
    """Announced size of the content, unless it is of the compressed form."""
    length = response.headers.get("content-length", "")
    if response.status_code != 200 or response.headers.get("content-encoding", "identity") != "identity":
        return None
    return int(length) if length.isdecimal() and len(length) <= _MOST_DIGITS else None


def _offered(response: requests.Response, total: int | None) -> _Version | None:
    etag = response.headers.get("etag", "")
    if total is None or response.headers.get("accept-ranges") != "bytes" or not etag.startswith('"'):
        return None
    return _Version(etag, total)


def _continues(response: requests.Response, start: int, version: _Version) -> bool:
    expected = f"bytes {start}-{version.total - 1}/{version.total}"
    return (
        response.headers.get("content-range") == expected
        and response.headers.get("etag", version.etag) == version.etag
        and response.headers.get("content-encoding", "identity") == "identity"
    )
