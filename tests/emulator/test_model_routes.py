"""The models' own endpoints: a single request is answered as in a batch, counted as bought, and disturbed as told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.testing import faults

from .batches import request, results, submit

ASKED = request(1)["body"]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(speed=0, keep_requests=True) as running:
        yield running


def batched(emulator: Emulator, client: OpenAI, endpoint: Any, body: dict[str, Any]) -> dict[str, Any]:
    """What a batch answers to a body."""
    line = {"custom_id": "row-1", "method": "POST", "url": endpoint, "body": body}
    batch = submit(client, [line], endpoint)
    emulator.advance(200)
    return results(client, client.batches.retrieve(batch.id).output_file_id)["row-1"]["response"]["body"]


def test_a_single_request_gets_the_answer_that_a_batch_would_give(emulator: Emulator, client: OpenAI) -> None:
    chat = client.chat.completions.create(**ASKED).choices[0].message.content
    assert chat == batched(emulator, client, "/v1/chat/completions", ASKED)["choices"][0]["message"]["content"]
    given: dict[str, Any] = {"model": "gpt-4o-mini", "input": "Is this good?"}
    text = client.responses.create(**given).output_text
    assert text == batched(emulator, client, "/v1/responses", given)["output"][0]["content"][0]["text"]
    given = {"model": "text-embedding-3-small", "input": "good", "dimensions": 3, "encoding_format": "float"}
    vector = client.embeddings.create(**given).data[0].embedding
    assert vector == batched(emulator, client, "/v1/embeddings", given)["data"][0]["embedding"]


def test_single_requests_count_as_bought_by_the_custom_id_in_their_header(emulator: Emulator, client: OpenAI) -> None:
    header = {"X-Client-Request-Id": "job-0-2-1:row%201"}
    client.chat.completions.create(**ASKED, extra_headers=header)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="gpt-4o-mini", messages=[])
    emulator.add_fault(faults.lost_call(on=faults.CHAT))
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(**ASKED, extra_headers=header)
    emulator.add_fault(faults.lost_response(on=faults.CHAT))
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(**ASKED, extra_headers=header)
    assert [(each.custom_id, each.billed, each.batch_id) for each in emulator.requests()] == [
        ("row 1", True, None),
        ("", False, None),
        ("row 1", True, None),
    ]
    assert emulator.bought() == {"row 1": 2}


def test_single_requests_have_the_faults_of_calls(emulator: Emulator, client: OpenAI) -> None:
    emulator.add_fault(faults.rate_limited(7, on=faults.CHAT))
    emulator.add_fault(faults.server_error(on=faults.CHAT))
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(**ASKED)
    assert limited.value.response.headers["Retry-After"] == "7"
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ASKED)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="no-such-model", messages=ASKED["messages"])
    assert client.chat.completions.create(**ASKED).object == "chat.completion"
    assert emulator.bought().total() == 1
