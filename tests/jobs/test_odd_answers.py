"""Answers, rows and codes that nobody expects, through a whole job: it ends, and says which row has what."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pydantic
import pytest

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.pricing import parse_prices
from tests.jobs.world import World

NewWorld = Callable[..., World]

SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}},
    "required": ["label"],
    "additionalProperties": False,
}


class Mapped(pydantic.BaseModel):
    """A model with a validator that knows no label."""

    label: str

    @pydantic.field_validator("label")
    @classmethod
    def look_up(cls, label: str) -> str:
        known: dict[str, str] = {}
        return known[label]


def embedding(index: int, vector: str) -> str:
    body = f'{{"data":[{{"index":0,"embedding":{vector}}}],"model":"m","usage":{{"prompt_tokens":1,"total_tokens":1}}}}'
    response = f'{{"status_code":200,"request_id":"q","body":{body}}}'
    return f'{{"id":"b{index}","custom_id":"row-{index}","response":{response},"error":null}}\n'


@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
@pytest.mark.parametrize("vector", ["[NaN,0.5]", '"abc"', "[1e400,1]"])
def test_one_vector_that_is_none_costs_its_own_row_and_no_other(
    new_world: NewWorld, output_format: str, vector: str
) -> None:
    pytest.importorskip("pyarrow")
    world = new_world(
        rows=[{"input": f"text {index}"} for index in range(3)],
        endpoint="/v1/embeddings",
        max_attempts=1,
        output_format=output_format,
    )
    content = embedding(0, "[0.5,0.25]") + embedding(1, vector) + embedding(2, "[1,2,3]")
    answer = {"status": 200, "headers": {"Content-Type": "application/octet-stream"}, "body": content}
    world.add_faults({"on": {"method": "GET", "path": "/files/*/content"}, "do": answer})
    rows = world.check_results(world.run())
    assert [row["output"] for row in rows] == [[0.5, 0.25], None, [1, 2, 3]]
    assert [row["status"] for row in rows] == ["succeeded", "invalid_output", "succeeded"]
    assert rows[1]["error"]["code"] == "unusable_output"


def test_bug_in_a_validator_is_said_of_each_row_that_meets_it_and_buys_nothing_more(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"], output_type=Mapped, max_attempts=2)
    outcome = world.run()
    for row in world.check_results(outcome):
        assert (row["status"], row["attempts"]) == ("invalid_output", 1)
        assert "KeyError" in row["error"]["message"]
    assert outcome.manifest["by_error"] == {"invalid_output": 2}


# --- rounds ----------------------------------------------------------------------------------------------------------


def test_no_line_of_a_later_round_can_be_cut_by_readers_that_know_unicode(new_world: NewWorld) -> None:
    world = new_world(rows=["one\u2028two\x85three\u2029four"] * 3, output_type=SCHEMA)
    world.add_faults({"on": {"custom_id": "row-*"}, "do": {"outcome": "invalid_output"}, "times": 3})
    assert world.run().manifest["succeeded"] == 3
    for number in (1, 2):
        text = (world.location / f"_job/shard-00000/round-{number}.requests.jsonl").read_bytes().decode()
        assert len(text.splitlines()) == 3
        assert r"one\u2028two\u0085three\u2029four" in text


def test_same_requests_are_estimated_the_same_in_each_round(new_world: NewWorld) -> None:
    world = new_world(rows=[f"say {n}" for n in range(10)])
    world.add_faults({"on": {"batch": {}}, "do": {"outcome": "expire", "finished": 0.0}})
    world.run()
    first, second = world.ledger.shards[0].rounds
    assert (second.requests, second.bytes, second.tokens) == (first.requests, first.bytes, first.tokens)


# --- money -----------------------------------------------------------------------------------------------------------


def test_estimate_counts_the_caps_and_choices_of_each_row(new_world: NewWorld) -> None:
    prices = parse_prices({"gpt-4o-mini": {"input": 0, "output": 1_000_000.0}})
    messages = [{"role": "user", "content": "a"}]
    rows = [
        {"messages": messages},
        {"body": {"messages": messages, "max_completion_tokens": 5, "n": 3}},
        {"body": {"messages": messages, "max_tokens": 7}},
    ]
    for body, estimate in (({}, 22.0), ({"max_completion_tokens": 2}, 2 + 15 + 2)):
        world = new_world(rows=rows, body=body, prices=prices, max_cost=estimate)
        assert world.run().manifest["estimated_cost"] == estimate
        world = new_world(rows=rows, body=body, prices=prices, max_cost=estimate - 1)
        with pytest.raises(InvalidInputError, match="max_cost"):
            world.run()
        assert world.calls("POST /v1/files") == 0


def test_job_that_buys_nothing_needs_no_price(new_world: NewWorld) -> None:
    world = new_world(rows=["a", "b"])
    world.run()
    again = new_world(location=world.location, rows=["a", "b"], max_cost=0.0)
    manifest = again.run(max_tries=1).manifest
    assert (manifest["kept"], manifest["estimated_cost"]) == (2, 0.0)
    more = new_world(location=world.location, rows=["a", "b", "c"], max_cost=0.0)
    with pytest.raises(InvalidInputError, match="price"):
        more.run(max_tries=2)


# --- size ------------------------------------------------------------------------------------------------------------


def test_manifest_stays_small_whatever_codes_a_service_invents(new_world: NewWorld) -> None:
    world = new_world(rows=[f"say {n}" for n in range(120)], per_batch=200, max_attempts=1)
    world.add_faults(
        {"on": {"custom_id": "row-*"}, "do": {"outcome": "error", "code": "frequent"}, "times": 20},
        {"on": {"custom_id": "row-*"}, "do": {"outcome": "error", "code": "long" * 1000}, "times": 10},
        *({"on": {"custom_id": "row-*"}, "do": {"outcome": "error", "code": f"code {n}"}} for n in range(80)),
    )
    outcome = world.run()
    rows = world.check_results(outcome)
    by_error = outcome.manifest["by_error"]
    assert len(by_error) == 51
    assert (by_error["frequent"], by_error["long" * 25], by_error["other"]) == (20, 10, 32)
    assert sum(by_error.values()) == outcome.manifest["failed"] == 110
    assert any(row["error"] and row["error"]["code"] == "long" * 1000 for row in rows)


def test_cleared_task_looks_for_large_answers_in_little_memory(new_world: NewWorld) -> None:
    size, rows = 2_000_000, 30

    def source() -> Any:
        return ({"prompt": f"say {n}", "context": {"prompt": f"say {n}", "text": "x" * size}} for n in range(rows))

    world = new_world(rows=source)
    world.run()
    tracemalloc.start()
    try:
        assert world.run(max_tries=1).manifest["kept"] == rows
        assert tracemalloc.get_traced_memory()[1] < 30_000_000 < size * rows
    finally:
        tracemalloc.stop()
