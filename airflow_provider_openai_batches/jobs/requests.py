"""Rows become requests: complete API lines, checked before anything is written, sent or paid.

A row is a prompt (text), a dict ``{"custom_id"?, "prompt" | "input" | "messages" | "body", "model"?, "context"?}`` or a
complete API line ``{"custom_id", "method", "url", "body", "context"?}``. A field that is None counts as not given. What
the template says applies to every row, and a row's own fields win over it, whichever form the row has. Text of a row is
data: nothing in it is ever rendered.

The lines' format: https://platform.openai.com/docs/guides/batch#1-prepare-your-batch-file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import (
    EMBEDDINGS,
    body_fault,
    check_endpoint,
    check_text,
    required_field,
)
from airflow_provider_openai_batches.api.models import ENDPOINTS
from airflow_provider_openai_batches.jobs.json_text import CONTEXT_TYPES, check_json, encode, shown
from airflow_provider_openai_batches.jobs.sources import LINE_FIELDS, REQUEST_FIELDS, RowError, Rows, open_source
from airflow_provider_openai_batches.jobs.unique_ids import UniqueIds, default_id

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.sources import Source
    from airflow_provider_openai_batches.jobs.structured import OutputSchema

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"

MAX_INPUTS_PER_REQUEST = 2_048
"""Texts in one embeddings request: https://platform.openai.com/docs/api-reference/embeddings/create."""

_MAX_ID_CHARS = 512
"""OpenAI names no limit for a custom_id; this keeps ids ids."""

_LINE_ROW_FIELDS = LINE_FIELDS | {"custom_id", "context"}
_CONTENTS = ("prompt", "input", "messages", "body")
_DICTS = (dict, Mapping)
"""Any mapping will do; naming dict first spares most rows the slow test for the abstract class."""

_BYTES_PER_TOKEN = 4
_TOKENS_PER_INLINE_FILE = 1_000
_INLINE_FILE = re.compile(rb'data:[^;"\\]{1,100};base64,[A-Za-z0-9+/=_-]*')


@dataclass(frozen=True)
class RequestTemplate:
    """What the job's parameters say about every request.

    :param endpoint: where the requests go. One that OpenAI does not document is passed on: prompts go to ``prompt``
    :param model: for rows that name none. Rows may name different ones; each model gets batches of its own
    :param system_prompt: for chat the first message, unless the row has a system or developer message of its own; for
        responses the ``instructions``
    :param body: fields for every body, replaced one by one (not merged within) where a row has its own
    :param output: the answers' schema
    :raises InvalidInputError: with the parameter and the remedy
    """

    endpoint: str = CHAT
    model: str | None = None
    system_prompt: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    output: OutputSchema | None = None

    def __post_init__(self) -> None:
        check_endpoint(self.endpoint)
        if self.model is not None:
            if not isinstance(self.model, str) or self.model.strip() in ("", "None"):
                raise InvalidInputError("model", f"expected a model's name, got {self.model!r}.")
            check_text(self.model, "model")
        if self.system_prompt is not None:
            if not isinstance(self.system_prompt, str) or not self.system_prompt.strip():
                raise InvalidInputError("system_prompt", f"expected a text, got {self.system_prompt!r}.")
            try:
                encode(self.system_prompt)
            except RowError as error:
                raise InvalidInputError("system_prompt", str(error)) from error
            if self.endpoint not in (CHAT, RESPONSES):
                raise InvalidInputError("system_prompt", f"{self.endpoint} has no place for it; put it into each row.")
        if self.output is not None and self.endpoint not in (CHAT, RESPONSES):
            raise InvalidInputError("output_type", f"{self.endpoint} takes no schema; only {CHAT} and {RESPONSES} do.")
        self._check_body()

    def _check_body(self) -> None:
        if not isinstance(self.body, Mapping):
            raise InvalidInputError("body", f"expected a dict, got {type(self.body).__name__}.")
        try:
            encode(check_json(dict(self.body), "body"))
        except RowError as error:
            raise InvalidInputError("body", str(error)) from error
        content = _content_field(self.endpoint)
        if content in self.body:
            raise InvalidInputError(
                "body", f"{content!r} is each row's own. Take it out; what all rows share is said in system_prompt."
            )
        if fault := body_fault(self.endpoint, stream=self.body.get("stream"), has_content=True):
            raise InvalidInputError("body", fault)
        model = self.body.get("model")
        if model is not None and (not isinstance(model, str) or self.model not in (None, model)):
            raise InvalidInputError("body", f"its model {model!r} contradicts the parameter model {self.model!r}.")
        if self.output is not None and _has_format(self.body):
            raise InvalidInputError("body", "it sets the answers' format, and output_type does too. Take one out.")


class Request(msgspec.Struct, frozen=True):
    """One request, ready to be written."""

    index: int
    """Position in the source, from 0."""
    custom_id: str
    line: bytes
    """The complete API line, without a newline. No reader that splits on Unicode's line ends can cut it."""
    model: str
    context: bytes | None
    """The user's columns as JSON."""
    tokens: int
    """Rough estimate of the prompt's tokens: the bytes of the body's JSON (UTF-8) divided by 4, and 1,000 for each
    inline (base64) file. English has about 4 bytes per token, most other text fewer tokens per byte. What the model
    writes is not included."""
    inputs: int
    """What counts toward the 50,000 inputs of an embeddings batch; 1 for other endpoints."""

    @property
    def raw_context(self) -> msgspec.Raw | None:
        """The user's columns as they go into a result row."""
        return None if self.context is None else msgspec.Raw(self.context)


def read_requests(source: Source, template: RequestTemplate) -> Iterator[Request]:
    """Turn a source's rows into requests: lazily, in one pass, holding nothing.

    :param source: see :func:`~airflow_provider_openai_batches.jobs.sources.open_source`; a function is called here
    :param template: what holds for every row
    :return: the requests in the source's order. Custom_ids used twice are found once the last row has been read
    :raises InvalidInputError: the source is not one; while iterating: with the row (from 0), the field and the remedy.
        Errors of the user's own generator pass through as they are
    """
    return _requests(open_source(source), template)


def _requests(rows: Rows, template: RequestTemplate) -> Iterator[Request]:
    form = _Form(template)
    ids = UniqueIds()
    place = f"{rows.name}, row" if rows.name else "row"
    index = 0
    try:
        while True:
            try:
                try:
                    item = next(rows.items)
                except StopIteration:
                    break
                request = form.request(index, item)
                ids.add(request.custom_id, index)
            except RowError as error:
                raise InvalidInputError("requests", f"{place} {index}: {error}") from error
            yield request
            index += 1
        ids.check(index)
    finally:
        ids.close()


class _Form:
    """A template, prepared so that a row costs little more than its own JSON."""

    def __init__(self, template: RequestTemplate) -> None:
        self._endpoint = template.endpoint
        self._content = _content_field(template.endpoint)
        self._required = required_field(template.endpoint)
        self._model = template.model or template.body.get("model")
        self._format = None if template.output is None else _format_fields(template.endpoint, template.output)
        self._system: msgspec.Raw | None = None
        defaults = {name: value for name, value in template.body.items() if name != "model"}
        if template.system_prompt is not None:
            if template.endpoint == CHAT:
                self._system = msgspec.Raw(encode({"role": "system", "content": template.system_prompt}))
            else:
                defaults["instructions"] = template.system_prompt
        if self._format is not None:
            defaults = _with_format(defaults, self._format)
        # Encoded once, whatever the number of rows.
        self._defaults = {name: msgspec.Raw(encode(value)) for name, value in defaults.items()}
        self._after_id = b',"method":"POST","url":%b,"body":' % encode(template.endpoint)

    def request(self, index: int, item: Any) -> Request:
        """Build one row's request.

        :raises RowError: what is wrong with the row
        """
        if isinstance(item, str):
            custom_id, model, context, body = default_id(index), self._model, None, self._prompt_body(item)
        elif isinstance(item, _DICTS):
            custom_id, model, context, body = self._read(index, item)
        else:
            raise RowError(f"expected a prompt or a dict, got {type(item).__name__}. Make it text or a dict.")
        if not model:
            raise RowError("no model is named. Give the job a model, or the row a field 'model'.")
        inputs = self._check(body)
        if self._system is not None and not any(part["role"] in ("system", "developer") for part in body["messages"]):
            body["messages"] = [self._system, *body["messages"]]
        encoded = encode({"model": model, **self._defaults, **body})
        return Request(
            index=index,
            custom_id=custom_id,
            line=b"".join((b'{"custom_id":', encode(custom_id), self._after_id, encoded, b"}")),
            model=model,
            context=context,
            tokens=estimated_tokens(encoded),
            inputs=inputs,
        )

    def _read(self, index: int, item: Mapping[Any, Any]) -> tuple[str, str | None, bytes | None, dict[str, Any]]:
        """Take a dict apart: custom_id, model, context and the body's own fields."""
        names = item.keys()
        is_line = not names <= REQUEST_FIELDS
        if is_line and not LINE_FIELDS <= names <= _LINE_ROW_FIELDS:
            raise RowError(_unknown_fields(names))
        body = self._line_body(item) if is_line else self._own_body(item)
        custom_id = item.get("custom_id")
        if custom_id is not None:
            _check_id(custom_id)
        elif is_line:
            raise RowError("custom_id is missing; a complete API line needs one.")
        model = _one_model(body.pop("model", None), item.get("model"), self._model)
        context = item.get("context")
        if context is not None and not isinstance(context, _DICTS):
            raise RowError(f"context must be a dict of your columns, got {type(context).__name__}.")
        return (
            default_id(index) if custom_id is None else custom_id,
            model,
            None if context is None else encode(check_json(dict(context), "context", CONTEXT_TYPES)),
            body,
        )

    def _line_body(self, item: Mapping[str, Any]) -> dict[str, Any]:
        if item["method"] != "POST":
            raise RowError(f"method is {shown(item['method'])}; the API takes only 'POST'.")
        if item["url"] != self._endpoint:
            raise RowError(
                f"url is {shown(item['url'])}, but the job's endpoint is {self._endpoint!r}. Make them the same."
            )
        return _body(item["body"])

    def _own_body(self, item: Mapping[str, Any]) -> dict[str, Any]:
        given = [name for name in _CONTENTS if item.get(name) is not None]
        if len(given) != 1:
            found = f"got {' and '.join(given)}" if given else "got none"
            raise RowError(f"give exactly one of {', '.join(_CONTENTS)}; {found}.")
        name = given[0]
        value = item[name]
        if name == "body":
            return _body(value)
        if name == "prompt" and (isinstance(value, str) or self._content != "prompt"):
            return self._prompt_body(value)
        if name != self._content and self._endpoint in ENDPOINTS:
            raise RowError(f"{self._endpoint} takes no {name!r}: give 'prompt', {self._content!r} or 'body'.")
        return {name: check_json(value, name)}

    def _prompt_body(self, prompt: Any) -> dict[str, Any]:
        if not isinstance(prompt, str):
            raise RowError(
                f"prompt must be text, got {type(prompt).__name__}. Use {self._content!r} for anything else."
            )
        if not prompt or prompt.isspace():
            raise RowError("the prompt is empty. Leave the row out, or give it text.")
        return {self._content: [{"role": "user", "content": prompt}] if self._endpoint == CHAT else prompt}

    def _check(self, body: dict[str, Any]) -> int:
        """Check the body's content; return how many inputs it counts for."""
        content = body.get(self._content)
        has_content = self._required is None or content is not None
        if fault := body_fault(self._endpoint, stream=body.get("stream"), has_content=has_content):
            raise RowError(fault)
        if self._format is not None:
            if _has_format(body):
                raise RowError("the body sets the answer's format, and output_type does too. Take it out of the row.")
            if "text" in body:
                body.update(_with_format({"text": body["text"]}, self._format))
        if self._endpoint == CHAT:
            _check_messages(content)
        elif self._endpoint == EMBEDDINGS:
            return _count_inputs(content)
        elif self._endpoint in ENDPOINTS and content is not None:
            _check_filled(content, self._content)
        return 1


def _unknown_fields(names: Set[Any]) -> str:
    unknown = names - (_LINE_ROW_FIELDS if names >= LINE_FIELDS else REQUEST_FIELDS)
    return (
        f"unknown {'fields' if len(unknown) > 1 else 'field'} {', '.join(sorted(map(shown, unknown)))}. A request has "
        "custom_id, model, context and one of prompt, input, messages or body; a complete API line has custom_id, "
        "method, url and body. Your own columns go into context."
    )


def _content_field(endpoint: str) -> str:
    return required_field(endpoint) or ("input" if endpoint == RESPONSES else "prompt")


def _format_fields(endpoint: str, output: OutputSchema) -> dict[str, Any]:
    if endpoint == CHAT:
        return {"response_format": output.chat_format()}
    return {"text": {"format": output.responses_format()}}


def _with_format(fields: dict[str, Any], format_fields: dict[str, Any]) -> dict[str, Any]:
    """Add the answers' format; beside it, ``text`` also holds e.g. the verbosity."""
    text = fields.get("text")
    if isinstance(text, Mapping) and "text" in format_fields:
        return {**fields, "text": {**text, **format_fields["text"]}}
    return {**fields, **format_fields}


def _has_format(body: Mapping[str, Any]) -> bool:
    text = body.get("text")
    return "response_format" in body or (isinstance(text, Mapping) and "format" in text)


def _body(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RowError(f"body must be a dict, got {type(value).__name__}.")
    body = dict(value)
    check_json(body, "body")
    return body


def _one_model(in_body: Any, in_row: Any, default: str | None) -> str | None:
    for model in (in_body, in_row):
        if model is not None and not (isinstance(model, str) and model):
            raise RowError(f"model must be a model's name, got {shown(model)}.")
    if in_body and in_row and in_body != in_row:
        raise RowError(f"body.model is {shown(in_body)}, but the row's model is {shown(in_row)}. Take one out.")
    return in_body or in_row or default


def _check_id(custom_id: Any) -> None:
    if not isinstance(custom_id, str):
        raise RowError(f"custom_id must be text, got {shown(custom_id)}. Convert it with str().")
    if not custom_id:
        raise RowError("custom_id is empty. Give the row a unique text, or leave the field out.")
    if len(custom_id) > _MAX_ID_CHARS:
        raise RowError(f"custom_id has {len(custom_id):,} characters; at most {_MAX_ID_CHARS} are taken. Shorten it.")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RowError("messages must be a list with at least one message.")
    for position, message in enumerate(messages):
        if not isinstance(message, _DICTS) or not isinstance(message.get("role"), str):
            raise RowError(f"messages[{position}] must be a dict with a role, e.g. {{'role': 'user', 'content': ...}}.")


def _check_filled(content: Any, name: str) -> None:
    if not isinstance(content, (str, list, tuple)):
        raise RowError(f"{name} must be text or a list, got {type(content).__name__}.")
    if not content or (isinstance(content, str) and content.isspace()):
        raise RowError(f"{name} is empty. Leave the row out, or give it content.")


def _count_inputs(content: Any) -> int:
    """Count an embeddings request's inputs: a text or list of tokens is one, a list of either has several."""
    _check_filled(content, "input")
    if isinstance(content, str):
        return 1
    kinds = {*map(type, content)}
    if kinds == {int}:
        return 1
    if kinds != {str} and not (kinds <= {list, tuple} and all({*map(type, tokens)} == {int} for tokens in content)):
        raise RowError("input must be text, a list of texts, a list of token numbers, or a list of such lists.")
    if "" in content:
        raise RowError(f"input[{content.index('')}] is empty; the API refuses the whole request for it. Leave it out.")
    if len(content) > MAX_INPUTS_PER_REQUEST:
        raise RowError(
            f"input has {len(content):,} texts; one request takes at most {MAX_INPUTS_PER_REQUEST:,}. Split the row."
        )
    return len(content)


def estimated_tokens(body: bytes) -> int:
    """Estimate the prompt tokens of a request by its JSON, see :attr:`Request.tokens`."""
    files = 0
    # A smaller file is about as well counted as text, and most bodies need not be searched.
    if len(body) > _TOKENS_PER_INLINE_FILE * 2 * _BYTES_PER_TOKEN and b";base64," in body:
        body, files = _INLINE_FILE.subn(b"", body)
    return -(-len(body) // _BYTES_PER_TOKEN) + files * _TOKENS_PER_INLINE_FILE
