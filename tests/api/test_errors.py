from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from airflow_provider_openai_batches.api import errors
from airflow_provider_openai_batches.api.error_answers import is_queue_full, retry_after, status_error
from airflow_provider_openai_batches.api.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    BatchFailedError,
    BatchUnfinishedError,
    ConflictError,
    NoRequestSucceededError,
    NotFoundError,
    PermissionDeniedError,
    QueueFullError,
    QuotaExhaustedError,
    RateLimitError,
    ServerError,
    TooLargeError,
    WrongPathError,
)
from airflow_provider_openai_batches.api.models import Batch

ENQUEUED_TOKENS = (
    "Enqueued token limit reached for gpt-4o-mini in organization org-x. Limit: 2,000,000 enqueued tokens. "
    "Please try again once some in_progress batches have been completed."
)
ENQUEUED_REQUESTS = "Enqueued request limit reached for text-embedding-3-small in organization org-X."
AZURE_QUEUE = (
    "The number of enqueued tokens has surpassed the configured limit of 30K for the deployment 'X'. Please either "
    "increase the limit or try again once the current jobs have finished."
)
USER_ACTION_CODES = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
]


def refusal(status: int, error: Any = None, *, body: bytes | None = None, **headers: str) -> APIStatusError:
    """The error for a response; header names are written with underscores."""
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    content = json.dumps({"error": error}).encode() if body is None else body
    return status_error("POST /batches", status, CaseInsensitiveDict(names), content)


@pytest.mark.parametrize(
    ("status", "kind", "transient", "remedy"),
    [
        (400, BadRequestError, False, "bad thing"),
        (401, AuthenticationError, False, "Check the API key"),
        (402, BadRequestError, False, "bad thing"),
        (403, PermissionDeniedError, False, "permissions"),
        (404, WrongPathError, False, "including '/v1'"),
        (405, WrongPathError, False, "including '/v1'"),
        (408, ServerError, True, "later"),
        (409, ConflictError, True, "bad thing"),
        (413, TooLargeError, False, "Split the input"),
        (422, BadRequestError, False, "bad thing"),
        (429, RateLimitError, True, "later"),
        (500, ServerError, True, "later"),
        (502, ServerError, True, "later"),
        (503, ServerError, True, "later"),
        (504, ServerError, True, "later"),
        (529, ServerError, True, "later"),
    ],
)
def test_each_status_has_its_class_and_remedy(
    status: int, kind: type[APIStatusError], transient: bool, remedy: str
) -> None:
    error = refusal(status, {"message": "bad thing", "type": "t", "param": "p.q", "code": "c"}, x_request_id="req_1")
    assert type(error) is kind
    assert error.transient is transient
    assert (error.status, error.code, error.param, error.request_id) == (status, "c", "p.q", "req_1")
    for part in ("POST /batches", f"HTTP {status}", "bad thing", "code c", "field p.q", "request id req_1", remedy):
        assert part in str(error)


def test_an_object_that_is_not_there_is_not_a_wrong_host() -> None:
    error = status_error("GET /batches/batch_1", 404, CaseInsensitiveDict(), b"{}")
    assert type(error) is NotFoundError
    assert "Check the id" in str(error)


def test_a_wrong_host_is_named() -> None:
    error = status_error("POST /files", 405, {}, b"<h1>no</h1>", base_url="http://127.0.0.1:8080/v1")
    assert "POST /files at http://127.0.0.1:8080/v1 was refused with HTTP 405" in str(error)
    # Some services list no batches.
    assert type(status_error("GET /batches", 405, {}, b"{}")) is BadRequestError


@pytest.mark.parametrize("status", [400, 402, 403, 429])
@pytest.mark.parametrize("code", USER_ACTION_CODES)
def test_money_errors_are_for_a_person_to_solve(status: int, code: str) -> None:
    error = refusal(status, {"message": "m", "type": "insufficient_quota", "param": None, "code": code})
    assert type(error) is QuotaExhaustedError
    assert not error.transient
    assert "billing" in str(error)


def test_a_quota_error_is_known_by_its_type_alone() -> None:
    assert type(refusal(429, {"message": "m", "type": "insufficient_quota", "code": None})) is QuotaExhaustedError


def test_a_quota_error_inside_a_gateways_message_is_known() -> None:
    message = "litellm.RateLimitError: {'error': {'code': 'insufficient_quota', 'message': 'You exceeded ...'}}"
    assert type(refusal(429, {"message": message, "code": "429"})) is QuotaExhaustedError


def test_a_quota_error_stays_permanent_whatever_a_gateway_says() -> None:
    assert not refusal(429, {"message": "m", "code": "insufficient_quota"}, x_should_retry="true").transient


@pytest.mark.parametrize("status", [400, 429])
@pytest.mark.parametrize(
    "error",
    [
        {"message": "no", "code": "token_limit_exceeded"},
        {"message": "no", "type": "token_limit_exceeded"},
        {"message": ENQUEUED_TOKENS, "code": "rate_limit_exceeded"},
        {"message": ENQUEUED_REQUESTS, "code": None},
        {"message": AZURE_QUEUE, "code": "400"},
        {"message": "{'error': {'code': 'token_limit_exceeded'}}", "code": "400"},
        ENQUEUED_TOKENS,
    ],
)
def test_a_full_queue_is_known_in_every_shape(status: int, error: Any) -> None:
    refused = refusal(status, error)
    assert type(refused) is QueueFullError
    assert refused.transient
    assert "finish first" in str(refused)


@pytest.mark.parametrize(
    ("code", "message", "full"),
    [
        ("token_limit_exceeded", None, True),
        (None, ENQUEUED_TOKENS, True),
        ("unknown", ENQUEUED_REQUESTS, True),
        (None, AZURE_QUEUE, True),
        (None, None, False),
        ("rate_limit_exceeded", "Rate limit reached for gpt-4o on tokens per min.", False),
    ],
)
def test_a_full_queue_is_told_from_a_rate_limit(code: str | None, message: str | None, full: bool) -> None:
    assert is_queue_full(code, message) is full


@pytest.mark.parametrize(("header", "transient"), [("true", True), ("false", False), ("TRUE", True), ("maybe", None)])
@pytest.mark.parametrize(("status", "default"), [(400, False), (401, False), (429, True), (503, True)])
def test_x_should_retry_decides_where_it_speaks(
    header: str, transient: bool | None, status: int, default: bool
) -> None:
    error = refusal(status, {"message": "m"}, x_should_retry=header)
    assert error.transient is (default if transient is None else transient)


@pytest.mark.parametrize(
    ("body", "reason", "code"),
    [
        (b"", "empty body", None),
        (b"<html><h1>502 Bad\n Gateway</h1></html>", "502 Bad Gateway", None),
        (b'{"error": {"message": "m", "code": 429}}', "m", "429"),
        (b'{"error": {"message": "m", "code": 0}}', "m", "0"),
        (b'{"error": "plain text"}', "plain text", None),
        (b'{"detail": "Not Found"}', "Not Found", None),
        (b'{"error": {"message": "m"}, "detail": {"message": "d", "code": "e"}}', "m", None),
        (b'{"message": "top level", "code": "c"}', "top level", "c"),
        (b'{"error": null, "message": "beside null"}', "beside null", None),
        (b'{"fault": "of another API"}', "of another API", None),
        (b'"just a string"', "just a string", None),
        (b"[1, 2]", "[1, 2]", None),
        (b"null", "null", None),
        (b"\xff\xfe\x00 binary", "binary", None),
        (b"[" * 60_000, "[[[[", None),
    ],
)
def test_any_error_body_gives_a_reason(body: bytes, reason: str, code: str | None) -> None:
    error = refusal(500, body=body)
    assert reason in str(error)
    assert error.code == code
    assert len(str(error)) < 600


@given(st.integers(400, 599), st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_reading_an_error_never_raises(status: int, body: bytes) -> None:
    assert refusal(status, body=body).status == status


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_reading_a_json_error_never_raises(error: Any) -> None:
    assert refusal(429, error).status == 429


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": " 7 "}, 7.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5),
        ({"retry-after-ms": "soon", "Retry-After": "9"}, 9.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:50"}, 30.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "600"}, 600.0),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1e999"}, None),
        ({"Retry-After": "Mon, 01 Jan 2024 00:00:00 +99999999999"}, None),
        ({"Retry-After": "Mon, 01 Jan 99999 00:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(CaseInsensitiveDict(headers), now=1_700_000_000) == seconds


def test_a_retry_after_date_is_measured_from_now() -> None:
    date = formatdate(time.time() + 60, usegmt=True)
    error = refusal(429, {"message": "m"}, retry_after=date)
    assert error.retry_after_s == pytest.approx(60, abs=5)


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=40))
def test_reading_retry_after_never_raises(text: str) -> None:
    seconds = retry_after(CaseInsensitiveDict({"Retry-After": text}))
    assert seconds is None or seconds >= 0


def test_the_drawing_of_the_tree_is_complete() -> None:
    drawn = errors.__doc__ or ""
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.OpenAIBatchesError):
            assert name in drawn


def test_a_failed_batch_lists_every_error() -> None:
    entries = [{"code": "invalid_json_line", "message": f"bad {line}", "line": line} for line in (1, 10)]
    error = BatchFailedError(Batch.from_api({"id": "b", "input_file_id": "file-1", "errors": {"data": entries}}))
    for part in ("Batch b", "file-1", "line 1: invalid_json_line: bad 1", "line 10: invalid_json_line: bad 10"):
        assert part in str(error)
    assert (error.code, len(error.errors)) == ("invalid_json_line", 2)


def test_a_failed_batch_without_a_reason_says_so() -> None:
    error = BatchFailedError(Batch.from_api({"id": "b", "status": "failed", "errors": None}))
    assert "no reason" in str(error)
    assert error.code is None


def test_ten_thousand_batch_errors_do_not_flood_the_log() -> None:
    data = [{"code": "invalid_json_line", "line": line} for line in range(1, 10_001)]
    error = BatchFailedError(Batch.from_api({"id": "b", "errors": {"data": data}}))
    assert len(str(error).splitlines()) < 110
    assert "9900 more" in str(error)
    assert len(error.batch.errors) == 10_000


def test_an_unfinished_batch_points_to_what_is_paid_for() -> None:
    counts = {"total": 10, "completed": 3, "failed": 0}
    paid = Batch.from_api({"id": "b", "status": "expired", "request_counts": counts, "output_file_id": "file-o"})
    assert "3 of 10" in str(BatchUnfinishedError(paid))
    assert "file-o" in str(BatchUnfinishedError(paid))
    assert "Nothing was finished" in str(BatchUnfinishedError(Batch.from_api({"id": "b", "status": "cancelled"})))


def test_a_batch_of_failures_points_to_its_error_file() -> None:
    batch = Batch.from_api({"id": "b", "request_counts": {"total": 4}, "error_file_id": "file-e"})
    assert "all 4 requests failed" in str(NoRequestSucceededError(batch))
    assert "file-e" in str(NoRequestSucceededError(batch))
