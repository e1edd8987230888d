from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.models import Usage
from airflow_provider_openai_batches.jobs.changes import Feedback, LargerCap, changed
from airflow_provider_openai_batches.jobs.classify import Dead, Done, Retry, RetryLimits, RowStatus, classify, ran
from airflow_provider_openai_batches.jobs.lines import parse_line
from airflow_provider_openai_batches.jobs.structured import Parsed
from tests.jobs.result_files import (
    CHAT,
    EMBEDDINGS,
    RESPONSES,
    answered,
    chat_body,
    decide,
    not_run,
    plain,
    refused,
    request,
)


def response_body(*output: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "gpt-5-2025-08-07",
        "output": list(output),
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 3},
            "output_tokens": 9,
            "output_tokens_details": {"reasoning_tokens": 6},
            "total_tokens": 16,
        },
        **fields,
    }


def message(*texts: str) -> dict[str, Any]:
    content = [{"type": "output_text", "annotations": [], "text": text} for text in texts]
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}


def embeddings_body(*vectors: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    return {"object": "list", "data": data[::-1], "model": "text-embedding-3-small", "usage": usage}


def shout(text: str) -> Parsed:
    """An output type that takes upper case only."""
    return Parsed(text.lower()) if text.isupper() else Parsed(error="$: not upper case")


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_chat_answer_is_its_text_with_all_facts_about_it() -> None:
    outcome = decide(answered("r", chat_body('say "héllo"\n😀')))
    assert isinstance(outcome, Done)
    assert outcome.status is RowStatus.SUCCEEDED
    assert outcome.error is None
    assert plain(outcome.output) == 'say "héllo"\n😀'
    assert outcome.finish_reason == "stop"
    assert outcome.model == "gpt-4o-mini-2024-07-18"
    assert outcome.request_id == "req_r"
    assert outcome.usage == Usage(
        input_tokens=10, cached_tokens=4, output_tokens=5, reasoning_tokens=2, total_tokens=15
    )


@pytest.mark.parametrize(
    ("body", "output"),
    [
        (chat_body(""), ""),
        (chat_body([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab"),
        (chat_body(None, tool_calls=[{"id": "1"}]), {"content": None, "tool_calls": [{"id": "1"}]}),
        (chat_body("") | {"choices": [chat_body(text)["choices"][0] for text in ("a", "b")]}, ["a", "b"]),
    ],
)
def test_other_chat_answers_lose_nothing(body: dict[str, Any], output: Any) -> None:
    outcome = decide(answered("r", body))
    assert isinstance(outcome, Done)
    assert plain(outcome.output) == output


@pytest.mark.parametrize(
    ("body", "output"),
    [
        (response_body(message("yes")), "yes"),
        (response_body({"type": "reasoning", "summary": []}, message("y", "é"), message("s")), "yés"),
        (response_body({"type": "function_call", "name": "f"}), [{"type": "function_call", "name": "f"}]),
    ],
)
def test_a_response_is_its_text_or_what_it_calls(body: dict[str, Any], output: Any) -> None:
    outcome = decide(answered("r", body), endpoint=RESPONSES)
    assert isinstance(outcome, Done)
    assert plain(outcome.output) == output
    assert outcome.usage == Usage(input_tokens=7, cached_tokens=3, output_tokens=9, reasoning_tokens=6, total_tokens=16)
    assert outcome.finish_reason == "completed"


@pytest.mark.parametrize(
    ("given_input", "vectors", "output"),
    [
        ("a", [[0.1, 1e-7]], [0.1, 1e-7]),
        (["a"], [[0.1]], [[0.1]]),
        (["a", "b"], [[0.1], [0.2]], [[0.1], [0.2]]),
        ([1, 2, 3], [[0.1]], [0.1]),
        ([[1, 2, 3]], [[0.1]], [[0.1]]),
        ("a", ["AACAPw=="], "AACAPw=="),
    ],
)
def test_embeddings_are_a_vector_or_a_list_as_the_input_was(given_input: Any, vectors: list[Any], output: Any) -> None:
    sent = {"model": "text-embedding-3-small", "input": given_input}
    outcome = decide(answered("r", embeddings_body(*vectors)), endpoint=EMBEDDINGS, sent=sent)
    assert isinstance(outcome, Done)
    assert plain(outcome.output) == output
    assert outcome.usage == Usage(input_tokens=8, total_tokens=8)


def test_any_other_endpoint_gives_its_whole_body() -> None:
    body = {"id": "modr-1", "model": "omni-moderation-latest", "results": [{"flagged": False}]}
    outcome = decide(answered("r", body), endpoint="/v1/moderations")
    assert isinstance(outcome, Done)
    assert plain(outcome.output) == body
    assert outcome.model == "omni-moderation-latest"


def test_an_output_type_gives_its_object() -> None:
    outcome = decide(answered("r", chat_body("YES")), parse_output=shout)
    assert isinstance(outcome, Done)
    assert outcome.output == "yes"


@pytest.mark.parametrize(
    "usage", [None, [], "many", {"prompt_tokens": -1}, {"prompt_tokens": 2**64}, {"total_tokens": {}}]
)
def test_odd_usage_does_not_cost_the_answer(usage: Any) -> None:
    outcome = decide(answered("r", chat_body("yes") | {"usage": usage}))
    assert isinstance(outcome, Done)
    assert outcome.usage is None


# --- shapes of lines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        {"custom_id": "r", "response": {"status_code": 200, "body": chat_body()}},  # Azure: no id, no request_id
        {"custom_id": "r", "response": {"status_code": "200", "body": chat_body()}, "error": ""},
        {"id": "vllm-1", "custom_id": "r", "response": chat_body(), "error": None},  # vLLM before 0.6
        {"custom_id": "r", "response": {"status_code": 201, "body": chat_body()}, "error": {}},
    ],
)
def test_services_write_success_differently(line: dict[str, Any]) -> None:
    outcome = decide(line)
    assert isinstance(outcome, Done)
    assert plain(outcome.output) == "yes"


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(answered("r", chat_body("cut ~"))).replace("~", r"\ud83d"),
        json.dumps(answered("r", chat_body("cut ~"))).replace("~", r"\udc00"),
        json.dumps(answered("r", chat_body("cut ?") | {"logprob": float("nan")})),
        "\ufeff" + json.dumps(answered("r", chat_body("cut ?"))),
    ],
)
def test_half_characters_and_nan_do_not_cost_the_answer(raw: str) -> None:
    outcome = decide(raw)
    assert isinstance(outcome, Done)
    assert plain(outcome.output) == "cut ?"


def test_bytes_that_are_not_utf_8_do_not_reach_the_results() -> None:
    raw = json.dumps(answered("r", chat_body("caf~"))).encode().replace(b"~", b"\xe9")
    line = parse_line(raw)
    outcome = classify(
        line, batch_status="completed", attempts=1, limits=RetryLimits(), endpoint=CHAT, request=lambda: b""
    )
    assert plain(outcome.output) == "caf\ufffd"


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"3", b'{"custom_id": "r", "resp', b'{"response": "x"}', b"[" * 100_000, b"\xff\xfe"]
)
def test_what_is_no_line_is_none(raw: bytes) -> None:
    assert parse_line(raw) is None


# --- answers that are not usable -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_cut_off_answer_is_asked_for_again_with_twice_the_cap(name: str) -> None:
    outcome = decide(answered("r", chat_body("hal", finish_reason="length")), sent={"messages": [], name: 100})
    assert isinstance(outcome, Retry)
    assert outcome.change == LargerCap({name: 200})
    assert outcome.output is None
    assert outcome.usage is not None


def test_a_cut_off_response_is_asked_for_again_with_twice_the_cap() -> None:
    body = response_body(message("hal"), status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    outcome = decide(answered("r", body), endpoint=RESPONSES, sent={"input": "x", "max_output_tokens": 16})
    assert isinstance(outcome, Retry)
    assert outcome.change == LargerCap({"max_output_tokens": 32})
    assert outcome.finish_reason == "max_output_tokens"


def test_an_answer_the_output_type_refuses_is_asked_for_again_with_the_reason() -> None:
    outcome = decide(answered("r", chat_body("no")), parse_output=shout)
    assert isinstance(outcome, Retry)
    assert outcome.change == Feedback("no", "$: not upper case")


def refusal_part(text: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "refusal", "refusal": text}]}


# Line, endpoint, decision, final status, code, message
VERDICTS: dict[str, tuple[Any, str, type, str, str, str]] = {
    "cut off without a cap": (
        answered("r", chat_body("hal", finish_reason="length")),
        CHAT, Dead, "invalid_output", "truncated", "no token cap"),
    "content filter": (
        answered("r", chat_body("", finish_reason="content_filter")), CHAT, Dead, "failed", "content_filter", "filter"),
    "refusal": (answered("r", chat_body(None, refusal="I won't.")), CHAT, Dead, "failed", "refusal", "I won't."),
    "refusal of a response": (
        answered("r", response_body(refusal_part("I won't."))), RESPONSES, Dead, "failed", "refusal", "I won't."),
    "filtered response": (
        answered("r", response_body(status="incomplete", incomplete_details={"reason": "content_filter"})),
        RESPONSES, Dead, "failed", "content_filter", "filter"),
    "response failed by the server": (
        answered("r", response_body(status="failed", error={"code": "server_error", "message": "Oops."})),
        RESPONSES, Retry, "failed", "server_error", "Oops."),
    "response failed for good": (
        answered("r", response_body(status="failed", error={"code": "invalid_prompt", "message": "Bad."})),
        RESPONSES, Dead, "failed", "invalid_prompt", "Bad."),
    "response that goes on": (
        answered("r", response_body(status="in_progress")), RESPONSES, Retry, "failed", "in_progress", ""),
    "incomplete for another reason": (
        answered("r", response_body(status="incomplete", incomplete_details={"reason": "moon"})),
        RESPONSES, Dead, "failed", "moon", ""),
    "no choices": (answered("r", {"choices": []}), CHAT, Retry, "invalid_output", "no_output", "nothing"),
    "no text": (answered("r", chat_body(None)), CHAT, Retry, "invalid_output", "no_output", "nothing"),
    "no body": (answered("r", None), CHAT, Retry, "invalid_output", "no_output", "nothing"),
    "no items": (answered("r", response_body()), RESPONSES, Retry, "invalid_output", "no_output", "nothing"),
    "no vectors": (answered("r", embeddings_body()), EMBEDDINGS, Retry, "invalid_output", "no_output", "nothing"),
    "null vector": (answered("r", embeddings_body(None)), EMBEDDINGS, Retry, "invalid_output", "no_output", "nothing"),
    "bad request": (refused("r", 400, "invalid_value"), CHAT, Dead, "failed", "invalid_value", "No."),
    "unprocessable": (refused("r", 422), CHAT, Dead, "failed", "some_error", "No."),
    "gateway's code": (refused("r", 404, 404), CHAT, Dead, "failed", "http_404", "No."),
    "request timeout": (refused("r", 408, "timeout"), CHAT, Retry, "failed", "timeout", "No."),
    "conflict": (refused("r", 409, "conflict"), CHAT, Retry, "failed", "conflict", "No."),
    "rate limit": (refused("r", 429, "rate_limit_exceeded"), CHAT, Retry, "failed", "rate_limit_exceeded", "No."),
    "no money": (refused("r", 429, "insufficient_quota"), CHAT, Dead, "failed", "insufficient_quota", "No."),
    "server error": (refused("r", 500, "server_error"), CHAT, Retry, "failed", "server_error", "No."),
    "overloaded": (refused("r", "529", "overloaded"), CHAT, Retry, "failed", "overloaded", "No."),
    "text for a body": (answered("r", "upstream died", 502), CHAT, Retry, "failed", "http_502", "upstream died"),
    "Voyage's error": (
        {"custom_id": "r", "response": {"status_code": 500, "message": "Oops."}}, EMBEDDINGS,
        Retry, "failed", "http_500", "Oops."),
    "text for an error": ({"custom_id": "r", "error": "died"}, CHAT, Retry, "failed", "request_failed", "died"),
    "both": (
        refused("r", 400, "inner") | {"error": {"code": "outer", "message": "Out."}},
        CHAT, Dead, "failed", "outer", "Out."),
    "error beside an answer": (
        answered("r", chat_body()) | {"error": {"code": "server_error", "message": "Oops."}},
        CHAT, Retry, "failed", "server_error", "Oops."),
    "expired": (not_run("r"), CHAT, Retry, "expired", "batch_expired", "could not"),
    "cancelled": (not_run("r", "batch_cancelled"), CHAT, Retry, "cancelled", "batch_cancelled", "could not"),
    "timed out": (not_run("r", "request_timeout"), CHAT, Retry, "failed", "request_timeout", "could not"),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_what_has_no_output_says_why_and_whether_to_try_again(case: str) -> None:
    line, endpoint, decision, status, code, words = VERDICTS[case]
    outcome = decide(line, endpoint=endpoint)
    assert (type(outcome), outcome.status) == (decision, status)
    assert outcome.output is None
    assert outcome.error is not None
    assert outcome.error.code == code
    assert words in (outcome.error.message or "")
    response = line.get("response")
    assert outcome.error.http_status == (int(response["status_code"]) if response else None)


@pytest.mark.parametrize(
    ("batch_status", "status", "code"),
    [
        ("completed", "missing", "missing"),
        ("expired", "expired", "batch_expired"),
        ("cancelled", "cancelled", "batch_cancelled"),
        ("paused", "missing", "missing"),
    ],
)
def test_a_row_without_a_line_is_what_its_batch_was(batch_status: str, status: str, code: str) -> None:
    outcome = decide(None, batch_status=batch_status, attempts=99)
    assert isinstance(outcome, Retry)
    assert outcome.status == status
    assert outcome.error is not None
    assert outcome.error.code == code


# --- attempts --------------------------------------------------------------------------------------------------------


def test_a_row_that_ran_as_often_as_it_may_is_dead_with_its_last_reason() -> None:
    line = refused("r", 500, "server_error")
    assert isinstance(decide(line, attempts=2), Retry)
    outcome = decide(line, attempts=3)
    assert isinstance(outcome, Dead)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.http_status, outcome.request_id) == ("server_error", 500, "req_r")


@pytest.mark.parametrize("code", ["batch_expired", "batch_cancelled"])
def test_a_row_that_did_not_run_is_tried_again_whatever_the_count(code: str) -> None:
    assert isinstance(decide(not_run("r", code), attempts=3), Retry)
    assert not ran(parse_line(json.dumps(not_run("r", code)).encode()))


def test_only_rows_with_an_answer_or_a_timeout_ran() -> None:
    assert not ran(None)
    for line in (refused("r", 500), answered("r", chat_body()), not_run("r", "request_timeout")):
        assert ran(parse_line(json.dumps(line).encode()))


# --- changes ---------------------------------------------------------------------------------------------------------


def test_feedback_continues_a_chat() -> None:
    line = msgspec.json.encode(request("r", {"messages": [{"role": "user", "content": "q"}], "model": "m"}))
    made = msgspec.json.decode(changed(line, Feedback("a", "wrong: é")))
    *before, answer, correction = made["body"]["messages"]
    assert before == [{"role": "user", "content": "q"}]
    assert answer == {"role": "assistant", "content": "a"}
    assert correction["role"] == "user"
    assert "wrong: é" in correction["content"]
    assert made["custom_id"] == "r"
    assert made["body"]["model"] == "m"


@pytest.mark.parametrize("given_input", ["q", [{"role": "user", "content": "q"}]])
def test_feedback_continues_a_response(given_input: Any) -> None:
    line = msgspec.json.encode(request("r", {"input": given_input}, url=RESPONSES))
    conversation = msgspec.json.decode(changed(line, Feedback("a", "wrong")))["body"]["input"]
    assert [turn["role"] for turn in conversation] == ["user", "assistant", "user"]
    assert [turn["content"] for turn in conversation[:2]] == ["q", "a"]


def test_a_larger_cap_changes_nothing_else() -> None:
    body = {"messages": [], "max_tokens": 5, "temperature": 0.1}
    made = changed(msgspec.json.encode(request("r", body)), LargerCap({"max_tokens": 10}))
    assert msgspec.json.decode(made) == request("r", body | {"max_tokens": 10})


# --- whatever comes --------------------------------------------------------------------------------------------------

statuses = st.sampled_from([200, 429, 500])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | statuses
NAMES = """
    custom_id response error status_code request_id body message code type choices finish_reason content refusal output
    text status incomplete_details reason usage prompt_tokens data embedding index model tool_calls
"""
names = st.sampled_from(NAMES.split())
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=3), inner, max_size=5),
    max_leaves=20,
)
bodies = st.builds(
    lambda base, extra: base | extra,
    st.sampled_from([chat_body(), response_body(message("x")), embeddings_body([0.5]), {}]),
    st.dictionaries(names, json_values, max_size=3),
)


@given(
    line=st.builds(lambda *a: answered(*a), json_values, bodies | json_values, json_values)
    | st.builds(lambda known, error: known | {"error": error}, st.just(answered("r", chat_body())), json_values)
    | json_values,
    endpoint=st.sampled_from([CHAT, RESPONSES, EMBEDDINGS, "/v1/moderations"]),
    batch_status=st.sampled_from(["completed", "expired", "cancelled", "failed", "?"]),
    attempts=st.integers(1, 4),
    sent=st.dictionaries(names | st.just("max_tokens"), json_values, max_size=3),
)
@example(answered("r", chat_body(finish_reason="length")), CHAT, "completed", 1, {"max_tokens": float("inf")})
def test_any_json_line_gets_a_decision_that_can_be_written(
    line: Any, endpoint: str, batch_status: str, attempts: int, sent: dict[str, Any]
) -> None:
    outcome = classify(
        parse_line(json.dumps(line).encode()),
        batch_status=batch_status,
        attempts=attempts,
        limits=RetryLimits(3),
        endpoint=endpoint,
        request=lambda: json.dumps({"custom_id": "r", "body": sent}).encode(),
        parse_output=None,
    )
    written = msgspec.json.decode(msgspec.json.encode(outcome))
    assert (outcome.status is RowStatus.SUCCEEDED) == isinstance(outcome, Done) == (outcome.error is None)
    assert isinstance(outcome, Done) or written["output"] is None
