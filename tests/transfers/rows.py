"""Result rows as a job writes them, and the manifest that leads to them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def answered(number: int, output: Any = "positive", **context: Any) -> dict[str, Any]:
    """A row that succeeded."""
    return {
        "custom_id": f"review-{number}",
        "index": number,
        "status": "succeeded",
        "output": output,
        "error": None,
        "finish_reason": "stop",
        "model": "gpt-4o-mini",
        "usage": None,
        "batch_id": "batch_1",
        "request_id": None,
        "attempts": 1,
        "context": {"id": number, **context},
    }


def failed(number: int, **context: Any) -> dict[str, Any]:
    """A row that did not."""
    error = {"code": "content_filter", "message": "The answer was filtered.", "http_status": None}
    return {**answered(number, None, **context), "status": "failed", "error": error, "attempts": 3}


def written(directory: Path, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write rows as results of a job at `directory`; return its manifest."""
    part = directory / "results" / "part-00000.jsonl"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"results": [str(part)], "output_path": str(directory)}
