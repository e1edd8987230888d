"""Lines and files of rounds, as services write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from airflow_provider_openai_batches.jobs.classify import Dead, Done, Retry, RetryLimits, classify
from airflow_provider_openai_batches.jobs.lines import parse_line
from airflow_provider_openai_batches.jobs.rounds import RoundFiles

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"


def chat_body(
    content: Any = "yes", *, finish_reason: str = "stop", model: str = "gpt-4o-mini-2024-07-18", **message: Any
) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None, **message},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }


def answered(custom_id: Any, body: Any, status: Any = 200) -> dict[str, Any]:
    response = {"status_code": status, "request_id": f"req_{custom_id}", "body": body}
    return {"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": None}


def refused(custom_id: Any, status: Any, code: Any = None, message: Any = "No.") -> dict[str, Any]:
    error = {"message": message, "type": "some_error", "param": None, "code": code}
    return answered(custom_id, {"error": error}, status)


def not_run(custom_id: Any, code: str = "batch_expired") -> dict[str, Any]:
    error = {"code": code, "message": "This request could not be executed."}
    return {"id": "batch_req_1", "custom_id": custom_id, "response": None, "error": error}


def request(custom_id: str, body: Mapping[str, Any] | None = None, *, url: str = CHAT) -> dict[str, Any]:
    default = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Label {custom_id}"}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": default if body is None else dict(body)}


def decide(
    line: Any,
    *,
    endpoint: str = CHAT,
    attempts: int = 1,
    max_attempts: int = 3,
    batch_status: str = "completed",
    sent: Mapping[str, Any] | None = None,
    parse_output: Callable[[str], Any] | None = None,
) -> Done | Retry | Dead:
    """Classify a line given as JSON types, as text, or None for none."""
    raw = line.encode() if isinstance(line, str) else json.dumps(line).encode()
    parsed = None if line is None else parse_line(raw)
    assert (parsed is None) == (line is None)
    return classify(
        parsed,
        batch_status=batch_status,
        attempts=attempts,
        limits=RetryLimits(max_attempts),
        endpoint=endpoint,
        request=lambda: msgspec.json.encode(request("r", sent, url=endpoint)),
        parse_output=parse_output,
    )


def plain(value: Any) -> Any:
    """JSON types of an output, which may be JSON text in parts."""
    return msgspec.json.decode(msgspec.json.encode(value))


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    """Write lines, each given as JSON types or, for one that is none, as bytes."""
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


class Shard:
    """A shard's files in the making."""

    def __init__(self, directory: Path, custom_ids: Sequence[str], *, first_index: int = 0, **columns: Any) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        rows = enumerate(custom_ids, start=first_index)
        self.context = write_lines(
            directory / "context.jsonl",
            ({"index": index, "custom_id": custom_id, "context": columns or None} for index, custom_id in rows),
        )
        self.custom_ids = list(custom_ids)
        self.rounds: list[RoundFiles] = []

    def add_round(
        self,
        output: Sequence[Any] | None = None,
        errors: Sequence[Any] | None = None,
        *,
        status: str = "completed",
        requests: Path | Sequence[Any] | None = None,
    ) -> RoundFiles:
        """Add a round that ended with these lines; None for a file that does not exist."""
        number = len(self.rounds) + 1
        name = f"round-{number}"
        if not isinstance(requests, Path):
            lines = [request(custom_id) for custom_id in self.custom_ids] if requests is None else requests
            requests = write_lines(self.directory / f"{name}.requests.jsonl", lines)
        files = RoundFiles(
            batch_id=f"batch_{number}",
            batch_status=status,
            requests=requests,
            output=None if output is None else write_lines(self.directory / f"{name}.output.jsonl", output),
            errors=None if errors is None else write_lines(self.directory / f"{name}.errors.jsonl", errors),
        )
        self.rounds.append(files)
        return files
