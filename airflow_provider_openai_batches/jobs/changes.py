"""How a request is changed so that another attempt can succeed where the last one could not."""

from __future__ import annotations

from typing import Any

import msgspec

from airflow_provider_openai_batches.jobs.json_text import encode
from airflow_provider_openai_batches.jobs.lines import UNREADABLE

OUTPUT_CAPS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class LargerCap(msgspec.Struct, frozen=True):
    """Let the model write more.

    :param caps: new values of the token caps that the request has
    """

    caps: dict[str, int]


class Feedback(msgspec.Struct, frozen=True):
    """Show the model its answer and what is wrong with it.

    :param answer: what it wrote
    :param problem: the validator's message
    """

    answer: str
    problem: str


Change = LargerCap | Feedback


class _Line(msgspec.Struct):
    body: dict[str, Any]


class _InputLine(msgspec.Struct):
    class Body(msgspec.Struct):
        input: msgspec.Raw

    body: Body


class _RawLine(msgspec.Struct):
    body: msgspec.Raw


_line_decoder = msgspec.json.Decoder(_Line)
_input_decoder = msgspec.json.Decoder(_InputLine)
_raw_decoder = msgspec.json.Decoder(_RawLine)


def body_of(request: bytes) -> bytes:
    """Return the body of a request line as it was written."""
    return bytes(_raw_decoder.decode(request).body)


def larger_cap(request: bytes) -> LargerCap | None:
    """Double the token caps of a request line; None if it has none, so that only the model's own limit was met."""
    body = _line_decoder.decode(request).body
    caps = {name: body[name] * 2 for name in OUTPUT_CAPS if type(body.get(name)) is int and body[name] > 0}
    return LargerCap(caps) if caps else None


def input_is_list(request: bytes) -> bool:
    """Whether an embeddings request asks for several vectors, even if its list holds one text.

    A list of numbers is one text in tokens.
    """
    try:
        given = bytes(_input_decoder.decode(request).body.input)
    except UNREADABLE:
        return False
    return given[:1] == b"[" and given[1:].lstrip()[:1] in (b'"', b"[")


def asked_schema(request: bytes) -> dict[str, Any] | None:
    """Return the JSON schema that a request line asks for; None if it asks for none."""
    body = _line_decoder.decode(request).body
    for path in (("response_format", "json_schema", "schema"), ("text", "format", "schema")):
        found: Any = body
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, dict):
            return found
    return None


def changed(request: bytes, change: Change) -> bytes:
    """Return a request line with a change applied, without its newline.

    :param request: the line as it was sent last
    :param change: what to do differently
    """
    line = msgspec.json.decode(request)
    body = line["body"]
    if isinstance(change, LargerCap):
        body.update(change.caps)
    elif isinstance(body.get("messages"), list):
        body["messages"] = [*body["messages"], *_exchange(change)]
    elif "input" in body:
        given = body["input"]
        conversation = given if isinstance(given, list) else [{"role": "user", "content": given}]
        body["input"] = [*conversation, *_exchange(change)]
    return encode(line)


def _exchange(change: Feedback) -> list[dict[str, str]]:
    correction = f"{change.problem}\nAnswer my request again, with JSON that follows the schema and nothing else."
    return [{"role": "assistant", "content": change.answer}, {"role": "user", "content": correction}]
