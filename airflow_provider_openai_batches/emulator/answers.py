"""What the emulator answers when no model is behind it: deterministic, valid in shape, and honest about its origin."""

from __future__ import annotations

import array
import base64
import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Mapping
from typing import Any, Literal

from airflow_provider_openai_batches.emulator.schema_instance import SchemaError, instance_of
from airflow_provider_openai_batches.emulator.wire import error_body

CHARACTERS_PER_TOKEN = 4
"""Rough, and the same for the queue's quota and for usage."""
_QUOTED_PROMPT = 80
_DEFAULT_DIMENSIONS = 1536
_MOST_DIMENSIONS = 16_384
_TOKEN_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_MODERATION_CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")

Twist = Literal["length", "refusal", "invalid_output"]
"""A scripted way for an answer with status 200 to be unusable."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answered request.

    :param status: HTTP status of the model endpoint
    :param body: its JSON body; an error envelope unless the status is 200
    :param input_tokens: prompt tokens, 0 for a refused request
    :param output_tokens: completion tokens
    """

    status: int
    body: dict[str, Any]
    input_tokens: int = 0
    output_tokens: int = 0


def answer(
    url: str, body: Mapping[str, Any], *, created: int, twist: Twist | None = None, text: str | None = None
) -> Answer:
    """Answer one request of a batch.

    The same url and body always get the same answer; only ``created`` is shown as given.

    :param url: the line's url, such as ``/v1/chat/completions``
    :param body: the line's body
    :param created: unix seconds to show
    :param text: the model's words, where it has any; None makes them up
    """
    refused = rejection(url, body)
    if refused is not None:
        return refused
    request = _Request(url, body, created, twist, text)
    try:
        match _endpoint(url):
            case "chat/completions":
                return request.chat_completion()
            case "responses":
                return request.response()
            case "completions":
                return request.completion()
            case "embeddings":
                return request.embeddings()
            case "moderations":
                return request.moderation()
            case _:
                return request.anything()
    except SchemaError as error:
        return _refusal(f"Invalid schema for response_format: {error}.", "response_format", "invalid_json_schema")


def rejection(url: str, body: Mapping[str, Any]) -> Answer | None:
    """The 400 the endpoint gives to a body it cannot take; None if it can. Cheap: it makes up no answer."""
    endpoint = _endpoint(url)
    given = body.get("input")
    needs_input = endpoint in ("embeddings", "moderations") or (endpoint == "responses" and "prompt" not in body)
    if needs_input and given is None:
        return _refusal("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    if endpoint == "embeddings" and given in ("", []):
        return _refusal("Invalid 'input': input cannot be an empty string.", "input", "invalid_value")
    if endpoint == "chat/completions" and not isinstance(body.get("messages"), list):
        return _refusal("Invalid type for 'messages': expected an array of objects.", "messages", "invalid_type")
    if endpoint == "chat/completions" and not body["messages"]:
        text = "Invalid 'messages': empty array. Expected an array with minimum length 1."
        return _refusal(text, "messages", "empty_array")
    for name in (*_TOKEN_CAPS, "dimensions"):
        number = body.get(name)
        if isinstance(number, int) and number < 1:
            text = f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {number} instead."
            return _refusal(text, name, "integer_below_min_value")
        if name == "dimensions" and isinstance(number, int) and number > _MOST_DIMENSIONS:
            text = f"Invalid 'dimensions': expected a value <= {_MOST_DIMENSIONS}, but got {number} instead."
            return _refusal(text, name, "integer_above_max_value")
    return None


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """Estimate a request's prompt tokens: its texts' characters over four, and one per token of a token list."""
    characters = sum(_size(body.get(name)) for name in ("messages", "input", "instructions", "prompt"))
    return max(1, math.ceil(characters / CHARACTERS_PER_TOKEN))


class _Request:
    def __init__(self, url: str, body: Mapping[str, Any], created: int, twist: Twist | None, text: str | None) -> None:
        self._body = body
        self._created = created
        self._twist = twist
        self._words = text
        canonical = json.dumps([url, body], sort_keys=True)
        self._digest = hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
        self._rng = random.Random(self._digest)  # noqa: S311 -- made-up answers, not secrets
        self._model = str(body.get("model"))
        self._input_tokens = prompt_tokens(body)

    def chat_completion(self) -> Answer:
        limit = _limit(self._body, "max_completion_tokens", "max_tokens")
        choices = []
        output_tokens = 0
        for index in range(_count(self._body.get("n"))):
            text, finish, tokens = self._text(_response_format(self._body.get("response_format")), limit)
            output_tokens += tokens
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
            if self._twist == "refusal":
                message.update(content=None, refusal=text)
            choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": finish})
        return self._answer(
            {
                "id": f"chatcmpl-{self._digest}",
                "object": "chat.completion",
                "created": self._created,
                "model": self._model,
                "choices": choices,
                "usage": {
                    "prompt_tokens": self._input_tokens,
                    "completion_tokens": output_tokens,
                    "total_tokens": self._input_tokens + output_tokens,
                    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
                },
                "service_tier": "default",
                "system_fingerprint": "fp_emulator",
            },
            output_tokens,
        )

    def response(self) -> Answer:
        text_options = self._body.get("text")
        wanted = text_options.get("format") if isinstance(text_options, Mapping) else None
        text, finish, tokens = self._text(_response_format(wanted), _limit(self._body, "max_output_tokens"))
        cut = finish == "length"
        part: dict[str, Any] = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
        if self._twist == "refusal":
            part = {"type": "refusal", "refusal": text}
        status = "incomplete" if cut else "completed"
        return self._answer(
            {
                "id": f"resp_{self._digest}",
                "object": "response",
                "created_at": self._created,
                "status": status,
                "error": None,
                "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
                "instructions": self._body.get("instructions"),
                "max_output_tokens": self._body.get("max_output_tokens"),
                "metadata": self._body.get("metadata") or {},
                "model": self._model,
                "output": [
                    {
                        "id": f"msg_{self._digest}",
                        "type": "message",
                        "role": "assistant",
                        "status": status,
                        "content": [part],
                    }
                ],
                "parallel_tool_calls": True,
                "temperature": self._body.get("temperature", 1.0),
                "text": {"format": wanted or {"type": "text"}},
                "tool_choice": "auto",
                "tools": [],
                "top_p": self._body.get("top_p", 1.0),
                "usage": {
                    "input_tokens": self._input_tokens,
                    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                    "output_tokens": tokens,
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": self._input_tokens + tokens,
                },
            },
            tokens,
        )

    def completion(self) -> Answer:
        prompt = self._body.get("prompt")
        prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
        choices = []
        output_tokens = 0
        for index in range(len(prompts) * _count(self._body.get("n"))):
            text, finish, tokens = self._text(None, _limit(self._body, "max_tokens"))
            output_tokens += tokens
            choices.append({"index": index, "text": text, "logprobs": None, "finish_reason": finish})
        usage = {"prompt_tokens": self._input_tokens, "completion_tokens": output_tokens}
        usage["total_tokens"] = self._input_tokens + output_tokens
        shown = {"id": f"cmpl-{self._digest}", "object": "text_completion", "created": self._created}
        return self._answer({**shown, "model": self._model, "choices": choices, "usage": usage}, output_tokens)

    def embeddings(self) -> Answer:
        given = self._body["input"]
        several = isinstance(given, list) and not isinstance(given[0], int)
        dimensions = self._body.get("dimensions")
        size = dimensions if isinstance(dimensions, int) and dimensions > 0 else _DEFAULT_DIMENSIONS
        vectors = (_unit_vector(self._model, item, size) for item in (given if several else [given]))
        encode = _as_base64 if self._body.get("encoding_format") == "base64" else list
        data = [{"object": "embedding", "index": at, "embedding": encode(each)} for at, each in enumerate(vectors)]
        usage = {"prompt_tokens": self._input_tokens, "total_tokens": self._input_tokens}
        return self._answer({"object": "list", "data": data, "model": self._model, "usage": usage}, 0)

    def moderation(self) -> Answer:
        given = self._body["input"]
        texts = given if isinstance(given, list) and given and isinstance(given[0], str) else [given]
        results = []
        for _ in texts:
            scores = {name: round(self._rng.random() * 0.01, 6) for name in _MODERATION_CATEGORIES}
            results.append({"flagged": False, "categories": dict.fromkeys(scores, False), "category_scores": scores})
        return self._answer({"id": f"modr-{self._digest}", "model": self._model, "results": results}, 0)

    def anything(self) -> Answer:
        note = "Emulated answer: the emulator knows no better shape for this endpoint."
        return self._answer({"id": f"emulated_{self._digest}", "created": self._created, "message": note}, 0)

    def _answer(self, body: dict[str, Any], output_tokens: int) -> Answer:
        return Answer(200, body, self._input_tokens, output_tokens)

    def _text(self, wanted: Mapping[str, Any] | None, limit: float) -> tuple[str, str, int]:
        """Text, finish reason and tokens of one completion."""
        if self._words is not None:
            text = self._words
        elif self._twist == "refusal":
            text = "I'm sorry, but I cannot assist with that request. (emulated refusal)"
        elif self._twist == "invalid_output":
            text = '{"emulated": "this does not follow the schema"}'
        elif wanted is not None and wanted.get("type") == "json_schema":
            made = instance_of(wanted.get("schema", {}), self._rng)
            text = json.dumps(made, ensure_ascii=False)
        elif wanted is not None and wanted.get("type") == "json_object":
            text = json.dumps({"emulated": True, "note": "no model was asked", "pick": self._rng.randint(1, 5)})
        else:
            prompt = " ".join(_last_text(self._body).split())
            text = f"Emulated answer {self._rng.randrange(16**4):04x}, no model was asked. Prompt: {prompt}"
            text = text[: 60 + _QUOTED_PROMPT]
        if self._twist == "length":
            limit = max(1, len(text) // CHARACTERS_PER_TOKEN // 2)
        tokens = max(1, math.ceil(len(text) / CHARACTERS_PER_TOKEN))
        if tokens > limit:
            return text[: int(limit) * CHARACTERS_PER_TOKEN], "length", int(limit)
        return text, "stop", tokens


def _endpoint(url: str) -> str:
    return url.removeprefix("/v1").strip("/")


def _refusal(message: str, param: str, code: str) -> Answer:
    return Answer(400, error_body(message, param=param, code=code))


def _response_format(wanted: Any) -> Mapping[str, Any] | None:
    """Chat nests the schema one level deeper than responses do; give both the shape of responses."""
    if not isinstance(wanted, Mapping):
        return None
    nested = wanted.get("json_schema")
    return {"type": "json_schema", **nested} if isinstance(nested, Mapping) else wanted


def _limit(body: Mapping[str, Any], *names: str) -> float:
    given = [body[name] for name in names if isinstance(body.get(name), int)]
    return min(given, default=math.inf)


def _count(n: Any) -> int:
    return n if isinstance(n, int) and 1 <= n <= 128 else 1


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_size(value.get(name)) for name in ("content", "text", "arguments", "output"))
    if isinstance(value, list):
        return sum(CHARACTERS_PER_TOKEN if isinstance(item, int) else _size(item) for item in value)
    return 0


def _last_text(body: Mapping[str, Any]) -> str:
    """The text a reader would call the prompt: the last one in the request."""
    found = ""
    for name in ("prompt", "input", "messages"):
        value = body.get(name)
        while not isinstance(value, str):
            if isinstance(value, list) and value:
                value = value[-1]
            elif isinstance(value, Mapping):
                value = value.get("content") or value.get("text")
            else:
                break
        if isinstance(value, str):
            found = value
    return found


def _unit_vector(model: str, item: Any, size: int) -> list[float]:
    noise = array.array("h")
    noise.frombytes(random.Random(json.dumps([model, item])).randbytes(2 * size))  # noqa: S311
    length = math.sqrt(sum(number * number for number in noise)) or 1.0
    return [round(number / length, 7) for number in noise]


def _as_base64(vector: list[float]) -> str:
    return base64.b64encode(array.array("f", vector).tobytes()).decode()
