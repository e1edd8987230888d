"""OpenAI's own SDK works against the emulator as it does against OpenAI."""

from __future__ import annotations

import json

import openai
import pytest
import requests
from openai import OpenAI

from airflow_provider_openai_batches.emulator import Emulator

from .batches import CHAT, jsonl, request, results, submit, upload


def test_file_is_uploaded_retrieved_listed_downloaded_and_deleted(client: OpenAI) -> None:
    content = jsonl(request(number) for number in range(3))
    file = client.files.create(
        file=("input.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.bytes, file.purpose, file.status, file.filename) == (len(content), "batch", "processed", "input.jsonl")
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    assert [each.id for each in client.files.list(purpose="batch")] == [file.id]
    assert client.files.content(file.id).content == content
    with client.files.with_streaming_response.content(file.id) as response:
        assert response.headers["content-length"] == str(len(content))
        assert b"".join(response.iter_bytes(100)) == content
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_batch_runs_through_its_states_on_the_clock(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, map(request, range(10)), metadata={"team": "a"})
    assert (batch.status, batch.expires_at) == ("validating", batch.created_at + 86_400)
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0
    emulator.advance(2.9)
    assert client.batches.retrieve(batch.id).status == "validating"
    seen = []
    for seconds in (0.1, 30, 90, 2):
        emulator.advance(seconds)
        batch = client.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        seen.append((batch.status, batch.request_counts.completed, batch.request_counts.total))
        assert (batch.output_file_id is None) == (batch.status != "completed")
    assert seen == [("in_progress", 0, 10), ("in_progress", 2, 10), ("finalizing", 10, 10), ("completed", 10, 10)]
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert [(time or 0) - batch.created_at for time in times] == [0, 3, 123, 125]
    assert (batch.model, batch.metadata, batch.error_file_id) == ("gpt-4o-mini", {"team": "a"}, None)
    answers = results(client, batch.output_file_id)
    assert answers.keys() == {f"row-{number}" for number in range(10)}
    assert list(answers) != sorted(answers)
    usage = [line["response"]["body"]["usage"] for line in answers.values()]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(each["prompt_tokens"] for each in usage)
    assert batch.usage.output_tokens == sum(each["completion_tokens"] for each in usage)
    assert batch.output_file_id is not None
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"


def test_lists_are_newest_first_and_paginate(client: OpenAI) -> None:
    file_id = upload(client, [request(0)])
    made = [client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h").id for _ in range(5)]
    page = client.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == ([made[4], made[3]], True)
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    files = [upload(client, [request(0)]) for _ in range(3)]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == [file_id, *files]
    assert [file.id for file in client.files.list(after=files[1])] == [files[0], file_id]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=batch_unknown"])
def test_bad_page_is_refused(emulator: Emulator, query: str) -> None:
    response = requests.get(f"{emulator.base_url}/batches?{query}", timeout=10)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_empty_list_has_null_ids(emulator: Emulator) -> None:
    shown = requests.get(f"{emulator.base_url}/batches", timeout=10).json()
    assert shown == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_unknown_objects_are_404_with_an_envelope(client: OpenAI) -> None:
    for call in (
        lambda: client.batches.retrieve("batch_x"),
        lambda: client.batches.cancel("batch_x"),
        lambda: client.files.content("file-x"),
        lambda: client.files.delete("file-x"),
        lambda: client.get("/nothing", cast_to=object),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.request_id is not None
        assert caught.value.request_id.startswith("req_")
        assert caught.value.type == "invalid_request_error"


def test_wrong_key_is_refused_and_right_key_is_not() -> None:
    with Emulator(api_key="sk-right") as emulator:
        for headers in ({}, {"Authorization": "Bearer sk-wrong"}):
            response = requests.get(f"{emulator.base_url}/files", headers=headers, timeout=10)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
            assert "sk-wrong" not in response.text
        assert not OpenAI(base_url=emulator.base_url, api_key="sk-right").files.list().data


def test_any_key_or_none_is_accepted_by_default(emulator: Emulator) -> None:
    assert requests.get(f"{emulator.base_url}/files", timeout=10).ok
    root = emulator.base_url.removesuffix("/v1")
    assert "openai-batches-emulator" in requests.get(root, timeout=10).text


def test_calls_are_recorded_by_route(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, [request(0)])
    client.batches.retrieve(batch.id)
    assert ("GET", "/v1/batches/{batch_id}", 200) in emulator.calls
    assert emulator.count("POST", "/v1/batches") == 1
    root = emulator.base_url.removesuffix("/v1")
    counted = requests.get(f"{root}/emulator/calls", timeout=10).json()
    assert counted == {"POST /v1/files": 1, "POST /v1/batches": 1, "GET /v1/batches/{batch_id}": 1}


def test_clock_is_advanced_over_http(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, [request(0)])
    root = emulator.base_url.removesuffix("/v1")
    assert requests.post(f"{root}/emulator/advance", json={"seconds": 125}, timeout=10).ok
    assert emulator.batches()[0]["status"] == "completed"
    assert client.batches.retrieve(batch.id).status == "completed"
    assert requests.post(f"{root}/emulator/advance", json={"seconds": "soon"}, timeout=10).status_code == 400


def test_the_same_request_always_gets_the_same_answer() -> None:
    outputs = []
    for _ in range(2):
        with Emulator(speed=0) as emulator:
            client = OpenAI(base_url=emulator.base_url, api_key="any")
            batch = submit(client, map(request, range(5)))
            emulator.advance(125)
            lines = results(client, client.batches.retrieve(batch.id).output_file_id)
            outputs.append({key: line["response"]["body"]["choices"] for key, line in lines.items()})
    assert outputs[0] == outputs[1]
    assert len({json.dumps(choices) for choices in outputs[0].values()}) == 5
