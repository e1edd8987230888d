"""A prompt with columns in it: ``Is this review positive? {review}``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from string import Formatter
from typing import Any

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.json_text import CONTEXT_TYPES
from airflow_provider_openai_batches.jobs.sources import RowError

_NOT_A_NAME = frozenset(".[]")
_PLAIN = (int, float, list, dict, *CONTEXT_TYPES)


class PromptTemplate:
    """Text with the names of columns in braces. A name is looked up and nothing else: no attributes, no formats.

    :param text: such as ``Is this review positive? {review}``; ``{{`` and ``}}`` are braces
    :raises InvalidInputError: it is not such a text
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise InvalidInputError("prompt", f"expected a text with columns such as '{{review}}', got {text!r}.")
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise InvalidInputError("prompt", f"{error}. Write {{{{ and }}}} for braces.") from error
        for _, name, form, conversion in parts:
            if name is not None and (not name or form or conversion or not _NOT_A_NAME.isdisjoint(name)):
                shown = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                raise InvalidInputError(
                    "prompt",
                    f"{{{shown}}} is not the name of a column. Only names may stand in braces; select what you need "
                    "under a name of its own (... AS name), and write {{ and }} for braces.",
                )
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        self.columns = list(dict.fromkeys(name for _, name in self._parts if name is not None))
        if not self.columns:
            raise InvalidInputError("prompt", "it names no column, so that all rows would ask the same.")

    def check(self, columns: Collection[str]) -> None:
        """Refuse names of columns that there are not.

        :param columns: those of the query
        """
        if unknown := [name for name in self.columns if name not in columns]:
            raise InvalidInputError(
                "prompt", f"the query has no column {', '.join(map(repr, unknown))}; it has {', '.join(columns)}."
            )

    def fill(self, row: Mapping[str, Any]) -> str:
        """Return a row's prompt: text as it is, everything else as in JSON.

        :raises RowError: a value cannot be part of a text
        """
        return "".join(literal if name is None else literal + _text(row[name], name) for literal, name in self._parts)


def _text(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise RowError(
            f"the column {column!r} is NULL, and the prompt needs it. Leave such rows out (WHERE {column} IS NOT "
            f"NULL), or give them a text (COALESCE({column}, '')  AS {column})."
        )
    if not isinstance(value, _PLAIN):
        raise RowError(
            f"the column {column!r} is of type {type(value).__name__}, which is no text. Convert it in the query."
        )
    plain = msgspec.to_builtins(value)
    return plain if isinstance(plain, str) else msgspec.json.encode(plain).decode()
