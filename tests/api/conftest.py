from __future__ import annotations

import json

import pytest


@pytest.fixture
def input_file() -> bytes:
    """A valid input file of three chat requests."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
    lines = (
        {"custom_id": f"row-{index}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for index in range(3)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
