"""What may go wrong at a service, as rules of the emulator."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

MODEL = "gpt-4o-mini"


def _queue_full(limit: int) -> dict[str, Any]:
    message = f"Enqueued token limit reached for {MODEL} in organization org. Limit: {limit} enqueued tokens."
    return {"status": 429, "body": {"error": {"code": "token_limit_exceeded", "message": message}}}


def _on(method: str, path: str, *effects: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"on": {"method": method, "path": path}, "do": effect} for effect in effects]


_DROPS = ({"drop": "before"}, {"drop": "after"}, {"status": 500})
CALL_FAULTS = [
    *_on("POST", "/batches", *_DROPS, {"status": 429}, {"status": 400}, _queue_full(40), _queue_full(90_000)),
    *_on("POST", "/files", *_DROPS),
    *_on("POST", "/batches/*/cancel", *_DROPS),
    *_on("GET", "/batches", *_DROPS, {"ignore_after": True}, {"patch": {"output_file_id": None}}),
    *_on("GET", "/batches/*", *_DROPS, {"status": 404}, {"set": {"output_file_id": ""}}, {"azure": True}),
    *_on("GET", "/files/*/content", *_DROPS, {"truncate": 0}, {"truncate": 700}, {"gzip": True}, {"status": 404}),
]
_ANSWER_FAULTS = _on(
    "POST",
    "/chat/completions",
    *_DROPS,
    {"drop": "after"},
    {"status": 400},
    {"status": 401},
    {"status": 404},
    {"status": 503},
    {"status": 429, "headers": {"Retry-After": "600"}},
)
BATCH_FAULTS: list[dict[str, Any]] = [
    {"on": {"batch": {}}, "do": effect}
    for effect in (
        {"outcome": "failed"},
        {"outcome": "failed", "errors": [{"code": "model_not_found", "message": "No such model."}]},
        {"outcome": "token_limit_exceeded"},
        {"outcome": "file_not_found"},
        {"outcome": "expire", "finished": 0.0},
        {"outcome": "expire", "finished": 0.5},
        {"outcome": "all_failed"},
        {"outcome": "empty_error_file"},
        {"outcome": "skip_states"},
        {"outcome": "stuck", "status": "in_progress", "seconds": 90_000},
        {"outcome": "stuck", "status": "validating", "seconds": 600},
        {"outcome": "stuck", "status": "cancelling", "seconds": 600},
    )
]
_ROW_FATES = ("error", "server_error", "timeout", "missing", "duplicate", "unknown", "broken_line", "length")
_TIMES = st.sampled_from([1, 1, 6])


def _some_times(faults: list[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda fault, times: fault | {"times": times}, st.sampled_from(faults), _TIMES)


FAULTS = st.one_of(
    _some_times(CALL_FAULTS),
    st.sampled_from(BATCH_FAULTS),
    st.builds(
        lambda row, outcome: {"on": {"custom_id": f"row-{row}"}, "do": {"outcome": outcome}},
        st.integers(0, 3),
        st.sampled_from(_ROW_FATES),
    ),
)
DIRECT_FAULTS = _some_times(_ANSWER_FAULTS)
"""Of requests that are sent without a batch. None is answered and then cut: each call ends with a status, or with 0."""


def ailing(row: int) -> dict[str, Any]:
    """Let a row fail once in a way that passes."""
    return {"on": {"custom_id": f"row-{row}"}, "do": {"outcome": "server_error"}}


NO_METADATA: dict[str, Any] = {
    "on": {"path": "/batches**"},
    "do": {"set": {"metadata": None}},
    "times": None,
}
"""What a gateway does whose own service keeps none."""
