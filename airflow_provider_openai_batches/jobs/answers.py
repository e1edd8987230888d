"""What a model's answer says: its output, how it ended and what it used, whatever the endpoint.

Sources: https://platform.openai.com/docs/api-reference/chat/object, .../responses/object and .../embeddings/object.
"""

from __future__ import annotations

import base64
import math
import re
from array import array
from collections.abc import Callable
from enum import Enum, auto
from typing import Annotated, Any

import msgspec

from airflow_provider_openai_batches.api.models import Usage
from airflow_provider_openai_batches.jobs.lines import ABSENT, UNREADABLE, text


class Ending(Enum):
    """How an answer ended."""

    COMPLETE = auto()
    TRUNCATED = auto()
    """Cut off by the token cap."""

    FILTERED = auto()
    """Stopped by the service's content filter."""

    REFUSED = auto()
    """The model declined."""

    FAILED = auto()
    """The service gave up and says why."""

    EMPTY = auto()
    """Nothing in it that could be an answer."""

    UNUSABLE = auto()
    """An answer that cannot be worked with, such as a vector that holds NaN. The message says why."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer with HTTP status 2xx.

    :param ending: how it ended
    :param output: text for chat and responses (a list of texts for ``n`` choices; the message or the items for tool
        calls), vector or list of vectors for embeddings, the body for any other endpoint. JSON text, in parts
    :param is_text: whether the output is what the model wrote
    :param finish_reason: the service's own word for the ending
    :param model: the model that answered, usually a snapshot's name
    :param usage: tokens
    :param code: error code of an answer that is not complete, where the service gives one
    :param message: the refusal, the service's explanation, or what makes the answer unusable
    """

    ending: Ending
    output: Any = None
    is_text: bool = False
    finish_reason: str | None = None
    model: str | None = None
    usage: Usage | None = None
    code: str | None = None
    message: str | None = None


def read_answer(body: msgspec.Raw, endpoint: str, input_is_list: Callable[[], bool]) -> Answer:
    """Read the body of an answer with HTTP status 2xx. Never raises: a body of an unknown shape is empty.

    :param body: the response's body
    :param endpoint: path of the requests, with or without ``/v1``
    :param input_is_list: asked for a single vector: whether the request's input was a list
    """
    try:
        if endpoint.endswith("/chat/completions"):
            return _chat(_chat_decoder.decode(body))
        if endpoint.endswith("/responses"):
            return _response(_response_decoder.decode(body))
        if endpoint.endswith("/embeddings"):
            return _embeddings(_embeddings_decoder.decode(body), input_is_list)
        return _anything(body)
    except UNREADABLE:
        return Answer(ending=Ending.EMPTY)


# --- usage -----------------------------------------------------------------------------------------------------------

_Tokens = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class _TokenDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None
    reasoning_tokens: _Tokens | None = None


_NO_DETAILS = _TokenDetails()


class _WireUsage(msgspec.Struct):
    """Either endpoint's names."""

    input_tokens: _Tokens | None = None
    prompt_tokens: _Tokens | None = None
    input_tokens_details: _TokenDetails | None = None
    prompt_tokens_details: _TokenDetails | None = None
    output_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    output_tokens_details: _TokenDetails | None = None
    completion_tokens_details: _TokenDetails | None = None
    total_tokens: _Tokens | None = None


class _Body(msgspec.Struct):
    model: Any = None
    # Undecoded, so that odd numbers in it do not cost the answer beside it.
    usage: msgspec.Raw = ABSENT


_usage_decoder = msgspec.json.Decoder(_WireUsage | None)


def _usage(raw: msgspec.Raw) -> Usage | None:
    if raw is ABSENT:
        return None
    try:
        wire = _usage_decoder.decode(raw)
    except UNREADABLE:
        return None
    if wire is None:
        return None
    spent = wire.input_tokens or wire.prompt_tokens or 0
    made = wire.output_tokens or wire.completion_tokens or 0
    read = wire.input_tokens_details or wire.prompt_tokens_details or _NO_DETAILS
    written = wire.output_tokens_details or wire.completion_tokens_details or _NO_DETAILS
    return Usage(spent, read.cached_tokens or 0, made, written.reasoning_tokens or 0, wire.total_tokens or spent + made)


# --- chat completions ------------------------------------------------------------------------------------------------


class _Message(msgspec.Struct, omit_defaults=True):
    # Text stays as it was written: most of it goes to the result row and nobody looks at it on the way.
    content: msgspec.Raw = ABSENT
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: Any = None


class _ChatBody(_Body):
    choices: list[_Choice] = []


class _Part(msgspec.Struct):
    type: Any = None
    text: msgspec.Raw = ABSENT
    refusal: Any = None


_chat_decoder = msgspec.json.Decoder(_ChatBody)
_parts_decoder = msgspec.json.Decoder(list[_Part])


def _chat(body: _ChatBody) -> Answer:
    outputs = [_said(choice.message) for choice in body.choices]
    reasons = [choice.finish_reason for choice in body.choices]
    refusals = [choice.message.refusal for choice in body.choices if choice.message.refusal]
    if "length" in reasons:
        ending = Ending.TRUNCATED
    elif "content_filter" in reasons:
        ending = Ending.FILTERED
    elif refusals:
        ending = Ending.REFUSED
    elif not outputs or None in outputs:
        ending = Ending.EMPTY
    else:
        ending = Ending.COMPLETE
    return Answer(
        ending=ending,
        output=outputs[0] if len(outputs) == 1 else outputs,
        is_text=_Message not in map(type, outputs),
        finish_reason=text(reasons[0]) if reasons else None,
        model=text(body.model),
        usage=_usage(body.usage),
        message=text(refusals[0]) if refusals else None,
    )


def _said(message: _Message) -> msgspec.Raw | _Message | None:
    """The message's text, or all of it where there is none but something to do."""
    said = message.content
    if _kind(said) == b"[":
        said = _joined([part.text for part in _parts_decoder.decode(said) if part.type == "text"])
    is_text = _kind(said) == b'"'
    if (not is_text or len(said) == 2) and (message.tool_calls or message.function_call or message.audio):
        return message
    return said if is_text else None


# --- responses -------------------------------------------------------------------------------------------------------


class _IncompleteDetails(msgspec.Struct):
    reason: Any = None


class _Failure(msgspec.Struct):
    code: Any = None
    message: Any = None


class _ResponseBody(_Body):
    output: list[msgspec.Raw] = []
    status: Any = None
    incomplete_details: _IncompleteDetails | None = None
    error: _Failure | None = None


class _Item(msgspec.Struct):
    type: Any = None
    content: msgspec.Raw = ABSENT


_response_decoder = msgspec.json.Decoder(_ResponseBody)
_item_decoder = msgspec.json.Decoder(_Item)


def _response(body: _ResponseBody) -> Answer:
    parts: list[_Part] = []
    actions: list[msgspec.Raw] = []
    for raw in body.output:
        item = _item_decoder.decode(raw)
        if item.type == "message":
            parts += _parts_decoder.decode(item.content)
        elif item.type != "reasoning":
            actions.append(raw)
    texts = [part.text for part in parts if part.type == "output_text" and _kind(part.text) == b'"']
    refusal = next((text(part.refusal) for part in parts if part.type == "refusal"), None)
    status = text(body.status)
    reason = text(body.incomplete_details.reason) if body.incomplete_details else None
    failure = body.error or _Failure()
    if reason == "max_output_tokens":
        ending = Ending.TRUNCATED
    elif reason == "content_filter":
        ending = Ending.FILTERED
    elif status not in (None, "completed"):
        ending = Ending.FAILED
    elif refusal:
        ending = Ending.REFUSED
    elif not texts and not actions:
        ending = Ending.EMPTY
    else:
        ending = Ending.COMPLETE
    # A text is always readable.
    problem = None if texts or ending is not Ending.COMPLETE else next(filter(None, map(_unreadable, actions)), None)
    return Answer(
        ending=Ending.UNUSABLE if problem else ending,
        output=_joined(texts) if texts else actions,
        is_text=bool(texts),
        finish_reason=reason or status,
        model=text(body.model),
        usage=_usage(body.usage),
        code=text(failure.code) or reason or status,
        message=problem or refusal or text(failure.message),
    )


# --- embeddings and the rest -----------------------------------------------------------------------------------------


class _Embedding(msgspec.Struct):
    # As it was written: no digit changes, and 1,536 floats are hardly ever built.
    embedding: msgspec.Raw
    index: int = 0


class _EmbeddingsBody(_Body):
    data: list[_Embedding] = []


_embeddings_decoder = msgspec.json.Decoder(_EmbeddingsBody)


def _embeddings(body: _EmbeddingsBody, input_is_list: Callable[[], bool]) -> Answer:
    vectors = [item.embedding for item in sorted(body.data, key=lambda item: item.index)]
    problem = None
    if not vectors or any(bytes(vector) == b"null" for vector in vectors):
        ending = Ending.EMPTY
    elif problem := next(filter(None, map(_vector_fault, range(len(vectors)), vectors)), None):
        ending = Ending.UNUSABLE
    else:
        ending = Ending.COMPLETE
    single = ending is Ending.COMPLETE and len(vectors) == 1 and not input_is_list()
    return Answer(
        ending=ending,
        output=vectors[0] if single else vectors,
        model=text(body.model),
        usage=_usage(body.usage),
        message=problem,
    )


_LARGEST = 3.4028234663852886e38
_Number = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
_vector_decoder = msgspec.json.Decoder(Annotated[list[_Number], msgspec.Meta(min_length=1)])

_NO_SIGNS = b"0123456789. \t\r\n"
_SIGNS_OF_NUMBERS = re.compile(rb"\[[-,]+(?:e-[-,]*)*\]")
_ZEROS = bytes(ord("0") if chr(byte).isdecimal() else byte for byte in range(256))


def _vector_fault(position: int, raw: msgspec.Raw) -> str | None:
    """Say what is wrong with a vector; None if it is a list of finite 32-bit floats, or the base64 of one.

    Servers that compute in 16 bits send NaN, which is read as null.
    """
    vector = bytes(raw)
    if _is_plain_vector(vector):
        return None
    try:
        if vector[:1] != b'"':
            _vector_decoder.decode(vector)
            return None
        # With `encoding_format: base64` a vector is a text.
        numbers = array("f", base64.b64decode(msgspec.json.decode(vector, type=str), validate=True))
    except UNREADABLE as error:
        return f"Vector {position} of the answer is not a list of finite 32-bit floats: {error}."
    if not numbers or not math.isfinite(sum(numbers)):
        return f"Vector {position} of the answer is base64 of {'NaN or infinity' if numbers else 'nothing'}."
    return None


def _is_plain_vector(vector: bytes) -> bool:
    """Whether valid JSON is surely a list of numbers of less than 39 digits. Most vectors are; no float is built."""
    signs = vector.translate(None, _NO_SIGNS)
    return _SIGNS_OF_NUMBERS.fullmatch(signs) is not None and b"0" * 39 not in vector.translate(_ZEROS)


_body_decoder = msgspec.json.Decoder(_Body)


def _anything(raw: msgspec.Raw) -> Answer:
    body = _body_decoder.decode(raw) if _kind(raw) == b"{" else _Body()
    problem = None
    if bytes(raw) in (b"", b"null"):
        ending = Ending.EMPTY
    elif problem := _unreadable(raw):
        ending = Ending.UNUSABLE
    else:
        ending = Ending.COMPLETE
    return Answer(ending=ending, output=raw, model=text(body.model), usage=_usage(body.usage), message=problem)


def _unreadable(raw: msgspec.Raw) -> str | None:
    """Say why JSON cannot be read back as values, such as 1e400; None if it can."""
    try:
        msgspec.json.decode(raw)
    except UNREADABLE as error:
        return f"The answer cannot be read: {error}."
    return None


def _kind(raw: msgspec.Raw) -> bytes:
    """First character of a JSON value, which tells its type."""
    return bytes(raw)[:1]


def _joined(texts: list[msgspec.Raw]) -> msgspec.Raw:
    if len(texts) == 1:
        return texts[0]
    return msgspec.Raw(msgspec.json.encode("".join(msgspec.json.decode(each, type=str) for each in texts)))
