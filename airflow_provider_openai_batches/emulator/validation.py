"""What OpenAI checks after it has accepted a batch: every line of the input file, in bounded memory."""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_openai_batches.emulator.answers import prompt_tokens, rejection

MAX_REQUESTS = 50_000
MAX_REPORTED_ERRORS = 1_000
UNKNOWN_MODEL_PREFIX = "no-such-"
"""Any model name is served, except those that begin so."""


class Stopping(Exception):  # noqa: N818 -- not an error: the emulator is being shut down
    """The emulator stops; the work is left for the next start."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What validation found.

    :param total: lines in the file
    :param model: the one model the lines name
    :param tokens: estimated prompt tokens of all lines
    :param rejected: numbers (from 0) of lines that are valid, but that the endpoint will answer with a 400
    :param errors: why the batch fails, as in ``batch.errors.data``; empty if it may run
    """

    total: int
    model: str | None
    tokens: int
    rejected: array.array[int]
    errors: list[dict[str, Any]]


def validate(path: Path, endpoint: str, stopping: threading.Event, max_requests: int = MAX_REQUESTS) -> Verdict:
    """Check an input file against https://platform.openai.com/docs/guides/batch#1-prepare-your-batch-file.

    :param path: the input file
    :param endpoint: the batch's endpoint, which every line must name
    :param stopping: set by another thread to give up
    :param max_requests: of a batch
    :raises Stopping: ``stopping`` was set
    """
    checker = _Checker(endpoint)
    errors: list[dict[str, Any]] = []
    rejected: array.array[int] = array.array("L")
    total = tokens = inputs = 0
    with path.open("rb") as lines:
        for line in lines:
            if stopping.is_set():
                raise Stopping
            total += 1
            if total > max_requests:
                break
            parsed = checker.problem_or_body(line)
            if isinstance(parsed, _Problem):
                if len(errors) < MAX_REPORTED_ERRORS:
                    errors.append({**dataclasses.asdict(parsed), "line": total})
                continue
            tokens += prompt_tokens(parsed)
            inputs += _embedding_inputs(endpoint, parsed)
            if rejection(endpoint, parsed) is not None:
                rejected.append(total - 1)
    if total == 0:
        errors.append(_whole("empty_file", _EMPTY))
    if total > max_requests:
        errors = [_whole("too_many_tasks", _TOO_MANY.format("requests", max_requests))]
    elif endpoint == "/v1/embeddings" and inputs > MAX_REQUESTS:
        errors.append(_whole("too_many_tasks", _TOO_MANY.format("embedding inputs", MAX_REQUESTS)))
    return Verdict(total, checker.model, tokens, rejected, errors)


def parse_line(line: bytes) -> Any:
    """Decode a line as strictly as the API does: UTF-8, no byte order mark, no NaN.

    :raises ValueError: it is not JSON
    """
    return json.loads(line.decode("utf-8"), parse_constant=_no_constant)


_EMPTY = "The input file is empty. Please ensure that the batch contains at least one request."
_TOO_MANY = "The number of {} in the input file exceeds the maximum allowed value of {}."


@dataclasses.dataclass(frozen=True, slots=True)
class _Problem:
    code: str
    message: str
    param: str | None


class _Checker:
    """Checks line after line, remembering what must be unique or the same."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._seen: set[bytes] = set()  # digests: 50,000 ids of any length stay small
        self.model: str | None = None

    def problem_or_body(self, line: bytes) -> _Problem | Mapping[str, Any]:
        try:
            request = parse_line(line)
        except (ValueError, RecursionError):
            return _NOT_JSON
        if not isinstance(request, dict):
            return _NOT_JSON
        for name in ("custom_id", "method", "url", "body"):
            if request.get(name) in (None, ""):
                return _Problem("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
        return self._custom_id(request["custom_id"]) or self._target(request) or self._body(request["body"])

    def _custom_id(self, custom_id: Any) -> _Problem | None:
        if not isinstance(custom_id, str):
            return _Problem("invalid_type", "Invalid type for 'custom_id': expected a string.", "custom_id")
        digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self._seen:
            text = (
                f"The custom_id '{custom_id}' for this request is a duplicate of another request. "
                "The custom_id parameter must be unique for each request in a batch."
            )
            return _Problem("duplicate_custom_id", text, "custom_id")
        self._seen.add(digest)
        return None

    def _target(self, request: Mapping[str, Any]) -> _Problem | None:
        if request["method"] != "POST":
            text = f"Invalid value: '{request['method']}'. Supported values are: 'POST'."
            return _Problem("invalid_value", text, "method")
        if request["url"] != self._endpoint:
            text = "The URL provided for this request does not match the batch endpoint."
            return _Problem("invalid_url", text, "url")
        return None

    def _body(self, body: Any) -> _Problem | Mapping[str, Any]:
        if not isinstance(body, dict):
            return _Problem("invalid_type", "Invalid type for 'body': expected an object.", "body")
        if body.get("stream"):
            text = "Chat Completions: Streaming is not supported in the Batch API."
            return _Problem("streaming_unsupported", text, "body.stream")
        model = body.get("model")
        if not isinstance(model, str) or not model:
            return _Problem("invalid_request", "Model parameter is required.", "body.model")
        if self._endpoint == "/v1/chat/completions" and body.get("messages") is None:
            return _Problem("invalid_request", "Messages parameter is required.", "body.messages")
        if model.startswith(UNKNOWN_MODEL_PREFIX):
            text = f"The provided model '{model}' is not supported by the Batch API."
            return _Problem("model_not_found", text, "body.model")
        self.model = self.model or model
        if model != self.model:
            text = (
                f"The model '{model}' for this request does not match the rest of the batch. "
                "Each batch must contain requests for a single model."
            )
            return _Problem("mismatched_model", text, "body.model")
        return body


_NOT_JSON = _Problem("invalid_json_line", "This line is not parseable as valid JSON.", None)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _whole(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": None}


def _embedding_inputs(endpoint: str, body: Mapping[str, Any]) -> int:
    given = body.get("input")
    if endpoint != "/v1/embeddings" or not isinstance(given, list) or (given and isinstance(given[0], int)):
        return 1
    return len(given)
