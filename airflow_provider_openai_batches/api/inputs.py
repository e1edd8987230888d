"""What the API accepts, checked here before anything is sent or paid.

Limits and rules: https://platform.openai.com/docs/api-reference/batch/create and .../batch/request-input.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
from collections.abc import Container, Mapping
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.models import ENDPOINTS

log = logging.getLogger(__name__)

MAX_REQUESTS = 50_000
"""Requests in one batch."""

MAX_BYTES = 200_000_000
"""Bytes of one input file. "200 MB" may mean 200 * 2**20; the smaller reading is safe."""

MAX_EMBEDDING_INPUTS = 50_000
"""Inputs of all embeddings requests of one batch; one request may have several."""

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512

_CHARS_SHOWN = 200
_JSON_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
_NOT_CARRIED = re.compile("[\0\ud800-\udfff]")
"""Neither a URL nor a header nor a file's name can hold these: NUL, and half of a surrogate pair."""

EMBEDDINGS = "/v1/embeddings"
_EXPIRY_RANGE_S = (3_600, 2_592_000)
_REQUIRED_FIELDS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    EMBEDDINGS: "input",
    "/v1/moderations": "input",
    "/v1/images/generations": "prompt",
}


class InputSummary(msgspec.Struct, frozen=True):
    """What an input file holds."""

    requests: int
    bytes: int
    endpoint: str
    model: str | None


class _Body(msgspec.Struct):
    model: str | None = None
    stream: Any = None
    messages: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: _Body


_decode_line = msgspec.json.Decoder(_Line).decode


def check_input_file(
    stream: BinaryIO, name: str, *, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES
) -> InputSummary:
    """Read an input file once, line by line, and refuse what the API would refuse after the upload.

    :param stream: the file's content, JSONL in UTF-8
    :param name: what to call the file in errors
    :param max_requests: what the service takes
    :param max_bytes: likewise
    :raises InvalidInputError: with the line (from 1), the field and the remedy
    """
    first_seen: dict[str, int] = {}
    size = inputs = 0
    endpoint = model = None

    def refuse(message: str, line: int | None = None) -> InvalidInputError:
        return InvalidInputError("source", f"{name}, line {line}: {message}" if line else f"{name}: {message}")

    while line := stream.readline(max_bytes + 1):
        number = len(first_seen) + 1
        size += len(line)
        if size > max_bytes:
            raise refuse(
                f"the file is larger than {max_bytes:,} bytes, the API's limit. Split it into several batches."
            )
        if number > max_requests:
            raise refuse(f"the file has more than {max_requests:,} requests, the API's limit. Split it.", number)
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            raise refuse(
                'the file starts with a byte order mark; write it as plain UTF-8 ("utf-8", not "utf-8-sig").', 1
            )
        if not line.strip():
            raise refuse("the line is empty. Remove it: every line is one JSON request.", number)
        request = _parse_line(line, lambda message, at=number: refuse(message, at))
        if earlier := first_seen.get(request.custom_id):
            raise refuse(
                f"custom_id {shown(request.custom_id)} was already used in line {earlier}. Answers are matched by "
                "custom_id, so each must be unique in the file.",
                number,
            )
        first_seen[request.custom_id] = number
        if number == 1:
            endpoint, model = request.url, request.body.model
        if request.url != endpoint:
            raise refuse(
                f"url {shown(request.url)} differs from {shown(endpoint)} of line 1: one endpoint per batch.", number
            )
        if request.body.model != model:
            raise refuse(
                f"body.model {shown(request.body.model)} differs from {shown(model)} of line 1: "
                "OpenAI takes one model per batch. Write one file per model.",
                number,
            )
        if endpoint == EMBEDDINGS and (inputs := inputs + _embedding_inputs(request.body.input)) > MAX_EMBEDDING_INPUTS:
            raise refuse(
                f"the file has more than {MAX_EMBEDDING_INPUTS:,} inputs in all, the API's limit for embeddings. "
                "Split it.",
                number,
            )
    if endpoint is None:
        raise refuse("the file is empty: there is no request to send.")
    return InputSummary(len(first_seen), size, endpoint, model)


def _parse_line(line: bytes, refuse: Any) -> _Line:
    try:
        line.decode()  # the decoder does not look into texts it skips
        request = _decode_line(line)
    except msgspec.ValidationError as error:
        raise refuse(f"{error}. A line is {{custom_id: text, method: 'POST', url: endpoint, body: object}}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refuse(f"not valid JSON ({error}). Each line must be one complete JSON object in UTF-8.") from error
    if not request.custom_id:
        raise refuse("custom_id is empty. Give each request a unique text.")
    if request.method != "POST":
        raise refuse(f"method is {shown(request.method)}; the API takes only 'POST'.")
    if not request.url.startswith("/"):
        raise refuse(f"url is {shown(request.url)}; give the endpoint's path, e.g. '/v1/chat/completions'.")
    if request.url in ENDPOINTS and not request.body.model:
        raise refuse("body.model is missing. Name the model in every line.")
    required = required_field(request.url)
    has_content = required is None or bytes(getattr(request.body, required)) not in (b"", b"null")
    if fault := body_fault(request.url, stream=request.body.stream, has_content=has_content):
        raise refuse(fault)
    return request


def _embedding_inputs(content: msgspec.Raw) -> int:
    """Count what an embeddings request asks for: a text or a list of tokens is one, a list of either has several.

    Nothing is decoded: a line of 200 MB may have a hundred million of them.
    """
    text = memoryview(content)
    first = bytes(text[:_CHARS_SHOWN]).removeprefix(b"[").lstrip()[:1] if bytes(text[:1]) == b"[" else b""
    if first == b'"':
        return sum(1 for _ in _JSON_TEXT.finditer(text))
    return bytes(text).count(b"[") - 1 if first == b"[" else 1


def required_field(endpoint: str) -> str | None:
    """Name the body field an endpoint cannot do without, or None where it is not known or not only one."""
    return _REQUIRED_FIELDS.get(endpoint)


def body_fault(endpoint: str, *, stream: object, has_content: bool) -> str | None:
    """Say what the API would refuse in a request's body, with the remedy; None if nothing is known to be wrong.

    :param endpoint: where the request goes
    :param stream: the body's ``stream``
    :param has_content: whether the body has the endpoint's :func:`required_field`, and not as null
    """
    if stream:
        return "body.stream is set; batches do not stream. Remove it."
    if not has_content:
        return f"body.{required_field(endpoint)} is missing; {endpoint} needs it."
    return None


def shown(value: object) -> str:
    """Return a value as error messages show it: quoted, and its beginning if it is long."""
    text = repr(value)
    return text if len(text) <= _CHARS_SHOWN else f"{text[:_CHARS_SHOWN]}..."


def check_text(value: object, param: str) -> str:
    """Return a text that a URL, a header or a path can hold, or refuse what is none."""
    if not isinstance(value, str):
        raise InvalidInputError(param, f"expected a text, got {shown(value)}.")
    if found := _NOT_CARRIED.search(value):
        raise InvalidInputError(param, f"{shown(value)} has the character {found[0]!r}. Take it out.")
    return value


def check_path(value: Any, param: str, expected: str = "a path or URI") -> Any:
    """Return a place of files as it is, or refuse what is none: a template that rendered to nothing is the usual cause.

    :param value: text, path or ObjectStoragePath
    :param expected: what should be there, for the error
    """
    # Asked of the class: looking up a storage that is not installed fails, and is not this check's.
    is_place = isinstance(value, (str, os.PathLike)) or hasattr(type(value), "fs")
    if not is_place or str(value).strip() in ("", "None"):
        raise InvalidInputError(param, f"expected {expected}, got {shown(value)}.")
    check_text(str(value), param)
    return value


def check_id(value: object, param: str) -> str:
    """Return an id, or refuse what cannot be one: an empty XCom is the usual cause."""
    if not isinstance(value, str) or not value.strip() or value.strip() in ("None", "null"):
        raise InvalidInputError(param, f"expected an id, got {shown(value)}. Did the upstream task push one?")
    if value.strip() in (".", ".."):
        # Quoting cannot keep these in their place in a path.
        raise InvalidInputError(param, f"{shown(value)} is no id.")
    return check_text(value.strip(), param)


def check_endpoint(endpoint: str, known: Container[str] = ENDPOINTS, service: str = "OpenAI") -> str:
    """Return the endpoint; warn about one that the service does not document, refuse what is no path."""
    if not isinstance(endpoint, str) or not endpoint.startswith("/") or " " in endpoint:
        raise InvalidInputError("endpoint", f"expected a path like '/v1/chat/completions', got {shown(endpoint)}.")
    check_text(endpoint, "endpoint")
    if endpoint not in known:
        log.warning("Endpoint %s is not one %s documents for batches; passing it on.", endpoint, service)
    return endpoint


def check_completion_window(window: str, range_h: tuple[int, int] | None = None, service: str = "the service") -> str:
    """Return the completion window: OpenAI takes only ``24h``, other services also ``7d`` and the like.

    :param range_h: shortest and longest in hours; None if only the service knows
    """
    if not isinstance(window, str) or window[-1:] not in ("h", "d") or not window[:-1].isdecimal():
        raise InvalidInputError(
            "completion_window", f"expected a number of hours or days like '24h', got {shown(window)}."
        )
    if range_h is not None:
        least, most = range_h
        if not least <= int(window[:-1]) * (24 if window[-1] == "d" else 1) <= most:
            expected = f"only {least}h" if least == most else f"{least}h to {most}h"
            raise InvalidInputError("completion_window", f"{service} takes {expected}, got {shown(window)}.")
    return window


def check_metadata(metadata: Mapping[str, Any] | None, *, reserved: int = 0) -> dict[str, str]:
    """Return the metadata as a dict of texts.

    :param metadata: the user's pairs
    :param reserved: pairs the provider adds itself, of the 16 the API allows
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidInputError("metadata", f"expected a dict of texts, got {type(metadata).__name__}.")
    room = MAX_METADATA_PAIRS - reserved
    if len(metadata) > room:
        added = f"; {reserved} of the API's {MAX_METADATA_PAIRS} are the provider's own" if reserved else ""
        raise InvalidInputError("metadata", f"{len(metadata)} pairs are too many: at most {room}{added}.")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInputError("metadata", f"{shown(key)}: {shown(value)} must both be texts; convert with str().")
        if found := _HALF_A_CHARACTER.search(key + value):
            raise InvalidInputError("metadata", f"{shown(key)}: {shown(value)} has {found[0]!r}. Take it out.")
        if not 0 < len(key) <= MAX_METADATA_KEY_CHARS:
            raise InvalidInputError("metadata", f"key {shown(key)} must have 1 to {MAX_METADATA_KEY_CHARS} characters.")
        if len(value) > MAX_METADATA_VALUE_CHARS:
            raise InvalidInputError(
                "metadata",
                f"the value of {shown(key)} has {len(value)} characters, at most {MAX_METADATA_VALUE_CHARS} fit.",
            )
    return dict(metadata)


def check_expiry(
    value: int | Mapping[str, Any] | None,
    param: str,
    range_s: tuple[int, int] | None = _EXPIRY_RANGE_S,
    service: str = "OpenAI",
) -> dict[str, Any] | None:
    """Return the API's expiry object for seconds after creation, or None for the service's default.

    :param value: seconds (3,600 to 2,592,000), or the API's ``{"anchor": "created_at", "seconds": n}``
    :param param: the parameter's name, for errors
    :param range_s: seconds that may be chosen; None where there is no choice, and a file would stay for longer than its
        owner thinks
    """
    if value is None:
        return None
    if range_s is None:
        raise InvalidInputError(param, f"{service} does not let files expire by choice. Leave it out, or delete them.")
    seconds = value.get("seconds") if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and value.get("anchor", "created_at") != "created_at":
        raise InvalidInputError(param, f"the API knows only the anchor 'created_at', got {shown(value['anchor'])}.")
    least, most = range_s
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not least <= seconds <= most:
        raise InvalidInputError(
            param, f"expected {least:,} to {most:,} seconds ({_span(least)} to {_span(most)}), got {shown(value)}."
        )
    return {"anchor": "created_at", "seconds": seconds}


def _span(seconds: int) -> str:
    days, hours = divmod(seconds // 3_600, 24)
    return f"{days} days" if days else f"{hours} hour{'s' if hours > 1 else ''}"


def check_base_url(url: str) -> str:
    """Return the base URL without a trailing slash, or refuse what is not one."""
    if any(mark in url for mark in "@?#"):
        raise InvalidInputError(
            "host", "the base URL may hold neither query, fragment nor credentials: use the fields meant for them."
        )
    try:
        parts = urlsplit(url.strip())
        # urllib3 before 2.7 would ask for the host "a%20b".
        usable = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in parts.netloc
        )
    except ValueError:
        usable = False
    if not usable:
        # A word without a dot may be the key, in the wrong field.
        got = f"got {shown(url)}" if "." in url or ":" in url else "got something else, which is not shown"
        raise InvalidInputError("host", f"expected a base URL like 'https://api.openai.com/v1', {got}.")
    return url.strip().rstrip("/")
