"""Tokens to money, at the prices a team gives. There is no price list here: it would be wrong within months."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.models import Usage
from airflow_provider_openai_batches.jobs.changes import OUTPUT_CAPS

NORMAL_RATE = 2.0
"""How many times the batch rate a token costs without a batch: OpenAI gives batches a discount of 50 %, see
https://platform.openai.com/docs/guides/batch#overview. Other services have discounts of their own."""

_TOKENS_PER_PRICE = 1_000_000
_SNAPSHOT = re.compile(r"-(?:20\d\d-[01]\d-[0-3]\d|(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))$")
"""The date at the end of a snapshot's name: ``gpt-4o-mini-2024-07-18``, ``gpt-4-0613``."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch's tokens of one model cost, in USD per million.

    :param input: input tokens
    :param cached_input: input tokens read from the cache; default: as ``input``
    :param output: output tokens, reasoning included; None for a model that has none, such as an embedding model
    """

    input: float
    cached_input: float | None = None
    output: float | None = None


def parse_prices(table: object, where: str = "prices") -> dict[str, Price]:
    """Read a table of prices.

    :param table: ``{model: {"input": ..., "cached_input": ..., "output": ...}}`` in USD per million tokens, at the
        batch rate; a snapshot without a price of its own has that of its base name. None is an empty table
    :param where: parameter or field to name in errors
    :raises InvalidInputError: it has another shape, an unknown kind of token, or a price that is none
    """
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        raise InvalidInputError(where, f"expected {{model: {{'input': ..., 'output': ...}}}}, got {_shown(table)}.")
    return {_model(model, where): _price(entry, f"{where}[{model!r}]") for model, entry in table.items()}


def price_of(model: str, prices: Mapping[str, Price]) -> Price | None:
    """Find a model's price, under its own name or, for a snapshot, its base name; None if there is none.

    A fine-tuned model costs more than its base: it has a price of its own, by its full name or as ``ft:<base>``.
    """
    return next((prices[name] for name in _names(model) if name in prices), None)


def cost(usage: Mapping[str, Usage], prices: Mapping[str, Price]) -> float | None:
    """Return what tokens cost in USD; None if a price of some of them is unknown.

    :param usage: tokens by model. For an estimate, what the requests will probably use
    :param prices: from :func:`parse_prices`
    """
    total = 0.0
    for model, tokens in usage.items():
        if not (tokens.input_tokens or tokens.output_tokens):
            continue
        price = price_of(model, prices)
        if price is None or (tokens.output_tokens and price.output is None):
            return None
        cached = min(tokens.cached_tokens, tokens.input_tokens)
        cached_price = price.input if price.cached_input is None else price.cached_input
        total += (tokens.input_tokens - cached) * price.input + cached * cached_price
        total += tokens.output_tokens * (price.output or 0.0)
    return total / _TOKENS_PER_PRICE


class _CappedLine(msgspec.Struct):
    class Body(msgspec.Struct):
        max_completion_tokens: Any = None
        max_tokens: Any = None
        max_output_tokens: Any = None
        n: Any = None

    body: Body


_capped_decoder = msgspec.json.Decoder(_CappedLine)


def most_output_tokens(request: bytes) -> int:
    """Return how many tokens a request's answer may have, its ``n`` choices together; 0 if no cap says so.

    :param request: the complete API line
    """
    body = _capped_decoder.decode(request).body
    caps = (getattr(body, name) for name in OUTPUT_CAPS)
    cap = next((cap for cap in caps if type(cap) is int and cap > 0), 0)
    return cap * (body.n if type(body.n) is int and body.n > 0 else 1)


def _names(model: str) -> Iterator[str]:
    yield model
    if model.startswith("ft:"):
        # ft:<base>:<organization>:<suffix>:<id>
        model = ":".join(model.split(":")[:2])
        yield model
    yield _SNAPSHOT.sub("", model)


def _model(model: object, where: str) -> str:
    if not isinstance(model, str) or not model:
        raise InvalidInputError(where, f"expected model names as keys, got {_shown(model)}.")
    return model


def _price(entry: object, where: str) -> Price:
    if not isinstance(entry, Mapping):
        raise InvalidInputError(where, f"expected {{'input': ..., 'output': ...}}, got {_shown(entry)}.")
    unknown = [key for key in entry if key not in Price.__struct_fields__]
    if unknown:
        known = ", ".join(Price.__struct_fields__)
        raise InvalidInputError(where, f"unknown {_shown(unknown[0])}; expected {known}, in USD per million tokens.")
    if entry.get("input") is None:
        raise InvalidInputError(where, "the price of 'input' is missing.")
    return Price(**{name: _usd(value, f"{where}[{name!r}]") for name, value in entry.items() if value is not None})


def _usd(value: object, where: str) -> float:
    # A text is taken too: a connection's form has no numbers.
    try:
        price = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        price = -1.0
    if not 0 <= price < float("inf"):
        raise InvalidInputError(where, f"expected USD per million tokens, such as 0.075, got {_shown(value)}.")
    return price


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def usd_text(amount: float) -> str:
    """Return an amount of money with its cents, and with smaller parts down to a millionth where it has them."""
    whole, _, parts = f"{amount:,.6f}".partition(".")
    return f"{whole}.{parts.rstrip('0').ljust(2, '0')}"
