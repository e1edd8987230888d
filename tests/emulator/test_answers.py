"""Answers have the shape of their endpoint, and say that no model gave them."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections import Counter
from typing import Any

import pytest
from openai.types import Completion, CreateEmbeddingResponse, ModerationCreateResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from airflow_provider_openai_batches.emulator.answers import Answer, answer, prompt_tokens

SENTIMENT = {
    "type": "object",
    "properties": {"sentiment": {"enum": ["positive", "neutral", "negative"]}, "reason": {"type": "string"}},
    "required": ["sentiment", "reason"],
    "additionalProperties": False,
}


def ask(url: str, **body: Any) -> Answer:
    return answer(url, {"model": "m", **body}, created=1)


def chat(prompt: str, **options: Any) -> ChatCompletion:
    reply = ask("/v1/chat/completions", messages=[{"role": "user", "content": prompt}], **options)
    assert reply.status == 200
    return ChatCompletion.model_validate(reply.body, strict=True)


def test_chat_completion_says_it_is_emulated() -> None:
    completion = chat("Why is the sky blue?", n=2)
    assert len(completion.choices) == 2
    assert "no model was asked" in (completion.choices[0].message.content or "")
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len("Why is the sky blue?") // 4


def test_structured_chat_answers_follow_the_schema_and_vary() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SENTIMENT}}
    picks: Counter[str] = Counter()
    for number in range(60):
        content = chat(f"review {number}", response_format=wanted).choices[0].message.content
        picks[json.loads(content or "")["sentiment"]] += 1
    assert picks.keys() == {"positive", "neutral", "negative"}
    assert min(picks.values()) > 5


def test_json_object_answers_are_objects() -> None:
    content = chat("json please", response_format={"type": "json_object"}).choices[0].message.content
    assert json.loads(content or "")["emulated"] is True


def test_token_cap_cuts_the_answer() -> None:
    choice = chat("Tell me a lot", max_completion_tokens=3).choices[0]
    assert (choice.finish_reason, len(choice.message.content or "")) == ("length", 12)
    body = ask("/v1/responses", input="Tell me a lot", max_output_tokens=3).body
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_responses_answer_follows_text_format() -> None:
    text = {"format": {"type": "json_schema", "name": "s", "strict": True, "schema": SENTIMENT}}
    reply = ask("/v1/responses", input=[{"role": "user", "content": "hi"}], text=text)
    response = Response.model_validate(reply.body)
    assert json.loads(response.output_text).keys() == {"sentiment", "reason"}
    assert response.usage is not None
    assert response.usage.output_tokens == reply.output_tokens


def test_embeddings_are_deterministic_unit_vectors() -> None:
    reply = ask("/v1/embeddings", input=["a", "b", "a"], dimensions=256)
    vectors = [item.embedding for item in CreateEmbeddingResponse.model_validate(reply.body).data]
    assert [len(vector) for vector in vectors] == [256, 256, 256]
    assert vectors[0] == vectors[2] != vectors[1]
    assert math.isclose(math.hypot(*vectors[0]), 1, rel_tol=1e-4)
    [single] = ask("/v1/embeddings", input="a").body["data"]
    assert len(single["embedding"]) == 1536
    [tokens] = ask("/v1/embeddings", input=[1, 2, 3], dimensions=4, encoding_format="base64").body["data"]
    assert len(struct.unpack("4f", base64.b64decode(tokens["embedding"]))) == 4


def test_moderations_and_completions_have_their_shapes() -> None:
    moderation = ask("/v1/moderations", input=["a", "b"]).body
    assert len(ModerationCreateResponse.model_construct(**moderation).results) == 2
    completion = Completion.model_validate(ask("/v1/completions", prompt=["a", "b"]).body)
    assert [choice.index for choice in completion.choices] == [0, 1]


def test_unknown_endpoint_still_gets_an_object() -> None:
    assert "Emulated" in ask("/v1/images/generations", prompt="a cat").body["message"]


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/chat/completions", {"messages": "hi"}),
        ("/v1/chat/completions", {"messages": [{}], "max_tokens": 0}),
        ("/v1/responses", {}),
        ("/v1/embeddings", {"input": ""}),
        ("/v1/embeddings", {"input": "a", "dimensions": 10**9}),
        ("/v1/moderations", {}),
        (
            "/v1/chat/completions",
            {"messages": [{}], "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        ),
    ],
)
def test_body_the_endpoint_cannot_take_is_a_400_with_an_envelope(url: str, body: dict[str, Any]) -> None:
    reply = ask(url, **body)
    assert (reply.status, reply.input_tokens) == (400, 0)
    assert reply.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"content": "x" * 40}, {"content": [{"type": "text", "text": "x" * 40}]}]}, 20),
        ({"input": "x" * 41}, 11),
        ({"input": [[1, 2], [3]]}, 3),
        ({"prompt": "", "instructions": ""}, 1),
    ],
)
def test_prompt_tokens_are_a_quarter_of_the_characters(body: dict[str, Any], tokens: int) -> None:
    assert prompt_tokens(body) == tokens


@pytest.mark.parametrize("text", ["\ud800 half a pair", "line\u2028separator", "emoji 🙂 " * 50])
def test_any_text_can_be_asked(text: str) -> None:
    assert chat(text)
    assert ask("/v1/embeddings", input=text, dimensions=8).status == 200
