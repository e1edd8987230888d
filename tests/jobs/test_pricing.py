from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.models import Usage
from airflow_provider_openai_batches.jobs.pricing import (
    Price,
    cost,
    most_output_tokens,
    parse_prices,
    price_of,
    usd_text,
)

MINI = {"input": 0.075, "cached_input": 0.0375, "output": 0.3}


def test_each_kind_of_token_has_its_price() -> None:
    usage = Usage(input_tokens=3_000_000, cached_tokens=1_000_000, output_tokens=2_000_000, reasoning_tokens=500_000)
    assert cost({"m": usage}, parse_prices({"m": MINI})) == pytest.approx(2 * 0.075 + 0.0375 + 2 * 0.3)


def test_cached_tokens_without_a_price_of_their_own_cost_what_input_costs() -> None:
    usage = Usage(input_tokens=1_000_000, cached_tokens=400_000)
    assert cost({"m": usage}, parse_prices({"m": {"input": 2, "output": 8}})) == pytest.approx(2)


def test_models_are_added_up() -> None:
    usage = {"a": Usage(input_tokens=1_000_000), "b": Usage(input_tokens=1_000_000)}
    assert cost(usage, parse_prices({"a": {"input": 1}, "b": {"input": 2}})) == pytest.approx(3)


@pytest.mark.parametrize(
    ("usage", "table"),
    [
        ({"unknown": Usage(input_tokens=1)}, {"m": MINI}),
        ({"m": Usage(input_tokens=1), "unknown": Usage(output_tokens=1)}, {"m": MINI}),
        ({"m": Usage(input_tokens=1, output_tokens=1)}, {"m": {"input": 1}}),
        ({"m": Usage(input_tokens=1)}, None),
    ],
)
def test_one_unknown_price_makes_the_cost_unknown(usage: dict[str, Usage], table: object) -> None:
    assert cost(usage, parse_prices(table)) is None


def test_what_used_nothing_costs_nothing_without_a_price() -> None:
    assert cost({"unknown": Usage()}, {}) == 0


def test_a_model_without_output_needs_no_output_price() -> None:
    prices = parse_prices({"text-embedding-3-small": {"input": 0.01}})
    assert cost({"text-embedding-3-small": Usage(input_tokens=1_000_000)}, prices) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("gpt-4o-mini", 1),
        ("gpt-4o-mini-2024-07-18", 1),
        ("gpt-4-0613", 2),
        ("gpt-4-2024-04-09", 4),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", 3),
        ("gpt-4o", None),
        ("gpt-4o-mini-audio", None),
        ("gpt-4-9999", None),
        ("ft:gpt-4:acme::abc", None),
        ("", None),
    ],
)
def test_a_snapshot_has_its_base_models_price_and_nothing_else_does(model: str, found: int | None) -> None:
    inputs = {"gpt-4o-mini": 1, "gpt-4": 2, "ft:gpt-4o-mini": 3, "gpt-4-2024-04-09": 4}
    price = price_of(model, parse_prices({name: {"input": usd} for name, usd in inputs.items()}))
    assert price == (None if found is None else Price(input=found))


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ([], r"prices: expected {model: .*got \[\]"),
        ({"m": 3}, r"prices\['m'\]: expected .*got 3"),
        ({3: MINI}, "prices: expected model names as keys, got 3"),
        ({"m": {"output": 1}}, r"prices\['m'\]: the price of 'input' is missing"),
        ({"m": MINI | {"input": None}}, "the price of 'input' is missing"),
        ({"m": MINI | {"inputs": 1}}, "unknown 'inputs'; expected input, cached_input, output"),
        ({"m": MINI | {"output": "much"}}, r"prices\['m'\]\['output'\]: expected USD per million tokens.*'much'"),
        ({"m": MINI | {"output": -1}}, "got -1"),
        ({"m": MINI | {"output": float("nan")}}, "got nan"),
        ({"m": MINI | {"output": float("inf")}}, "got inf"),
        ({"m": MINI | {"output": True}}, "got True"),
        ({"m": MINI | {"output": 10**400}}, "got 1000"),
    ],
)
def test_a_malformed_table_is_refused_where_it_is_wrong(table: object, complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        parse_prices(table)


def test_prices_typed_into_a_form_are_numbers() -> None:
    assert parse_prices({"m": {"input": "0.075", "output": "0.3"}})["m"] == Price(input=0.075, output=0.3)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 0),
        ({"n": 3}, 0),
        ({"max_tokens": 10}, 10),
        ({"max_output_tokens": 10}, 10),
        ({"max_completion_tokens": 10, "max_tokens": 99}, 10),
        ({"max_completion_tokens": 10, "n": 3}, 30),
        ({"max_completion_tokens": 10, "n": None}, 10),
        ({"max_completion_tokens": None, "max_tokens": 7}, 7),
        ({"max_tokens": "many", "n": "some"}, 0),
        ({"max_tokens": -5, "n": -2}, 0),
        ({"max_tokens": True}, 0),
    ],
)
def test_an_answer_has_at_most_the_tokens_of_its_cap_for_each_choice(body: dict[str, Any], tokens: int) -> None:
    line = {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", **body}}
    assert most_output_tokens(json.dumps(line).encode()) == tokens


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0.00"), (1_234.5, "1,234.50"), (0.3, "0.30"), (0.0123, "0.0123"), (0.000_004, "0.000004")],
)
def test_an_amount_is_told_from_a_limit_just_below_it(amount: float, text: str) -> None:
    assert usd_text(amount) == text
