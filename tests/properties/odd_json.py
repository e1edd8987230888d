"""JSON as other programs write it: valid, nearly valid, and not at all."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**20, -(2**63), 10**400, 1e308, -0.0, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["\u2028", "\x85", "\ufeff", "\x00", "\x1f", "a\nb", "\U0001f600", "e\u0301", "\x7f"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def nested(depth: int, innermost: str = "1") -> str:
    """Lists within lists, as text."""
    return "[" * depth + innermost + "]" * depth


@st.composite
def spelled(draw: st.DrawFn, value: Any) -> bytes:
    """One line of JSON that means a value, in one of the spellings that are all right."""
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=None, separators=draw(_SEPARATORS))
    return draw(_BEFORE) + text.encode() + draw(_AFTER)


_SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " :\r")])
_BEFORE = st.sampled_from([b"", b" ", b"\t", b"\r"])
_AFTER = st.sampled_from([b"", b" ", b"\r", b" \t\r"])

FRAGMENTS = [
    b"",
    b" ",
    b"\xef\xbb\xbf",
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\x0b",
    b"\\ud800",
    b'"\\ud83d"',
    b"NaN",
    b"-Infinity",
    b"1e400",
    b"9" * 5_000,
    b'{"a":1,"a":2}',
    b"{}",
    b"[]",
    b"null",
    b"\x1f\x8b\x08\x00",
    b"<html>",
    b'"',
    b"{",
    b"}",
    b",",
    b"x" * 70_000,
    nested(200).encode(),
    nested(900).encode(),
    nested(995).encode(),
    nested(1_100).encode(),
    nested(100_000).encode(),
]


@st.composite
def spoiled(draw: st.DrawFn, line: bytes) -> bytes:
    """A line that something has happened to: cut, doubled, or with something else in it. Never two lines."""
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(line)))
        match draw(st.sampled_from(["cut", "put", "put", "swap", "double"])):
            case "cut":
                line = line[:at]
            case "put":
                line = line[:at] + draw(st.sampled_from(FRAGMENTS)) + line[at:]
            case "swap" if at < len(line):
                line = line[:at] + bytes([draw(st.integers(0, 255))]) + line[at + 1 :]
            case "double":
                line = line + line[at:]
    return line.replace(b"\n", b" ")
