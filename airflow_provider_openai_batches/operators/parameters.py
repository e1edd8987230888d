"""Checks of the parameters that are not templated. Run when a DAG file is parsed, where a mistake costs least."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, TypeGuard, TypeVar

from airflow_provider_openai_batches.api.errors import InvalidInputError

Choice = TypeVar("Choice", bound=str)


def seconds(value: float | timedelta, param: str) -> float:
    """Return a duration in seconds.

    :param value: seconds or a timedelta, above zero
    :param param: whose value it is
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if _is_number(number) and 0 < number < math.inf:
        return number
    raise InvalidInputError(param, f"expected a positive number of seconds or a timedelta, got {value!r}.")


def seconds_or_never(value: float | timedelta | None, param: str) -> float | None:
    """Return a duration in seconds, or None.

    :param value: seconds or a timedelta, above zero; None for never
    :param param: whose value it is
    """
    return None if value is None else seconds(value, param)


def count(value: int, param: str, *, least: int = 1, most: int | None = None) -> int:
    """Return a whole number.

    :param value: the number
    :param param: whose value it is
    :param least: the smallest it may be
    :param most: the largest it may be
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most):
        return value
    expected = f"a whole number from {least}" + ("" if most is None else f" to {most:,}")
    raise InvalidInputError(param, f"expected {expected}, got {value!r}.")


def usd(value: float, param: str) -> float:
    """Return an amount of money, zero included."""
    if _is_number(value) and 0 <= value < math.inf:
        return value
    raise InvalidInputError(param, f"expected an amount in USD, got {value!r}.")


def flag(value: bool, param: str) -> bool:
    """Return a truth value. A text is none: ``"False"`` would count as true."""
    if isinstance(value, bool):
        return value
    raise InvalidInputError(param, f"expected True or False, got {value!r}.")


def one_of(value: Choice, param: str, *choices: str) -> Choice:
    """Return one of the values a parameter may have."""
    if isinstance(value, str) and value in choices:
        return value
    raise InvalidInputError(param, f"expected {' or '.join(map(repr, choices))}, got {value!r}.")


def is_list(value: object) -> TypeGuard[Collection[Any]]:
    """Whether a value is several ones, in a list or the like. A text is one, and a dict something else."""
    return isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))


def names(value: str | Collection[str], param: str, expected: str) -> list[str]:
    """Return names, of which a single one may be given as it is.

    :param value: the name, or the names
    :param param: whose value it is
    :param expected: what should be there, for the error
    """
    given = [value] if isinstance(value, str) else value
    if is_list(given) and all(isinstance(each, str) and each for each in given):
        return list(given)
    raise InvalidInputError(param, f"expected {expected}, got {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
