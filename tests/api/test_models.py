from __future__ import annotations

import json
import logging

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api import models
from airflow_provider_openai_batches.api.models import (
    TERMINAL_STATUSES,
    Batch,
    BatchError,
    BatchStatus,
    File,
    RequestCounts,
    Usage,
    one_line,
    parse_status,
)

FULL_BATCH = {
    "id": "batch_69c3c347282c81908ede48ecc95bf201",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "model": "gpt-5-2025-08-07",
    "errors": None,
    "input_file_id": "file-abc",
    "completion_window": "24h",
    "status": "completed",
    "output_file_id": "file-out",
    "error_file_id": "file-err",
    "created_at": 1774437191,
    "in_progress_at": 1774437194,
    "expires_at": 1774523591,
    "finalizing_at": 1774437322,
    "completed_at": 1774437324,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 9, "completed": 8, "failed": 1},
    "usage": {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 20},
        "output_tokens": 50,
        "output_tokens_details": {"reasoning_tokens": 30},
        "total_tokens": 150,
    },
    "metadata": {"team": "search"},
}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
json_values = st.recursive(
    scalars | st.datetimes().map(lambda moment: moment.isoformat()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ids = st.text(min_size=1, max_size=10) | st.integers() | st.just(True)


def objects(names: list[str]) -> st.SearchStrategy[dict[str, object]]:
    """Any object with an id, in which the API's own names occur often."""
    return st.builds(
        lambda known, other, object_id: {**other, **known, "id": object_id},
        st.dictionaries(st.sampled_from(names), json_values, max_size=10),
        st.dictionaries(st.text(max_size=8), json_values, max_size=2),
        ids,
    )


def test_a_full_batch_keeps_every_field() -> None:
    batch = Batch.from_api(FULL_BATCH)
    plain = {name: value for name, value in FULL_BATCH.items() if name not in ("object", "errors", "usage")}
    counts = plain.pop("request_counts")
    assert {name: getattr(batch, name) for name in plain} == plain
    assert batch.request_counts == RequestCounts(**counts)  # type: ignore[arg-type]
    assert batch.usage == Usage(
        input_tokens=100, cached_tokens=20, output_tokens=50, reasoning_tokens=30, total_tokens=150
    )
    assert batch.is_terminal


def test_only_an_id_is_needed() -> None:
    batch = Batch.from_api({"id": "batch_1"})
    assert (batch.id, batch.status, batch.is_terminal) == ("batch_1", "", False)
    assert (batch.errors, batch.metadata, batch.usage, batch.request_counts) == ((), {}, None, RequestCounts())
    assert File.from_api({"id": "file-1"}) == File(id="file-1")


@pytest.mark.parametrize("value", [{}, {"id": None}, {"id": ""}, {"error": {"message": "gone"}}])
def test_what_has_no_id_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no id"):
        Batch.from_api(value)
    with pytest.raises(ValueError, match="no id"):
        File.from_api(value)


def test_empty_text_means_absent() -> None:
    batch = Batch.from_api({**FULL_BATCH, "output_file_id": "", "error_file_id": "", "model": ""})
    assert (batch.output_file_id, batch.error_file_id, batch.model) == (None, None, None)


@pytest.mark.parametrize(
    ("spelling", "status"),
    [
        ("Validating", BatchStatus.VALIDATING),
        ("IN_PROGRESS", BatchStatus.IN_PROGRESS),
        ("canceled", BatchStatus.CANCELLED),
        ("CANCELING", BatchStatus.CANCELLING),
        (" Completed ", BatchStatus.COMPLETED),
        *((status.value, status) for status in BatchStatus),
    ],
)
def test_a_status_is_read_in_any_spelling(spelling: str, status: BatchStatus) -> None:
    assert parse_status(spelling) is status
    assert Batch.from_api({"id": "b", "status": spelling}).is_terminal == (status in TERMINAL_STATUSES)


@pytest.mark.parametrize("status", ["Paused", "", None, 7, ["completed"]])
def test_an_unknown_status_is_not_terminal_and_warned_about(status: object, caplog: pytest.LogCaptureFixture) -> None:
    models._warn_of_unknown.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            assert not Batch.from_api({"id": "b", "status": status}).is_terminal
    assert len(caplog.records) == 1
    assert "Unknown batch status" in caplog.text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1721409433, 1721409433),
        (1721409433.9, 1721409433),
        ("1721409433", 1721409433),
        ("2024-07-19T17:17:13+00:00", 1721409433),
        ("2024-07-19T17:17:13.2491382+00:00", 1721409433),
        ("2024-07-19T17:17:13Z", 1721409433),
        ("2024-07-19T17:17:13", 1721409433),
        ("2024-07-19T19:17:13+02:00", 1721409433),
        (0, None),
        ("", None),
        (None, None),
        ("soon", None),
        (float("nan"), None),
        (float("inf"), None),
        (1e300, None),
        (10**30, None),
        ("9" * 30, None),
        ({}, None),
    ],
)
def test_times_are_read_as_numbers_and_iso_8601(value: object, seconds: int | None) -> None:
    assert Batch.from_api({"id": "b", "completed_at": value}).completed_at == seconds
    assert File.from_api({"id": "f", "created_at": value}).created_at == seconds


@pytest.mark.parametrize(
    ("counts", "parsed"),
    [
        (None, RequestCounts()),
        ({}, RequestCounts()),
        ([], RequestCounts()),
        ({"total": None, "completed": None, "failed": None}, RequestCounts()),
        ({"total": 3, "completed": None}, RequestCounts(total=3)),
        ({"total": "3", "completed": 2.0, "failed": 1}, RequestCounts(3, 2, 1)),
    ],
)
def test_missing_and_null_counts_are_zero(counts: object, parsed: RequestCounts) -> None:
    assert Batch.from_api({"id": "b", "request_counts": counts}).request_counts == parsed


def test_an_azure_batch_is_read() -> None:
    batch = Batch.from_api(
        {
            "id": "batch_6caaf24d",
            "object": "batch",
            "status": "Failed",
            "created_at": "2024-07-19T17:13:57.2491382+00:00",
            "completed_at": "2024-07-19T17:14:57+00:00",
            "endpoint": None,
            "error_blob": "",
            "error_file_id": "",
            "request_counts": {"total": None, "completed": None, "failed": None},
            "errors": {"object": "list", "data": [{"code": "empty_file", "line": 1, "message": "empty"}]},
        }
    )
    assert batch.status == BatchStatus.FAILED
    assert batch.created_at == 1721409237
    assert batch.error_file_id is None
    assert batch.errors == (BatchError(code="empty_file", message="empty", line=1),)


@pytest.mark.parametrize(
    ("errors", "parsed"),
    [
        (None, ()),
        ({"object": "list", "data": None}, ()),
        ({"object": "list"}, ()),
        ({"data": [{}]}, (BatchError(),)),
        ({"data": ["went wrong", None]}, (BatchError(message="went wrong"), BatchError())),
        ([{"code": "invalid_url", "line": 4, "param": "url"}], (BatchError(code="invalid_url", param="url", line=4),)),
        ("went wrong", (BatchError(message="went wrong"),)),
    ],
)
def test_errors_are_read_in_every_shape(errors: object, parsed: tuple[BatchError, ...]) -> None:
    assert Batch.from_api({"id": "b", "errors": errors}).errors == parsed


def test_an_error_names_its_line_code_and_field() -> None:
    error = BatchError(code="invalid_request", message="Model parameter is required.", param="body.model", line=7)
    assert str(error) == "line 7: invalid_request: Model parameter is required. (field body.model)"
    assert str(BatchError()) == "unknown_error: no message"


@given(objects([*FULL_BATCH]))
def test_any_object_with_an_id_is_a_batch(value: dict[str, object]) -> None:
    batch = Batch.from_api(value)
    assert Batch.from_dict(batch.to_dict()) == batch


@given(objects(["bytes", "created_at", "expires_at", "filename", "purpose", "status"]))
def test_any_object_with_an_id_is_a_file(value: dict[str, object]) -> None:
    assert File.from_api(value).id == one_line(str(value["id"]))


def test_a_batch_survives_xcom() -> None:
    batch = Batch.from_api({**FULL_BATCH, "errors": {"data": [{"code": "x", "line": 1}]}})
    assert Batch.from_dict(json.loads(json.dumps(batch.to_dict()))) == batch
    assert type(batch.to_dict()["status"]) is str


def test_half_a_surrogate_pair_does_not_keep_a_batch_from_xcom() -> None:
    batch = Batch.from_api(json.loads('{"id": "b", "model": "m\\ud800", "metadata": {"k\\udfff": "\\ud83d\\ude00"}}'))
    assert (batch.model, batch.metadata) == ("m?", {"k?": "\U0001f600"})
    assert Batch.from_dict(msgspec.msgpack.decode(msgspec.msgpack.encode(batch.to_dict()))) == batch


def test_numbers_that_no_message_can_carry_are_absent() -> None:
    huge = 10**30
    batch = Batch.from_api(
        {
            "id": "b",
            "request_counts": {"total": huge, "completed": 2**63 - 1, "failed": 2**63},
            "usage": {"input_tokens": -huge, "output_tokens": 1},
            "errors": [{"line": huge}],
        }
    )
    assert batch.request_counts == RequestCounts(completed=2**63 - 1)
    assert batch.usage == Usage(output_tokens=1)
    assert batch.errors == (BatchError(),)
    assert Batch.from_dict(msgspec.msgpack.decode(msgspec.msgpack.encode(batch.to_dict()))) == batch


@pytest.mark.parametrize(("errors", "shown"), [(100, 100), (101, 101), (102, 101), (50_000, 101)])
def test_xcom_carries_a_hundred_errors_and_how_many_there_are(errors: int, shown: int) -> None:
    entries = [{"code": "invalid_json_line", "message": "not JSON", "line": line} for line in range(1, errors + 1)]
    written = Batch.from_api({"id": "b", "status": "failed", "errors": {"data": entries}}).to_dict()
    assert len(written["errors"]) == shown
    assert [error["line"] for error in written["errors"][:100]] == list(range(1, 101))
    if shown < errors:
        assert written["errors"][-1]["message"] == f"{errors - 100:,} more errors are not shown"
    assert Batch.from_dict(written).to_dict() == written
