"""What the tests of the emulator ask of it, through OpenAI's own SDK."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from openai import OpenAI
from openai.types import Batch

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"


def request(number: int, **changes: Any) -> dict[str, Any]:
    """A valid chat line; ``changes`` replace members of its body."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Question {number}"}], **changes}
    return {"custom_id": f"row-{number}", "method": "POST", "url": CHAT, "body": body}


def jsonl(lines: Iterable[Any]) -> bytes:
    """Lines as a file; bytes are put in as they are."""
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


def upload(client: OpenAI, lines: Iterable[Any]) -> str:
    """Upload an input file; return its id."""
    return client.files.create(file=("input.jsonl", jsonl(lines)), purpose="batch").id


def submit(client: OpenAI, lines: Iterable[Any], endpoint: Any = CHAT, **options: Any) -> Batch:
    """Upload lines and create their batch."""
    file_id = upload(client, lines)
    return client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h", **options)


def results(client: OpenAI, file_id: str | None) -> dict[str, Any]:
    """A result file's lines by custom_id; no file has no lines."""
    if not file_id:
        return {}
    lines = client.files.content(file_id).content.split(b"\n")
    assert lines.pop() == b""
    decoded = [json.loads(line) for line in lines]
    by_id = {line["custom_id"]: line for line in decoded}
    assert len(by_id) == len(decoded)
    return by_id


def wait_until(holds: Callable[[], object], timeout_s: float = 20) -> None:
    """Return as soon as a condition holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
