"""Made-up values fit the schemas they are made for."""

from __future__ import annotations

import random
from typing import Any

import jsonschema  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_openai_batches.emulator.pattern_text import matching_text
from airflow_provider_openai_batches.emulator.schema_instance import SchemaError, instance_of

NAMES = st.sampled_from(["label", "score", "items", "note", "nested"])


def integers() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.integers(-50, 50), st.integers(0, 50), st.sampled_from([1, 5]))
    return bounds.map(
        lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1] + 5, "multipleOf": b[2]}
    ) | st.just({"type": "integer"})


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.floats(-9, 9), st.floats(0.1, 9)).map(
        lambda b: {"type": "number", "exclusiveMinimum": b[0], "maximum": b[0] + b[1]}
    )


def strings() -> st.SearchStrategy[dict[str, Any]]:
    lengths = st.tuples(st.integers(0, 60), st.integers(0, 20))
    return lengths.map(lambda b: {"type": "string", "minLength": b[0], "maxLength": b[0] + b[1]})


def leaves() -> st.SearchStrategy[dict[str, Any]]:
    return (
        integers()
        | numbers()
        | strings()
        | st.sampled_from(
            [
                {"type": "boolean"},
                {"type": "null"},
                {"type": ["string", "null"]},
                {"enum": ["a", 1, None]},
                {"const": {"k": [1]}},
                {"type": "string", "format": "date-time"},
                {"type": "string", "format": "email"},
                {"type": "string", "pattern": "^[A-Z]{2}-\\d+$"},
                {"$ref": "#/$defs/color"},
                {"$ref": "#/$defs/tree"},
            ]
        )
    )


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def as_object(properties: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    arrays = st.tuples(inner, st.integers(0, 3), st.integers(0, 3)).map(
        lambda parts: {"type": "array", "items": parts[0], "minItems": parts[1], "maxItems": parts[1] + parts[2]}
    )
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})
    return st.dictionaries(NAMES, inner, max_size=4).map(as_object) | arrays | unions


DEFS = {
    "color": {"type": "string", "enum": ["red", "green"]},
    "tree": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            "parent": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
        },
        "required": ["name", "children", "parent"],
        "additionalProperties": False,
    },
}


@given(schema=st.recursive(leaves(), nested, max_leaves=8), seed=st.integers())
@settings(max_examples=150)
def test_instance_fits_its_schema(schema: dict[str, Any], seed: int) -> None:
    whole = {"type": "object", "properties": {"value": schema}, "required": ["value"], "$defs": DEFS}
    made = instance_of(whole, random.Random(seed))
    jsonschema.Draft202012Validator(whole).validate(made)
    assert made == instance_of(whole, random.Random(seed))


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {"type": "integer"}}, "required": ["y"]}]},
        {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3},
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
        {"type": "object", "properties": {"a": True, "b": True, "c": True}, "maxProperties": 1},
        {"type": "number", "multipleOf": 5},
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
        {"type": "integer", "maximum": -1000},
        {"type": "number", "minimum": 1, "maximum": 1},
        {},
    ],
)
def test_less_common_keywords_are_kept(schema: dict[str, Any]) -> None:
    whole = {**schema, "$defs": {"a": {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}}}
    for seed in range(20):
        jsonschema.Draft202012Validator(whole).validate(instance_of(whole, random.Random(seed)))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/missing"},
        {"$ref": "#"},
        {"$ref": "https://example.com/schema"},
        {"enum": []},
        {"type": "poem"},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "string", "minLength": "three"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "string", "minLength": 2_000_000_000},
        {"type": "string", "pattern": "^a+$", "minLength": 2_000_000_000},
        {"type": "array", "items": {"type": "string"}, "minItems": 2_000_000_000},
        {"type": "object", "minProperties": 2_000_000_000},
        "text",
        None,
    ],
)
def test_impossible_schema_is_an_error_and_not_a_hang(schema: Any) -> None:
    with pytest.raises(SchemaError):
        instance_of(schema, random.Random(1))


@pytest.mark.parametrize(
    "pattern",
    [r"^[A-Z]{3}$", r"^\d{4}-\d{2}-\d{2}$", r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", r"(a|bc)+?[^x]\s\w", r"^[^\d]\D\S.$"],
)
def test_text_matches_its_pattern(pattern: str) -> None:
    import re

    for seed in range(20):
        text = matching_text(pattern, random.Random(seed))
        assert text is not None
        assert re.search(pattern, text)
