"""Which error an answer of the API with an error status stands for, and how long it asks to wait."""

from __future__ import annotations

import datetime
import email.utils
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from airflow_provider_openai_batches.api.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    QueueFullError,
    QuotaExhaustedError,
    RateLimitError,
    ServerError,
    TooLargeError,
    WrongPathError,
)

_REASON_CHARS = 2_000
_PAGE_CHARS = 300
_NAME_CHARS = 200
_TAG = re.compile(r"<[^<>]*>")
# Searched for in messages too: gateways wrap the original error into the message of their own.
_QUEUE_FULL = re.compile(
    r"token_limit_exceeded|enqueued (token|request) limit|enqueued tokens has surpassed", re.IGNORECASE
)
_USER_ACTION = re.compile(
    r"\b(insufficient_quota|billing_hard_limit_reached|billing_not_active|organization_spend_limit_exceeded"
    r"|project_spend_limit_exceeded|organization_usage_limit_exceeded)\b"
)
_CLASSES: dict[int, type[APIStatusError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: ServerError,
    409: ConflictError,
    413: TooLargeError,
    429: RateLimitError,
}


def is_queue_full(code: str | None, message: str | None) -> bool:
    """Whether an error says that the model's batch queue is full, in any of the shapes services use."""
    return bool(_QUEUE_FULL.search(f"{code} {message}"))


def status_error(
    call: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    redacted: Callable[[str], str] = str,
    base_url: str = "",
) -> APIStatusError:
    """Read an error response. Never raises: gateways send HTML, ints for codes, or nothing.

    :param call: method and path, for the message
    :param status: HTTP status, 400 or above
    :param headers: response headers, any spelling of names if the mapping is case-insensitive
    :param body: the body, or its beginning
    :param base_url: of the service, for an error that says that it may be the wrong one
    :param redacted: takes secrets out of what the error will show; the class is decided before
    """
    reason, code, kind, param = _envelope(body, redacted)
    evidence = f"{code} {kind} {reason}"
    if status in (400, 429) and is_queue_full(code, evidence):
        error_class: type[APIStatusError] = QueueFullError
    elif status in (400, 402, 403, 429) and _USER_ACTION.search(evidence):
        error_class = QuotaExhaustedError
    else:
        error_class = _CLASSES.get(status, ServerError if status >= 500 else BadRequestError)
    is_of_every_service = call.count("/") == 1
    if is_of_every_service and (status == 404 or (status == 405 and call.startswith("POST "))):
        error_class = WrongPathError
        call = f"{call} at {redacted(base_url)}" if base_url else call

    def shown(text: Any, most: int) -> Any:
        # Cut afterwards: the first half of a secret is not the secret that is looked for.
        return None if text is None else redacted(text)[:most]

    should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())
    return error_class(
        call,
        status=status,
        reason=shown(reason, _REASON_CHARS),
        code=shown(code, _NAME_CHARS),
        param=shown(param, _NAME_CHARS),
        request_id=shown(headers.get("x-request-id"), _NAME_CHARS),
        retry_after_s=retry_after(headers),
        # What only a person can solve stays permanent, whatever a gateway in between suggests.
        transient=None if error_class is QuotaExhaustedError else should_retry,
    )


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds the server asks to wait, from ``retry-after-ms`` or ``Retry-After`` (seconds or HTTP date).

    :param headers: response headers
    :param now: unix time a date is compared with; default: the clock
    :return: seconds, at least 0; None when absent, unreadable or not finite
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if not text:
            continue
        try:
            seconds = float(text) * scale
        except ValueError:
            moment = _http_date(text)
            if moment is None:
                continue
            seconds = moment - (time.time() if now is None else now)
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    return None


def _http_date(text: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()


def _envelope(body: bytes, redacted: Callable[[str], str]) -> tuple[str, str | None, str | None, str | None]:
    """Message, code, type and param of an error body. Only what is no JSON is redacted, and cut, already."""
    text = redacted(" ".join(_TAG.sub(" ", body.decode("utf-8", "replace")).split()))[:_PAGE_CHARS]
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = None
    error = (decoded.get("error") or decoded) if isinstance(decoded, Mapping) else decoded
    if isinstance(error, Mapping):
        code, kind, param = (
            None if error.get(name) is None else str(error[name]) for name in ("code", "type", "param")
        )
        return str(error.get("message") or error.get("detail") or text), code, kind, param
    if isinstance(error, str) and error:
        return error, None, None, None
    return text or "empty body", None, None, None
