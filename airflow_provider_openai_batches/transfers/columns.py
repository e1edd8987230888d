"""Which parts of a result row go to which columns: ``{"label": "output.label", "review_id": "context.id"}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.json_text import shown
from airflow_provider_openai_batches.jobs.results import ResultRow

_FIELDS = frozenset(ResultRow.__struct_fields__)
_NOT_IN_EACH = ("usage", "error")
"""A duplicate used nothing, and some endpoints do not say; a row that succeeded has no error."""


def parse_columns(columns: Mapping[str, str], param: str = "columns") -> dict[str, tuple[str, ...]]:
    """Return the path to each column's value.

    :param columns: names of columns, and where in the result row each value is: names with dots between
    :param param: what to name in an error
    :raises InvalidInputError: a path does not begin with a field that result rows have
    """
    if not isinstance(columns, Mapping) or not columns:
        raise InvalidInputError(param, f"expected {{column: path into the result row}}, got {columns!r}.")
    parsed = {}
    for name, path in columns.items():
        steps = tuple(path.split(".")) if isinstance(path, str) else ()
        if not isinstance(name, str) or not name or not all(steps) or not steps or steps[0] not in _FIELDS:
            raise InvalidInputError(
                param,
                f"{name!r} is to be {path!r}, but a result row has {', '.join(sorted(_FIELDS))}. "
                "Give one of these, or what is in it, such as 'context.id'.",
            )
        parsed[name] = steps
    return parsed


def value_at(row: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return a part of a result row; None of what the service did not tell of it.

    :raises InvalidInputError: the row has no such part
    """
    value: Any = row
    for number, step in enumerate(path):
        if value is None and path[0] in _NOT_IN_EACH:
            return None
        if not isinstance(value, Mapping) or step not in value:
            parent = ".".join(path[:number])
            has = f"it has {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"it is {shown(value)}"
            raise InvalidInputError(
                "columns",
                f"row {row['index']} ({shown(row['custom_id'])}) has no {'.'.join(path[: number + 1])!r}: "
                f"{parent} has no {step!r}, {has}.",
            )
        value = value[step]
    return value
