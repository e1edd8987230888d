"""Lines of a batch's output and error files: https://platform.openai.com/docs/guides/batch#5-retrieve-the-results.

Services differ: Azure sends no ``id``, Voyage puts the message where the body belongs, older vLLM the whole answer.
So what a line needs to be of use is held to its type, and everything else is taken as it comes.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""All that decoding JSON from elsewhere can raise."""

NOT_RUN_CODES = frozenset({"batch_expired", "batch_cancelled"})
"""Error codes of requests that the batch ended before."""

ABSENT = msgspec.Raw(b"")


class LineResponse(msgspec.Struct, frozen=True):
    """What the model's endpoint answered. ``body`` stays undecoded until it is needed."""

    status_code: Any = None
    request_id: Any = None
    body: msgspec.Raw = ABSENT
    message: Any = None


class ResultLine(msgspec.Struct, frozen=True):
    """One line of an output or error file."""

    custom_id: Any = None
    response: LineResponse | None = None
    error: Any = None

    @property
    def key(self) -> str | None:
        """The custom_id as text, as it was sent; None if the line has none."""
        return None if self.custom_id is None else str(self.custom_id)

    @property
    def http_status(self) -> int | None:
        """The HTTP status of the model's endpoint; None if the request got no answer, or the service names none."""
        return None if self.response is None else integer(self.response.status_code)

    @property
    def error_code(self) -> str | None:
        """The batch's own error code, beside any answer."""
        return text(self.error.get("code")) if isinstance(self.error, dict) else None

    @property
    def is_success(self) -> bool:
        """Whether the endpoint answered with 2xx. Error lines with an HTTP status have a null ``error`` too."""
        if self.response is None or self.error:
            return False
        if self.response.status_code == 200:
            return True
        status = self.http_status
        # vLLM's old shape has no status; it writes refused requests with an ``error``.
        return status is None or 200 <= status < 300

    @property
    def ran(self) -> bool:
        """Whether the request reached the model, so that this was one of its attempts."""
        return self.error_code not in NOT_RUN_CODES


class _BareLine(msgspec.Struct, frozen=True):
    response: msgspec.Raw


_line_decoder = msgspec.json.Decoder(ResultLine)
_bare_decoder = msgspec.json.Decoder(_BareLine)


def parse_line(raw: bytes) -> ResultLine | None:
    """Read one line; None if it is not one.

    :param raw: the line, with or without its newline
    """
    try:
        # The decoder does not look at the characters of what stays undecoded.
        if not raw.isascii():
            raw.decode()
        return _unwrapped(_line_decoder.decode(raw), raw)
    except UNREADABLE:
        pass
    try:
        mended = _mended(raw)
        return _unwrapped(_line_decoder.decode(mended), mended)
    except UNREADABLE:
        return None


def text(value: object) -> str | None:
    """A code, message or name as text; None for null and ``""``."""
    return None if value is None or value == "" else str(value)


def integer(value: object) -> int | None:
    """A count or status from a number or digits, as it can be stored anywhere; None for anything else."""
    if type(value) is int and -(2**53) < value < 2**53:
        return value
    if isinstance(value, str) and value.isdecimal() and len(value) < 16:
        value = int(value)
    if not isinstance(value, (int, float)) or not -(2**53) < value < 2**53:
        return None
    return int(value)


def _unwrapped(line: ResultLine, raw: bytes) -> ResultLine:
    """Give the line its body also where the service put the answer into ``response`` itself."""
    response = line.response
    if response is None or response.body is not ABSENT or response.status_code is not None:
        return line
    body = _bare_decoder.decode(raw).response
    return msgspec.structs.replace(line, response=msgspec.structs.replace(response, body=body))


def _mended(raw: bytes) -> bytes:
    """Rewrite what a lenient reader understands as strict JSON.

    A model that is cut off within an emoji leaves half of a surrogate pair, which is paid for and worth keeping.
    """
    lenient = json.loads(raw.decode("utf-8-sig", "replace"), parse_constant=lambda _: None)
    return json.dumps(lenient, ensure_ascii=False).encode("utf-8", "replace")
