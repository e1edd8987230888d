"""The form answers must have: a Pydantic model or JSON schema as strict response format, and the check of answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.json_text import check_json, encode
from airflow_provider_openai_batches.jobs.sources import RowError
from airflow_provider_openai_batches.jobs.strict_schema import check_strict, strict_form

if TYPE_CHECKING:
    from jsonschema.protocols import Validator
    from pydantic import BaseModel, ValidationError

_MAX_NAME_CHARS = 64
_FAULTS_SHOWN = 10
_FAULT_CHARS = 300


class Parsed(msgspec.Struct, frozen=True):
    """A checked answer: a value, or what is wrong with it."""

    value: Any = None
    """The answer, of JSON's types; None as well for an answer that is ``null``."""
    error: str | None = None
    """What does not fit and where, in words that can be shown to the model so that it corrects itself."""
    checker_failed: bool = False
    """Whether the check itself broke down, so that another answer would help nobody."""


@dataclass(frozen=True)
class OutputSchema:
    """A schema in strict form, and the check of the answers it is sent for. Made by :meth:`of`.

    A Pydantic model is never stored or pickled: an operator that resumes in another process is made anew from its DAG
    file, and the model with it. The ledger needs no more than the schema, which is part of every request line.
    """

    name: str
    """What the API calls the schema: letters, digits, ``_`` and ``-``, at most 64."""
    schema: dict[str, Any]
    _model: type[BaseModel] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, output_type: type[BaseModel] | Mapping[str, Any]) -> Self:
        """Read what a user gave as ``output_type``.

        :param output_type: a Pydantic model, whose schema is brought into strict form (see
            :func:`~airflow_provider_openai_batches.jobs.strict_schema.strict_form`), or a JSON schema, which must be
            in strict form already: a schema written by hand is not changed behind its author's back
        :raises InvalidInputError: it is neither, or has no strict form; with the place in the schema and the remedy
        """
        if isinstance(output_type, Mapping):
            return cls._of_schema(output_type)
        from pydantic import BaseModel

        if isinstance(output_type, type) and issubclass(output_type, BaseModel):
            return cls._of_model(output_type)
        raise InvalidInputError(
            "output_type",
            f"expected a Pydantic model or a JSON schema, got {output_type!r}. Make it a field of a Pydantic model.",
        )

    @classmethod
    def _of_model(cls, model: type[BaseModel]) -> Self:
        from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

        try:
            schema = strict_form(model.model_json_schema())
        except (PydanticUserError, PydanticUndefinedAnnotation) as error:
            raise InvalidInputError("output_type", f"{model.__name__} has no JSON schema: {error}") from error
        _check_well_formed(schema)
        check_strict(schema)
        return cls(_name(model.__name__), schema, model)

    @classmethod
    def _of_schema(cls, given: Mapping[str, Any]) -> Self:
        try:
            schema = msgspec.json.decode(encode(check_json(dict(given), "$")))
        except RowError as error:
            raise InvalidInputError("output_type", str(error)) from error
        if "properties" not in schema and schema.keys() & {"schema", "json_schema"}:
            raise InvalidInputError("output_type", "this is a response format. Give only the JSON schema within it.")
        _check_well_formed(schema, compile_patterns=True)
        check_strict(schema)
        return cls(_name(schema.get("title")), schema)

    def chat_format(self) -> dict[str, Any]:
        """Return the value of ``response_format`` for ``/v1/chat/completions``."""
        return {"type": "json_schema", "json_schema": {"name": self.name, "strict": True, "schema": self.schema}}

    def responses_format(self) -> dict[str, Any]:
        """Return the value of ``text.format`` for ``/v1/responses``."""
        return {"type": "json_schema", "name": self.name, "strict": True, "schema": self.schema}

    def parse(self, text: str) -> Parsed:
        """Check an answer. Not every server enforces the schema it is sent, and none runs a model's validators.

        :param text: what the model wrote
        :return: for a Pydantic model the validated object as JSON (defaults filled in, values converted), so that the
            model reads it again; for a JSON schema the answer as it is. Never raises: whatever a model's validators
            and serializers raise is an error of this answer
        """
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return Parsed(error=f"The answer is not valid JSON: {error}.")
        try:
            return self._checked(text, value)
        except Exception as error:  # noqa: BLE001 - a model's validators are anybody's code
            said = f"The answer could not be checked: {type(error).__name__}: {error}"
            return Parsed(error=_sendable(said[:_FAULT_CHARS]), checker_failed=True)

    def _checked(self, text: str, value: Any) -> Parsed:
        if self._model is None:
            faults = sorted(self._validator.iter_errors(value), key=lambda fault: fault.json_path)
            if faults:
                return Parsed(error=_explanation((fault.json_path, fault.message) for fault in faults))
            return Parsed(value)
        from pydantic import ValidationError

        try:
            instance = self._model.model_validate_json(text)
        except ValidationError as error:
            return Parsed(error=_explanation(_model_faults(error)))
        dumped = instance.model_dump(mode="json", by_alias=True, round_trip=True)
        # It is written later, when nobody could say any more which row it was.
        encode(check_json(dumped, "$"))
        return Parsed(dumped)

    @cached_property
    def _validator(self) -> Validator:
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self.schema)


def _name(text: Any) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", str(text or "")).strip("_")[:_MAX_NAME_CHARS] or "output"


def _check_well_formed(schema: dict[str, Any], *, compile_patterns: bool = False) -> None:
    from jsonschema import Draft202012Validator, FormatChecker, SchemaError

    # A model's patterns are Pydantic's to run, in a dialect of its own; those of a JSON schema are Python's.
    formats = FormatChecker(["regex"] if compile_patterns else [])
    try:
        Draft202012Validator.check_schema(schema, format_checker=formats)
    except SchemaError as error:
        raise InvalidInputError("output_type", f"{error.json_path}: {error.message}. Correct the schema.") from error
    except RecursionError as error:
        raise InvalidInputError("output_type", "$: the schema is nested too deeply. Flatten it.") from error


def _model_faults(error: ValidationError) -> Iterable[tuple[str, str]]:
    for fault in error.errors(include_url=False, include_context=False):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        missing = fault["type"] == "missing"
        yield f"${path}", fault["msg"] if missing else f"{fault['msg']}, got {fault['input']!r}"


def _explanation(faults: Iterable[tuple[str, str]]) -> str:
    lines = [f"{path}: {message}"[:_FAULT_CHARS] for path, message in faults]
    if len(lines) > _FAULTS_SHOWN:
        lines[_FAULTS_SHOWN:] = [f"... and {len(lines) - _FAULTS_SHOWN} more"]
    return _sendable("The answer does not fit the schema:\n" + "\n".join(lines))


def _sendable(text: str) -> str:
    """Replace halves of characters, which could be neither written nor sent."""
    return text.encode("utf-8", "replace").decode()
