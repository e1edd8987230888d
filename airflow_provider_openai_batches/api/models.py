"""What the API returns, as frozen structs that tolerate what servers really send.

Fields keep the API's names. Anything but an id may be absent, null, ``""``, capitalised or unknown: OpenAI's own
reference marks most fields optional, and compatible services differ further. Parsing never raises for such values.

Sources: https://platform.openai.com/docs/api-reference/batch/object and .../files/object.
"""

from __future__ import annotations

import datetime
import functools
import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

import msgspec

log = logging.getLogger(__name__)

ENDPOINTS = frozenset(
    {
        "/v1/responses",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/completions",
        "/v1/moderations",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/videos",
    }
)
"""The endpoints OpenAI documents for batches. Others are passed through: the list grows, and services add their own."""


class BatchStatus(StrEnum):
    """States of a batch: https://platform.openai.com/docs/guides/batch#4-check-the-status-of-a-batch."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


TERMINAL_STATUSES = frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
"""A batch in one of these never changes again."""

_STATUS_ALIASES = {"canceled": BatchStatus.CANCELLED, "canceling": BatchStatus.CANCELLING}
_KNOWN_STATUSES = {status.value: status for status in BatchStatus}
_LARGEST_INT = 2**63 - 1
_SHOWN_ERRORS = 100
"""Errors of a batch that XCom and trigger events carry. A failed batch may have one for each of its 50,000 lines."""


def parse_status(value: object) -> str:
    """Read a status in any spelling; an unknown one is returned in lower case and counts as not terminal."""
    text = one_line(str(value or "").strip().lower())
    status = _STATUS_ALIASES.get(text) or _KNOWN_STATUSES.get(text)
    if status is None:
        _warn_of_unknown(text)
        return text
    return status


@functools.lru_cache(maxsize=100)
def _warn_of_unknown(status: str) -> None:
    """Say so once per status: a listing shows it a hundred times a page, at every poll."""
    log.warning("Unknown batch status %r; treating it as not finished.", status)


_LONGEST_MESSAGE, _LONGEST_NAME = 2_000, 200
"""Characters of an error that are kept: it goes into logs and XComs, and patterns are looked for in it."""


class RequestCounts(msgspec.Struct, frozen=True):
    """How many requests of a batch are known, done and failed. All zero while the batch is validated."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    @classmethod
    def from_api(cls, value: object) -> Self:
        """Parse the API's object; missing members are 0."""
        counts = _mapping(value)
        return cls(*(_int(counts.get(name)) or 0 for name in ("total", "completed", "failed")))


class Usage(msgspec.Struct, frozen=True):
    """Tokens a batch used. Named as in the Responses API whatever the endpoint."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        # Spelled out, because it runs once per answered row.
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.total_tokens + other.total_tokens,
        )

    @classmethod
    def from_api(cls, value: object) -> Self | None:
        """Parse the API's ``usage`` object; None where the service sends none."""
        usage = _mapping(value)
        if not usage:
            return None
        return cls(
            input_tokens=_int(usage.get("input_tokens")) or 0,
            cached_tokens=_int(_mapping(usage.get("input_tokens_details")).get("cached_tokens")) or 0,
            output_tokens=_int(usage.get("output_tokens")) or 0,
            reasoning_tokens=_int(_mapping(usage.get("output_tokens_details")).get("reasoning_tokens")) or 0,
            total_tokens=_int(usage.get("total_tokens")) or 0,
        )


class BatchError(msgspec.Struct, frozen=True):
    """One reason why a batch failed validation. ``line`` counts from 1 and is None for the batch as a whole."""

    code: str | None = None
    message: str | None = None
    param: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        field = f" (field {self.param})" if self.param else ""
        return f"{where}{self.code or 'unknown_error'}: {self.message or 'no message'}{field}"


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as the API reports it. Times are unix seconds."""

    id: str
    status: str
    endpoint: str | None = None
    model: str | None = None
    errors: tuple[BatchError, ...] = ()
    input_file_id: str | None = None
    completion_window: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int | None = None
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: Usage | None = None
    metadata: dict[str, str] = {}

    @property
    def is_terminal(self) -> bool:
        """Whether the batch will never change again."""
        return self.status in TERMINAL_STATUSES

    def has_been(self, status: str) -> bool:
        """Whether the batch has this status, or had it on its way: polls miss what lasts shorter than their interval.

        :param status: any; the terminal ones only count while they hold, since services set their times wrongly
        """
        return self.status == status or (
            status not in TERMINAL_STATUSES and getattr(self, f"{status}_at", None) is not None
        )

    @property
    def none_succeeded(self) -> bool:
        """Whether requests are known, and not one of them was answered."""
        return self.request_counts.total > 0 and self.request_counts.completed == 0

    @property
    def bought_answers(self) -> bool:
        """Whether requests were answered, as the counts or, where a service sends none, the output file tell."""
        return self.request_counts.completed > 0 or (self.output_file_id is not None and not self.none_succeeded)

    @property
    def files_pending(self) -> bool:
        """Whether a completed batch has results that it does not name a file for yet, a matter of seconds.

        Where a service sends no counts, it has some: no batch is without requests.
        """
        counts = self.request_counts
        names_none = not self.output_file_id and not self.error_file_id
        return self.status == BatchStatus.COMPLETED and (
            (counts.completed > 0 and not self.output_file_id)
            or (counts.failed > 0 and not self.error_file_id)
            or (counts.total == 0 and names_none)
        )

    @classmethod
    def from_api(cls, value: Mapping[str, Any]) -> Self:
        """Parse a decoded batch object.

        :raises ValueError: it has no id, so it is no batch at all
        """
        batch_id = _str(value.get("id"))
        if batch_id is None:
            raise ValueError("not a batch object: it has no id")
        errors = value.get("errors")
        entries = errors.get("data") if isinstance(errors, Mapping) else errors
        if isinstance(entries, str) and entries:
            entries = [entries]
        texts: dict[str, Any] = {name: _str(value.get(name)) for name in _BATCH_TEXTS}
        times: dict[str, Any] = {name: parse_time(value.get(name)) for name in _BATCH_TIMES}
        return cls(
            id=batch_id,
            status=parse_status(value.get("status")),
            errors=tuple(_batch_error(entry) for entry in entries) if isinstance(entries, list) else (),
            request_counts=RequestCounts.from_api(value.get("request_counts")),
            usage=Usage.from_api(value.get("usage")),
            metadata={_text(key): _text(text) for key, text in _mapping(value.get("metadata")).items()},
            **texts,
            **times,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types under this struct's field names, for XCom and trigger events.

        Of more than 100 errors the first 100 are kept, and a last one says how many are left out.
        """
        shown = self
        left_out = len(self.errors) - _SHOWN_ERRORS
        # One more would only make room for the line that counts it, and what was shortened stays as it is.
        if left_out > 1:
            rest = BatchError(code="more_errors", message=f"{left_out:,} more errors are not shown")
            shown = msgspec.structs.replace(self, errors=(*self.errors[:_SHOWN_ERRORS], rest))
        fields: dict[str, Any] = msgspec.to_builtins(shown)
        return fields

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Read back what :meth:`to_dict` wrote, without the errors that it left out."""
        return msgspec.convert(value, cls)


_BATCH_TEXTS = ("endpoint", "model", "input_file_id", "completion_window", "output_file_id", "error_file_id")
_BATCH_TIMES = tuple(name for name in Batch.__struct_fields__ if name.endswith("_at"))


class File(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded or generated file. ``bytes`` is its size, times are unix seconds."""

    id: str
    bytes: int | None = None
    created_at: int | None = None
    expires_at: int | None = None
    filename: str | None = None
    purpose: str | None = None
    status: str | None = None

    @classmethod
    def from_api(cls, value: Mapping[str, Any]) -> Self:
        """Parse a decoded file object.

        :raises ValueError: it has no id, so it is no file at all
        """
        file_id = _str(value.get("id"))
        if file_id is None:
            raise ValueError("not a file object: it has no id")
        status = _str(value.get("status"))
        return cls(
            id=file_id,
            bytes=_int(value.get("bytes")),
            created_at=parse_time(value.get("created_at")),
            expires_at=parse_time(value.get("expires_at")),
            filename=_str(value.get("filename")),
            purpose=_str(value.get("purpose")),
            status=status.lower() if status else None,
        )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _batch_error(entry: object) -> BatchError:
    if not isinstance(entry, Mapping):
        return BatchError(message=_cut(entry, _LONGEST_MESSAGE))
    return BatchError(
        code=_cut(entry.get("code"), _LONGEST_NAME),
        message=_cut(entry.get("message"), _LONGEST_MESSAGE),
        param=_cut(entry.get("param"), _LONGEST_NAME),
        line=_int(entry.get("line")),
    )


def one_line(text: str) -> str:
    """Return a text of others as one line that neither forges a line of a log nor commands a terminal."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else " " if sign.isspace() else "\N{REPLACEMENT CHARACTER}" for sign in text
    )


def _str(value: object) -> str | None:
    """Text, or None for null and the empty string: services send ``""`` for a file that is not there."""
    return None if value is None or value == "" else one_line(_text(value))


def _cut(value: object, most: int) -> str | None:
    text = _str(value)
    return None if text is None else text[:most]


def _text(value: object) -> str:
    """Text without half surrogate pairs, which JSON may hold and no message can carry."""
    return str(value).encode(errors="replace").decode()


def _int(value: object) -> int | None:
    """A whole number, or None for what is none or has more than 64 bits, which MessagePack cannot carry."""
    try:
        number = int(value) if isinstance(value, (int, float, str)) else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and -_LARGEST_INT <= number <= _LARGEST_INT else None


_YEAR_10000 = 253_402_300_800


def parse_time(value: object) -> int | None:
    """Unix seconds from a number or an ISO 8601 text; 0 means "not yet" at some services.

    What no calendar has, such as milliseconds, is no time: everything that shows or compares times would break.
    """
    if isinstance(value, str) and not value.isdigit():
        try:
            moment = datetime.datetime.fromisoformat(value)
        except ValueError:
            return None
        return int(moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp())
    seconds = _int(value) or 0
    return seconds if 0 < seconds < _YEAR_10000 else None
