from __future__ import annotations

import io
import itertools
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import (
    APIConnectionError,
    ConflictError,
    InvalidInputError,
    InvalidResponseError,
    NotFoundError,
    QuotaExhaustedError,
    RateLimitError,
    ServerError,
)
from airflow_provider_openai_batches.emulator import Emulator
from tests.api.connecting import connect
from tests.api.scripted_server import RESET, Answer, Request, ScriptedServer, as_json

CHAT = "/v1/chat/completions"
BATCH = {"id": "batch_1", "status": "in_progress", "created_at": 1_700_000_000}
REFUSED_CANCEL = as_json({"error": {"message": "Cannot cancel a batch with status 'completed'."}}, 409)


@pytest.fixture
def batch_id(client: BatchClient, input_file: bytes) -> str:
    file = client.upload_file(lambda: io.BytesIO(input_file), filename="rows.jsonl")
    return client.create_batch(file.id, CHAT).id


# --- retrieve ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_seen_through_its_life(emulator: Emulator, client: BatchClient, batch_id: str) -> None:
    assert client.retrieve_batch(batch_id).status == "validating"
    emulator.advance(4)
    assert client.retrieve_batch(batch_id).status == "in_progress"
    emulator.advance(1_000)
    batch = client.retrieve_batch(batch_id)
    assert batch.status == "completed"
    assert batch.request_counts.completed == 3
    assert batch.output_file_id
    assert batch.usage is not None
    assert not batch.files_pending


@pytest.mark.parametrize(
    "trouble",
    [{"status": 500}, {"status": 502, "body": "<h1>Bad Gateway</h1>"}, {"status": 429}, {"drop": "before"}],
    ids=str,
)
def test_a_read_survives_trouble_that_passes(
    emulator: Emulator, client: BatchClient, batch_id: str, pauses: list[float], trouble: dict[str, Any]
) -> None:
    emulator.add_fault({"on": {"method": "GET"}, "do": trouble, "times": 4})
    assert client.retrieve_batch(batch_id).id == batch_id
    assert len(pauses) == 4


def test_trouble_that_stays_is_raised_after_the_attempts(
    emulator: Emulator, client: BatchClient, batch_id: str
) -> None:
    emulator.add_fault({"on": {"method": "GET"}, "do": {"status": 503}, "times": None})
    with pytest.raises(ServerError):
        client.retrieve_batch(batch_id)
    assert emulator.count("GET", "/v1/batches/{batch_id}") == 5


def test_the_pause_is_the_one_the_server_asks_for(
    emulator: Emulator, client: BatchClient, batch_id: str, pauses: list[float]
) -> None:
    for headers in ({"Retry-After": "7"}, {"retry-after-ms": "1500"}):
        emulator.add_fault({"on": {"method": "GET"}, "do": {"status": 429, "headers": headers}})
    client.retrieve_batch(batch_id)
    assert pauses == [7.0, 1.5]


def test_a_pause_too_long_for_a_worker_is_raised(emulator: Emulator, client: BatchClient, batch_id: str) -> None:
    emulator.add_fault({"on": {"method": "GET"}, "do": {"status": 429, "headers": {"Retry-After": "600"}}})
    with pytest.raises(RateLimitError) as raised:
        client.retrieve_batch(batch_id)
    assert raised.value.retry_after_s == 600
    assert emulator.count("GET", "/v1/batches/{batch_id}") == 1


def test_an_exhausted_quota_is_asked_for_once(emulator: Emulator, client: BatchClient, batch_id: str) -> None:
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    emulator.add_fault({"on": {"method": "GET"}, "do": {"status": 429, "body": body}, "times": None})
    with pytest.raises(QuotaExhaustedError):
        client.retrieve_batch(batch_id)
    assert emulator.count("GET", "/v1/batches/{batch_id}") == 1


def test_an_unknown_batch_is_not_found(client: BatchClient) -> None:
    with pytest.raises(NotFoundError, match="Check the id") as raised:
        client.retrieve_batch("batch_of_another_project")
    assert raised.value.request_id
    assert raised.value.request_id in str(raised.value)


def test_no_layer_below_repeats_a_call() -> None:
    with (
        ScriptedServer(endless=itertools.repeat(RESET)) as server,
        connect(server.base_url, attempts=2) as client,
        pytest.raises(APIConnectionError),
    ):
        client.retrieve_batch("batch_1")
    assert len(server.requests) == 2


def test_the_attempts_are_the_callers_to_choose(emulator: Emulator) -> None:
    emulator.add_fault({"do": {"status": 500}, "times": None})
    with (
        connect(emulator.base_url, attempts=2) as client,
        pytest.raises(ServerError),
    ):
        client.retrieve_batch("batch_1")
    assert emulator.count("GET", "/v1/batches/{batch_id}") == 2


@pytest.mark.parametrize(
    "answer",
    [Answer(200, b"<html>It works!</html>", {"Content-Type": "text/html"}), Answer(200), as_json([1]), Answer(304)],
    ids=["HTML", "empty", "a list", "304"],
)
def test_another_servers_answer_names_the_host_as_the_remedy(answer: Answer) -> None:
    with (
        ScriptedServer(answer) as server,
        connect(server.base_url) as client,
        pytest.raises(InvalidResponseError, match="host") as raised,
    ):
        client.retrieve_batch("batch_1")
    assert server.base_url in str(raised.value)
    assert not raised.value.transient


def test_deeply_nested_json_is_an_invalid_response() -> None:
    with (
        ScriptedServer(Answer(200, b"[" * 200_000)) as server,
        connect(server.base_url) as client,
        pytest.raises(InvalidResponseError),
    ):
        client.retrieve_batch("batch_1")


def test_an_object_without_an_id_is_an_invalid_response() -> None:
    with (
        ScriptedServer(as_json({"error": {"message": "gone"}})) as server,
        connect(server.base_url) as client,
        pytest.raises(InvalidResponseError, match="no id"),
    ):
        client.retrieve_batch("batch_1")


@pytest.mark.parametrize("batch_id", ["a/../../files", "a b?c#d", "ü%2F", "batch_1\n"])
def test_an_id_cannot_leave_its_place_in_the_path(batch_id: str) -> None:
    with ScriptedServer(as_json(BATCH)) as server, connect(server.base_url) as client:
        client.retrieve_batch(batch_id)
    assert server.requests[0].path.startswith("/v1/batches/")
    assert server.requests[0].path.count("/") == 3
    assert server.requests[0].query == {}


@pytest.mark.parametrize("call", ["retrieve_batch", "cancel_batch", "retrieve_file", "delete_file"])
@pytest.mark.parametrize("object_id", ["..", "", None])
def test_what_is_no_id_is_refused_before_any_call(
    client: BatchClient, emulator: Emulator, call: str, object_id: Any
) -> None:
    with pytest.raises(InvalidInputError):
        getattr(client, call)(object_id)
    assert emulator.calls == []


def test_settings_go_with_every_call() -> None:
    with (
        ScriptedServer(as_json(BATCH), as_json(BATCH)) as server,
        connect(
            server.base_url,
            organization="org-1",
            project="proj_1",
            headers={"X-Team": "search"},
            query={"api-version": "2024-10-21"},
        ) as bearer,
        connect(server.base_url, api_key="azure-key-123", auth="api-key") as azure,
    ):
        bearer.retrieve_batch("batch_1")
        azure.retrieve_batch("batch_1")
    first, second = server.requests
    assert first.query == {"api-version": "2024-10-21"}
    assert first.headers["Authorization"] == f"Bearer {bearer.settings.api_key}"
    assert (first.headers["OpenAI-Organization"], first.headers["OpenAI-Project"]) == ("org-1", "proj_1")
    assert first.headers["X-Team"] == "search"
    assert second.headers["api-key"] == "azure-key-123"
    assert "Authorization" not in second.headers


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_a_running_batch_is_cancelled(emulator: Emulator, client: BatchClient, batch_id: str) -> None:
    emulator.advance(4)
    assert client.cancel_batch(batch_id).status == "cancelling"
    assert client.cancel_batch(batch_id).status == "cancelling"
    emulator.advance(1_000)
    assert client.cancel_batch(batch_id).status == "cancelled"


def test_cancelling_a_batch_that_is_over_returns_it_after_one_try(
    emulator: Emulator, client: BatchClient, batch_id: str, pauses: list[float]
) -> None:
    emulator.advance(1_000)
    batch = client.cancel_batch(batch_id)
    assert (batch.id, batch.status) == (batch_id, "completed")
    assert emulator.count("POST", "/v1/batches/{batch_id}/cancel") == 1
    assert pauses == []


def test_a_409_on_cancel_is_not_repeated_even_where_the_server_says_so() -> None:
    stubborn = Answer(409, REFUSED_CANCEL.body, {"x-should-retry": "true"})
    with ScriptedServer(stubborn, as_json(BATCH)) as server, connect(server.base_url) as client:
        client.cancel_batch("batch_1")
    assert [request.method for request in server.requests] == ["POST", "GET"]


def test_a_409_elsewhere_is_repeated() -> None:
    with ScriptedServer(Answer(409), as_json(BATCH)) as server, connect(server.base_url) as client:
        client.retrieve_batch("batch_1")
    with (
        ScriptedServer(endless=itertools.repeat(Answer(409))) as server,
        connect(server.base_url) as client,
        pytest.raises(ConflictError),
    ):
        client.retrieve_batch("batch_1")


def test_a_lost_cancel_is_repeated(emulator: Emulator, client: BatchClient, batch_id: str) -> None:
    emulator.add_fault({"on": {"method": "POST"}, "do": {"drop": "after"}})
    assert client.cancel_batch(batch_id).status == "cancelling"


def test_a_cancel_lost_before_the_batch_ended_returns_the_ended_batch() -> None:
    steps = (RESET, REFUSED_CANCEL, as_json({**BATCH, "status": "completed"}))
    with ScriptedServer(*steps) as server, connect(server.base_url) as client:
        assert client.cancel_batch("batch_1").status == "completed"


def test_cancelling_an_unknown_batch_is_not_found(client: BatchClient) -> None:
    with pytest.raises(NotFoundError):
        client.cancel_batch("batch_of_another_project")


# --- list -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def batch_ids(client: BatchClient) -> list[str]:
    """More batches than fit on a page, newest first."""
    return [client.create_batch(f"file-{index}", CHAT).id for index in range(103)][::-1]


def test_all_pages_are_listed_newest_first(emulator: Emulator, client: BatchClient, batch_ids: list[str]) -> None:
    assert [batch.id for batch in client.list_batches()] == batch_ids
    assert emulator.count("GET", "/v1/batches") == 2


def test_a_limit_is_kept_within_and_across_pages(emulator: Emulator, client: BatchClient, batch_ids: list[str]) -> None:
    for limit, pages in ((0, 0), (1, 1), (100, 1), (102, 2)):
        before = emulator.count("GET", "/v1/batches")
        assert [batch.id for batch in client.list_batches(limit=limit)] == batch_ids[:limit]
        assert emulator.count("GET", "/v1/batches") - before == pages


def test_listing_starts_behind_a_given_batch(client: BatchClient, batch_ids: list[str]) -> None:
    assert [batch.id for batch in client.list_batches(after=batch_ids[99])] == batch_ids[100:]


def test_pages_are_fetched_only_when_needed(emulator: Emulator, client: BatchClient, batch_ids: list[str]) -> None:
    listing = client.list_batches()
    assert emulator.count("GET", "/v1/batches") == 0
    assert next(listing).id == batch_ids[0]
    assert emulator.count("GET", "/v1/batches") == 1


def test_one_failing_page_does_not_restart_the_listing(
    emulator: Emulator, client: BatchClient, batch_ids: list[str]
) -> None:
    emulator.add_fault({"on": {"method": "GET", "path": "/v1/batches"}, "do": {"status": 500}, "skip": 1})
    assert [batch.id for batch in client.list_batches()] == batch_ids


def test_a_server_that_ignores_after_ends_the_listing_with_a_warning(
    emulator: Emulator, client: BatchClient, batch_ids: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    emulator.add_fault({"on": {"method": "GET"}, "do": {"ignore_after": True}, "times": None})
    with caplog.at_level(logging.WARNING):
        assert [batch.id for batch in client.list_batches()] == batch_ids[:100]
    assert "twice" in caplog.text


def listed(*answers: Answer) -> tuple[list[str], int]:
    with ScriptedServer(*answers) as server, connect(server.base_url) as client:
        return [batch.id for batch in client.list_batches()], len(server.requests)


def test_a_missing_has_more_means_go_on_until_an_empty_page() -> None:
    pages = as_json({"data": [BATCH]}), as_json({"data": [{"id": "batch_2"}]}), as_json({"data": []})
    assert listed(*pages) == (["batch_1", "batch_2"], 3)


@pytest.mark.parametrize("page", [{}, {"data": None}, {"data": []}, {"data": "none"}, {"data": {}}, {"data": [None]}])
@pytest.mark.parametrize("has_more", [True, False, None])
def test_a_page_without_batches_ends_the_listing(page: dict[str, Any], has_more: bool | None) -> None:
    assert listed(as_json({**page, "has_more": has_more})) == ([], 1)


def test_what_is_no_batch_is_left_out_of_a_listing() -> None:
    data = [None, "text", 7, [], {}, {"id": ""}, {"id": None}, BATCH]
    assert listed(as_json({"data": data, "has_more": False})) == (["batch_1"], 1)


def test_a_server_that_returns_more_than_asked_is_cut_to_the_limit() -> None:
    page = as_json({"data": [{"id": str(index)} for index in range(1, 6)], "has_more": True})
    with ScriptedServer(page) as server, connect(server.base_url) as client:
        assert [batch.id for batch in client.list_batches(limit=2)] == ["1", "2"]
    assert server.requests[0].query["limit"] == "2"


ids = st.sampled_from("abcd")
pages = st.fixed_dictionaries(
    {"data": st.lists(st.fixed_dictionaries({"id": ids}) | st.none(), max_size=3)},
    optional={"has_more": st.sampled_from([True, False, None])},
)


@settings(max_examples=60)
@given(st.dictionaries(st.none() | ids, pages), st.none() | ids, st.none() | st.integers(0, 5))
def test_no_graph_of_pages_makes_a_listing_endless(
    graph: dict[str | None, dict[str, Any]], after: str | None, limit: int | None
) -> None:
    def page(request: Request) -> Answer:
        return as_json(graph.get(request.query.get("after"), {}))

    with ScriptedServer(endless=itertools.repeat(page)) as server, connect(server.base_url) as client:
        found = [batch.id for batch in client.list_batches(after=after, limit=limit)]
    # No cursor is asked for twice.
    asked = [request.query.get("after") for request in server.requests]
    assert len(asked) == len(set(asked))
    assert limit is None or len(found) <= limit
    assert set(found) <= {item["id"] for shown in graph.values() for item in shown["data"] if item}
