"""The files of one round, and where in them each row's lines are."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self, TypeAlias

import msgspec

from airflow_provider_openai_batches.api.models import one_line
from airflow_provider_openai_batches.jobs.lines import ResultLine, parse_line

_OUTPUT, _ERRORS = 0, 1
_QUOTES = 5
_QUOTED_BYTES = 200
_BUFFER_BYTES = 1 << 18


class RoundFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Local files of one round that came to an end.

    :param batch_id: the batch; None if the round was sent without one
    :param batch_status: its terminal status
    :param requests: the lines that were sent
    :param output: the batch's output file, if it has one
    :param errors: the batch's error file, if it has one
    :param direct: whether its requests were sent one by one, without a batch
    """

    batch_id: str | None
    batch_status: str
    requests: Path
    output: Path | None = None
    errors: Path | None = None
    direct: bool = False


class Oddities(msgspec.Struct):
    """Lines of output and error files that belong to no row. They are reported and change nothing.

    :param duplicates: further lines for a row that has one; the first with 2xx counts, else the first
    :param unknown: lines whose custom_id was not sent in this round
    :param broken: lines that are not JSON, or of another shape
    :param quotes: the beginning of the first few unknown and broken lines, with their place
    """

    duplicates: int = 0
    unknown: int = 0
    broken: int = 0
    quotes: list[str] = []

    def quote(self, what: str, path: Path, number: int, raw: bytes) -> None:
        """Keep a line for the report, unless there are enough."""
        if len(self.quotes) < _QUOTES:
            shown = one_line(raw[:_QUOTED_BYTES].decode("utf-8", "replace").strip())
            self.quotes.append(f"{path.name}, line {number}: {what}: {shown}")


Place: TypeAlias = tuple[int, int, int]
"""Where a line is: file, offset and length."""

NOWHERE: Place = (0, 0, 0)


class LineIndex:
    """Where each row's line is, in arrays: 17 bytes a row, whatever the size of the lines.

    :param rows: rows of the shard
    """

    def __init__(self, rows: int) -> None:
        self._offsets = array("Q", bytes(8 * rows))
        self._lengths = array("Q", bytes(8 * rows))
        self._files = bytearray(rows)

    def __getitem__(self, position: int) -> Place:
        return self._files[position], self._offsets[position], self._lengths[position]

    def __setitem__(self, position: int, place: Place) -> None:
        self._files[position], self._offsets[position], self._lengths[position] = place


def read_requests(path: Path, positions: Mapping[str, int]) -> Iterator[tuple[int, int, bytes]]:
    """Iterate over the lines of a request file.

    :param path: the file
    :param positions: the shard's rows by custom_id
    :return: position of the row, offset of the line, and the line without its newline
    """
    for offset, raw in _lines(path):
        yield positions[_request_decoder.decode(raw).custom_id], offset, raw.rstrip(b"\n")


class RoundReader:
    """Reads single lines of one round, wherever they are in its files.

    :param files: the round
    :param positions: the shard's rows by custom_id
    """

    def __init__(self, files: RoundFiles, positions: Mapping[str, int]) -> None:
        self.files = files
        self._positions = positions
        self._requests: LineIndex | None = None
        self._handles: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def answers(self, sent: bytearray, oddities: Oddities) -> Iterator[tuple[int, Place, ResultLine | None]]:
        """Iterate over the rows that the round sent, each with the line that counts: the first 2xx one, else the first.

        Rows come in the order of the files, those without a 2xx line last.

        :param sent: which rows the round sent, by position
        :param oddities: takes note of lines that belong to no row
        :return: position, place and line; None for a row that has no line
        """
        succeeded = bytearray(len(sent))
        others = LineIndex(len(sent))
        for file, path in ((_OUTPUT, self.files.output), (_ERRORS, self.files.errors)):
            if path is None:
                continue
            for number, (offset, raw) in enumerate(_lines(path), start=1):
                if raw.isspace():
                    continue
                line = parse_line(raw)
                if line is None:
                    oddities.broken += 1
                    oddities.quote("not a result", path, number, raw)
                    continue
                position = self._positions.get(line.key or "")
                if position is None or not sent[position]:
                    oddities.unknown += 1
                    oddities.quote("no request of this batch", path, number, raw)
                    continue
                known = succeeded[position] or others[position] != NOWHERE
                oddities.duplicates += known
                if line.is_success and not succeeded[position]:
                    succeeded[position] = True
                    yield position, (file, offset, len(raw)), line
                elif not known:
                    others[position] = (file, offset, len(raw))
        for position in range(len(sent)):
            if sent[position] and not succeeded[position]:
                yield position, others[position], self.answer(others[position])

    def answer(self, place: Place) -> ResultLine | None:
        """Read the answer at a place; None for nowhere."""
        file, offset, length = place
        path = self.files.errors if file == _ERRORS else self.files.output
        return parse_line(self._read(path, offset, length)) if length and path else None

    def request(self, position: int) -> bytes:
        """Read the line that was sent for a row."""
        if self._requests is None:
            # Few rows ask, and most rounds have none that does.
            self._requests = LineIndex(len(self._positions))
            for row, offset, raw in read_requests(self.files.requests, self._positions):
                self._requests[row] = (0, offset, len(raw))
        _, offset, length = self._requests[position]
        return self._read(self.files.requests, offset, length)

    def _read(self, path: Path, offset: int, length: int) -> bytes:
        if path not in self._handles:
            self._handles[path] = os.open(path, os.O_RDONLY)
        return os.pread(self._handles[path], length, offset)


class _RequestLine(msgspec.Struct):
    custom_id: str


_request_decoder = msgspec.json.Decoder(_RequestLine)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each line. Only a newline ends one: U+2028 and its like are text."""
    offset = 0
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        for raw in file:
            yield offset, raw
            offset += len(raw)
