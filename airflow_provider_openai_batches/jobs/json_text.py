"""Values of a row as JSON text that means the same to every reader, or the reason why there is none."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import uuid
from typing import Any

import msgspec

from airflow_provider_openai_batches.jobs.sources import RowError

CONTEXT_TYPES = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)
"""What columns of tables also hold. JSON has no such types; they become text (ISO 8601, digits, hex)."""

_SHOWN_CHARS = 80

_FREE = frozenset({str, int, bool, type(None)})
"""Types with nothing in them to check. Text that is no Unicode is found when it is encoded."""


def shown(value: object) -> str:
    """Show a value in an error: in short, since rows can be large, and without calling what rows bring along."""
    if type(value) is str:
        return repr(value) if len(value) <= _SHOWN_CHARS else f"{value[:_SHOWN_CHARS]!r}..."
    if isinstance(value, (float, bool, type(None))) or (isinstance(value, int) and abs(value) < 10**_SHOWN_CHARS):
        return repr(value)
    return f"a value of type {type(value).__name__}"


def check_json(value: Any, path: str, also: tuple[type, ...] = ()) -> Any:
    """Return a value that JSON can carry without loss, or refuse it.

    Encoders are too kind for data that is paid for: they write NaN as null, bytes as base64 and the key 1 as "1".

    :param value: what is to be encoded
    :param path: where it stands in the row, for the error
    :param also: types to let pass that become text
    :raises RowError: with the place of the first value that cannot be carried, and the remedy
    """
    try:
        _check(value, path, also)
    except RecursionError as error:
        raise RowError(f"{path} is nested too deeply, or contains itself.") from error
    return value


def _check(value: Any, path: str, also: tuple[type, ...]) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise RowError(f"{path} has the key {shown(key)}; keys must be text. Convert it with str().")
            if type(part) not in _FREE:
                _check(part, f"{path}.{key}", also)
    elif isinstance(value, (list, tuple)):
        if not _FREE.issuperset(map(type, value)):
            for position, part in enumerate(value):
                if type(part) not in _FREE:
                    _check(part, f"{path}[{position}]", also)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RowError(f"{path} is {value}, which JSON does not have. Replace it, e.g. with None.")
    elif not isinstance(value, (str, int, bool, type(None), *also)):
        raise RowError(
            f"{path} is of type {type(value).__name__}, which JSON does not have. "
            "Convert it to text, a number, a list or a dict."
        )


def _plain(value: Any) -> Any:
    """Give the encoder the plain form of a subclass it does not know, such as NumPy's float64."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        return int.__int__(value)
    raise RowError(f"a value of type {type(value).__name__} cannot be written as JSON.")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def encode(value: Any) -> bytes:
    """Write a checked value as one line of JSON in UTF-8.

    :raises RowError: it holds text that is no Unicode, or a number too long to write
    """
    try:
        text = _encode(value)
    except UnicodeEncodeError as error:
        raise RowError(
            f"text holds half a character ({error.object[error.start]!r}), which UTF-8 cannot carry. "
            "Clean it, e.g. with text.encode('utf-8', 'replace').decode()."
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise RowError(f"cannot be written as JSON ({error}).") from error
    return text if text.isascii() else _without_line_ends(text)


_SEPARATORS = re.compile(rb"\xe2\x80[\xa8\xa9]")
_NEXT_LINE = re.compile(rb"\xc2\x85")


def _without_line_ends(text: bytes) -> bytes:
    """Escape what some readers (str.splitlines is one) take for the end of a line.

    Single bytes are found fastest, and then patterns that begin with fixed ones: most text has none of these.
    """
    if b"\xe2" in text:
        text = _SEPARATORS.sub(_escaped, text)
    if b"\x85" in text:
        text = _NEXT_LINE.sub(_escaped, text)
    return text


def _escaped(found: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(found[0].decode())
