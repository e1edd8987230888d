"""Files of answers in an answer cache: many answers each, never changed, told to be good or bad line by line.

A line is ``<key> <at> <until> <digest> <answer>``: the request's content key (64 hex digits), unix times (12 digits) at
which the answer came and after which whoever wrote it does not want it used, a digest of all the rest of the line (32
hex digits), and the answer as JSON. The name of a file, ``<until>-<answers>-<random>.txt``, has the latest time of its
lines and their number, so that nobody has to open it to know whether it is over, or worth merging.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KEY_BYTES = 32
NEVER = 999_999_999_999
"""Time of what does not expire."""

_HEAD = re.compile(rb"([0-9a-f]{64}) ([0-9]{12}) ([0-9]{12}) ([0-9a-f]{32}) (?=\{)")
_NAME = re.compile(r"([0-9]{12})-([0-9]{9})-[0-9a-f]{32}\.txt")
_DIGEST_BYTES = 16
_BUFFER_BYTES = 1 << 18


class SegmentName(NamedTuple):
    """What a segment's name tells."""

    name: str
    until: int
    """Unix time after which none of its answers is wanted."""
    answers: int


class Head(NamedTuple):
    """What is in a line before the answer, and where the line is."""

    key: bytes
    at: int
    until: int
    offset: int
    length: int


def new_name(until: int, answers: int) -> str:
    """Name a new segment, unlike any other."""
    return f"{until:012d}-{answers:09d}-{uuid.uuid4().hex}.txt"


def read_names(names: list[str]) -> list[SegmentName]:
    """Return the segments among the names of a folder. What else lies there is not ours."""
    found = ((name, _NAME.fullmatch(name)) for name in names)
    return [SegmentName(name, int(match[1]), int(match[2])) for name, match in found if match is not None]


def line(key: bytes, at: int, until: int, answer: bytes) -> bytes:
    """Write an answer down.

    :param key: of the request's content
    :param at: unix time at which it came
    :param until: unix time after which it is not wanted
    :param answer: a JSON object in one line
    """
    head = b"%b %012d %012d" % (key.hex().encode(), at, until)
    return b"%b %b %b\n" % (head, _digest(head, answer), answer)


def answer_in(raw: bytes) -> bytes | None:
    """Return a line's answer; None if any of the line is not as it was written.

    :param raw: the line with its newline
    """
    match = _HEAD.match(raw)
    if match is None or raw[-1:] != b"\n":
        return None
    answer = raw[match.end() : -1]
    return answer if _digest(raw[: match.end(3)], answer) == match[4] else None


def heads(path: Path) -> Iterator[Head | None]:
    """Iterate over a segment's lines; None for one that is none. Answers are not looked at.

    :param path: local copy of the segment
    """
    offset = 0
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        for raw in file:
            match = _HEAD.match(raw)
            if match is None or raw[-1:] != b"\n":
                yield None
            else:
                yield Head(bytes.fromhex(match[1].decode()), int(match[2]), int(match[3]), offset, len(raw))
            offset += len(raw)


def _digest(head: bytes, answer: bytes) -> bytes:
    return hashlib.blake2b(head + b" " + answer, digest_size=_DIGEST_BYTES).hexdigest().encode()
