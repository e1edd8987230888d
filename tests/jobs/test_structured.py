from __future__ import annotations

import datetime
import decimal
import enum
import json
import re
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    RootModel,
    computed_field,
    field_serializer,
    field_validator,
)

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.emulator.schema_instance import instance_of
from airflow_provider_openai_batches.jobs.structured import OutputSchema


def strict(properties: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """An object schema in strict form, but for the changes."""
    properties = {"label": {"type": "string"}} if properties is None else properties
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **changes,
    }


def refusal(output_type: Any) -> str:
    with pytest.raises(InvalidInputError) as raised:
        OutputSchema.of(output_type)
    assert raised.value.param == "output_type"
    return str(raised.value)


class Topic(enum.StrEnum):
    BILLING = "billing"
    BUG = "bug"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None = None


class Ticket(BaseModel):
    """A support ticket."""

    topic: Topic = Topic.BUG
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    owner: Dog = Field(description="Who it belongs to.")
    urgency: float = Field(ge=0, le=1)
    tags: set[str] = Field(default_factory=set, max_length=3)
    short: str = Field(min_length=2, description="A summary.")
    link: HttpUrl | None = None
    code: str = Field(pattern=r"^[A-Z]+$")
    at: datetime.datetime
    price: decimal.Decimal
    key: uuid.UUID


class Box(BaseModel):
    model_config = ConfigDict(extra="forbid")
    side: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def volume(self) -> int:
        return self.side**3


class Node(BaseModel):
    value: int
    children: list[Node] = []


# Models in strict form


def test_every_object_of_a_model_is_closed_and_all_its_fields_required() -> None:
    schema = OutputSchema.of(Ticket).schema
    assert schema["required"] == list(Ticket.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Cat"]["required"] == ["kind", "lives"]
    assert schema["$defs"]["Cat"]["additionalProperties"] is False


def test_what_strict_mode_does_not_know_is_taken_out_or_told_in_words() -> None:
    schema = OutputSchema.of(Ticket).schema
    text = json.dumps(schema)
    for keyword in ("default", "oneOf", "discriminator", "uniqueItems", "minLength"):
        assert f'"{keyword}"' not in text
    properties = schema["properties"]
    assert properties["topic"] == {"$ref": "#/$defs/Topic"}
    assert properties["pet"]["anyOf"] == [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]
    assert properties["owner"] == {"anyOf": [{"$ref": "#/$defs/Dog"}], "description": "Who it belongs to."}
    assert properties["short"]["description"] == "A summary. (minLength: 2)"
    assert properties["tags"]["description"] == "uniqueItems: True"
    assert properties["tags"]["maxItems"] == 3
    assert (properties["urgency"]["minimum"], properties["urgency"]["maximum"]) == (0, 1)
    assert properties["code"]["pattern"] == "^[A-Z]+$"
    assert properties["at"]["format"] == "date-time"
    assert "format: uri" in properties["link"]["anyOf"][0]["description"]


def test_lookaround_in_a_model_s_pattern_is_told_in_words() -> None:
    class Code(BaseModel):
        model_config = ConfigDict(regex_engine="python-re")
        code: str = Field(pattern=r"^(?!X)\w+$")
        other: str = Field(pattern=r"^\(?\w+$")

    properties = OutputSchema.of(Code).schema["properties"]
    assert "pattern" not in properties["code"]
    assert r"(?!X)" in properties["code"]["description"]
    assert properties["other"]["pattern"] == r"^\(?\w+$"


def test_a_model_s_pattern_may_be_one_that_only_pydantic_understands() -> None:
    class Letters(BaseModel):
        text: str = Field(pattern=r"^\p{L}+$")

    schema = OutputSchema.of(Letters)
    assert schema.schema["properties"]["text"]["pattern"] == r"^\p{L}+$"
    assert schema.parse('{"text": "é"}').error is None
    assert schema.parse('{"text": "1"}').error is not None


def test_a_model_that_refers_to_itself_has_an_object_at_its_root() -> None:
    schema = OutputSchema.of(Node).schema
    assert schema["type"] == "object"
    assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    assert OutputSchema.of(Node).parse('{"value": 1, "children": [{"value": 2}]}').value == {
        "value": 1,
        "children": [{"value": 2, "children": []}],
    }


def test_the_model_s_strict_schema_passes_as_a_schema_of_its_own() -> None:
    for model in (Ticket, Node, Cat):
        schema = OutputSchema.of(model).schema
        assert OutputSchema.of(schema).schema == schema


class AnyKey(BaseModel):
    scores: dict[str, int]


class AnyValue(BaseModel):
    extra: Any


class Pair(BaseModel):
    inner: list[tuple[int, str]]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Callback(BaseModel):
    call: Callable[[], int]


class Bare(BaseModel):
    things: list  # type: ignore[type-arg]


class Undefined(BaseModel):
    missing: NotThere  # type: ignore[name-defined]  # noqa: F821 - that is the point


class Several(RootModel[list[int]]):
    pass


class Either(RootModel[Cat | Dog]):
    pass


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (AnyKey, ["$.properties.scores", "any name", "list of objects"]),
        (AnyValue, ["$.properties.extra", "type"]),
        (Pair, ["$.properties.inner.items", "prefixItems", "Tuples"]),
        (Open, ["$", "extra='allow'"]),
        (Callback, ["Callback", "JSON schema"]),
        (Bare, ["$.properties.things.items", "type"]),
        (Undefined, ["Undefined", "NotThere"]),
        (Several, ["$", "root", "field"]),
        (Either, ["$", "root", "field"]),
        (int, ["<class 'int'>", "field"]),
        (list[Cat], ["field"]),
        (Cat(kind="cat"), ["Pydantic model", "field"]),
        ("Cat", ["'Cat'"]),
        (None, ["None"]),
    ],
)
def test_a_type_without_a_strict_form_is_refused_with_its_place(model: Any, expected: list[str]) -> None:
    message = refusal(model)
    for part in expected:
        assert part in message


# JSON schemas against the strict rules


def nested(levels: int) -> dict[str, Any]:
    schema = strict({"leaf": {"type": "string"}})
    for _ in range(levels - 1):
        schema = strict({"items": {"type": "array", "items": schema}})
    return schema


def chain(levels: int) -> dict[str, Any]:
    """Levels that are only deep through references, and end in a circle."""
    definitions = {f"d{n}": strict({"next": {"$ref": f"#/$defs/d{n + 1}"}}) for n in range(1, levels)}
    return strict({"next": {"$ref": "#/$defs/d1"}}, **{"$defs": definitions | {f"d{levels}": {"$ref": "#/$defs/d1"}}})


def enum_of(count: int, length: int) -> dict[str, Any]:
    return {"type": "string", "enum": [f"{n:0{length}}" for n in range(count)]}


BAD_SCHEMAS: dict[str, tuple[Any, list[str]]] = {
    "empty": ({}, ["$", "root"]),
    "root list": ({"type": "array", "items": {"type": "string"}}, ["$", "root"]),
    "root union": ({"anyOf": [strict()], "type": "object"}, ["$", "root"]),
    "open object": (strict(additionalProperties=True), ["$", "any name"]),
    "object left open": ({"type": "object", "properties": {}}, ["$", "additionalProperties"]),
    "open object inside": (strict({"a": {"type": "object", "properties": {}}}), ["$.properties.a", "any name"]),
    "optional field": (strict(required=[]), ["$", "label must be in 'required'", '"null"']),
    "required unknown": (strict(required=["label", "other"]), ["$", "other"]),
    "no type": (strict({"a": {}}), ["$.properties.a", "type"]),
    "schema true": (strict({"a": True}), ["$.properties.a", "True"]),
    "unknown type": (strict({"a": {"type": "text"}}), ["$.properties.a.type", "text"]),
    "list of what": (strict({"a": {"type": "array"}}), ["$.properties.a", "'items'"]),
    "nullable list of what": (strict({"a": {"type": ["array", "null"]}}), ["$.properties.a", "'items'"]),
    "default": (strict({"a": {"type": "string", "default": "x"}}), ["$.properties.a", "'default'"]),
    "oneOf": (strict({"a": {"oneOf": [{"type": "string"}]}}), ["$.properties.a", "anyOf"]),
    "allOf": (strict({"a": {"allOf": [{"type": "string"}]}}), ["$.properties.a", "allOf"]),
    "not": (strict({"a": {"type": "string", "not": {"const": "x"}}}), ["$.properties.a", "'not'"]),
    "if": (strict({"a": {"type": "string", "if": {}, "then": {}}}), ["$.properties.a", "'if'"]),
    "deep in a union": (
        strict({"a": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"default": 1}}]}}),
        ["$.properties.a.anyOf[1].items", "'default'"],
    ),
    "in a definition": (strict(**{"$defs": {"x": {"type": "object"}}}), ["$.$defs.x", "any name"]),
    "reference to nothing": (strict({"a": {"$ref": "#/$defs/x"}}), ["$.properties.a", "leads nowhere"]),
    "reference elsewhere": (strict({"a": {"$ref": "https://x.test/s"}}), ["$.properties.a", "leads nowhere"]),
    "beside a reference": (
        strict({"a": {"$ref": "#", "description": "d"}}),
        ["$.properties.a", "description", "anyOf"],
    ),
    "format": (strict({"a": {"type": "string", "format": "uri"}}), ["$.properties.a", "'uri'", "date-time"]),
    "lookahead": (strict({"a": {"type": "string", "pattern": "^(?=x)"}}), ["$.properties.a", "lookaround"]),
    "lookbehind": (strict({"a": {"type": "string", "pattern": "(?<!x)y"}}), ["$.properties.a", "lookaround"]),
    "broken pattern": (strict({"a": {"type": "string", "pattern": "("}}), ["$.properties.a.pattern", "regex"]),
    "malformed": (strict({"a": {"type": "string", "minLength": "2"}}), ["$.properties.a.minLength", "integer"]),
    "empty enum": (strict({"a": {"enum": []}}), ["$.properties.a", "no values"]),
    "too deep": (nested(11), ["11 levels", "10"]),
    "too deep by reference": (chain(11), ["11 levels", "10"]),
    "far too deep": (nested(200), ["nested too deeply"]),
    "too long a constant": (strict({"a": {"const": "x" * 120_000}}), ["120,001 characters", "120,000"]),
    "too long a name": (strict({}, definitions={"x" * 120_001: {"type": "null"}}), ["120,001 characters", "120,000"]),
    "too many fields": (strict({f"f{n}": {"type": "null"} for n in range(5_001)}), ["5,001 properties", "5,000"]),
    "too many values": (strict({"a": enum_of(501, 3), "b": enum_of(500, 3)}), ["1,001 enum values", "1,000"]),
    "too long an enum": (strict({"a": enum_of(251, 60)}), ["$.properties.a", "15,060", "15,000"]),
    "too much text": (strict({"a": enum_of(250, 480)}), ["120,001 characters", "120,000"]),
    "response format": ({"name": "x", "schema": strict()}, ["within"]),
    "NaN": (strict({"a": {"type": "number", "minimum": float("nan")}}), ["$.properties.a.minimum", "nan"]),
    "number as key": (strict({1: {"type": "string"}}), ["$.properties", "1"]),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("case", BAD_SCHEMAS)
def test_a_schema_strict_mode_refuses_is_refused_here_with_its_place(case: str) -> None:
    schema, expected = BAD_SCHEMAS[case]
    message = refusal(schema)
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    "schema",
    [
        strict(),
        strict({}),
        strict({"a": {"type": ["string", "null"], "enum": ["x", None]}, "b": {"const": 1}}),
        strict({"again": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}),
        strict({"a": {"type": "string", "pattern": r"^\(?=x$", "minLength": 1, "format": "email"}}),
        strict({"a": {"$ref": "#/definitions/x"}}, definitions={"x": {"type": "integer", "multipleOf": 2}}),
        # A field may be called like a keyword.
        strict({"default": {"type": "string"}, "allOf": {"type": "string"}}),
        nested(10),
        chain(10),
        strict({"a": enum_of(250, 400)}),
        strict({"a": enum_of(251, 59)}),
        strict({f"f{n}": {"type": "null"} for n in range(5_000)}),
    ],
)
def test_a_schema_strict_mode_takes_is_sent_as_it_is(schema: dict[str, Any]) -> None:
    assert OutputSchema.of(schema).schema == schema


def test_the_formats_are_those_of_the_api() -> None:
    schema = OutputSchema.of(strict(title="My label!"))
    assert schema.chat_format() == {
        "type": "json_schema",
        "json_schema": {"name": "My_label", "strict": True, "schema": strict(title="My label!")},
    }
    assert schema.responses_format() == {
        "type": "json_schema",
        "name": "My_label",
        "strict": True,
        "schema": strict(title="My label!"),
    }
    assert OutputSchema.of(strict()).name == "output"
    assert OutputSchema.of(strict(title="é" * 5)).name == "output"
    assert len(OutputSchema.of(strict(title="x" * 100)).name) == 64


# Answers


ANSWER = {
    "topic": "billing",
    "pet": {"kind": "dog"},
    "owner": {"kind": "dog", "name": "Rex"},
    "urgency": 1,
    "short": "No milk",
    "code": "A",
    "at": "2026-01-02T03:04:05Z",
    "price": "1.50",
    "key": str(uuid.UUID(int=1)),
}


def test_a_model_s_answer_is_validated_and_becomes_json_that_the_model_reads_again() -> None:
    parsed = OutputSchema.of(Ticket).parse(json.dumps(ANSWER))
    assert parsed.error is None
    assert parsed.value["pet"] == {"kind": "dog", "name": None}
    assert parsed.value["urgency"] == 1.0
    assert parsed.value["price"] == "1.50"
    assert Ticket.model_validate(parsed.value) == Ticket.model_validate(ANSWER)
    assert json.loads(json.dumps(parsed.value, allow_nan=False)) == parsed.value


def test_what_a_model_computes_is_not_part_of_the_answer() -> None:
    assert OutputSchema.of(Box).parse('{"side": 2}').value == {"side": 2}


def test_what_only_the_model_knows_is_checked_too() -> None:
    def even(value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value

    class Count(BaseModel):
        count: Annotated[int, AfterValidator(even)] = Field(alias="n")
        name: str = Field("", min_length=2)

    schema = OutputSchema.of(Count)
    assert schema.parse('{"n": 2, "name": "ab"}').value == {"n": 2, "name": "ab"}
    error = schema.parse('{"n": 3, "name": "a"}').error
    assert error is not None
    assert "$.n: Value error, must be even, got 3" in error
    assert "$.name: " in error


class Mapped(BaseModel):
    """A model whose own code fails, in the way that the answer says."""

    label: str

    @field_validator("label")
    @classmethod
    def look_up(cls, label: str) -> Any:
        return {"object": object(), "digits": 10**5000, "zero": 0}[label]

    @field_serializer("label")
    def write(self, label: Any) -> Any:
        return label or 1 / label


class Half(BaseModel):
    """A model that makes something of the answer that cannot be shown."""

    label: str

    @field_validator("label", mode="before")
    @classmethod
    def look_up(cls, label: str) -> Any:
        return Halved()


class Halved:
    def __repr__(self) -> str:
        return "\ud800"


@pytest.mark.parametrize(
    ("model", "label", "explanation"),
    [
        (Mapped, "unknown", "KeyError: 'unknown'"),
        (Mapped, "\u2028" * 1000, "KeyError: "),
        (Mapped, "object", "PydanticSerializationError: Unable to serialize unknown type"),
        (Mapped, "digits", "RowError: .*4300 digits"),
        (Mapped, "zero", "ZeroDivisionError"),
        (Half, "a", r"\$.label: Input should be a valid string, got \?"),
    ],
)
def test_whatever_a_model_s_own_code_raises_is_the_answer_s_error(model: Any, label: str, explanation: str) -> None:
    parsed = OutputSchema.of(model).parse(json.dumps({"label": label}))
    assert parsed.value is None
    assert parsed.error is not None
    assert re.search(explanation, parsed.error)
    assert len(parsed.error.encode()) < 1_000


def test_what_ends_a_process_is_not_an_answer_s_error() -> None:
    class Interrupted(BaseModel):
        label: str

        @field_validator("label")
        @classmethod
        def check(cls, label: str) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OutputSchema.of(Interrupted).parse('{"label": "a"}')


@pytest.mark.parametrize("output_type", [Cat, OutputSchema.of(Cat).schema])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"kind": "cat", "lives": "many"}', ["$.lives", "integer", "'many'"]),
        ('{"lives": 9}', ["kind", "required"]),
        ('{"kind": "dog", "lives": 9}', ["$.kind", "cat"]),
        ("[]", ["$: "]),
        ("", ["not valid JSON"]),
        ('{"kind": "cat", ', ["not valid JSON"]),
        ('```json\n{"kind": "cat", "lives": 1}\n```', ["not valid JSON"]),
        ('{"kind": "cat", "lives": NaN}', ["not valid JSON"]),
        ("[" * 100_000, ["not valid JSON"]),
        ('"\ud800"', ["not valid JSON"]),
    ],
)
def test_an_answer_that_does_not_fit_says_where_and_why(output_type: Any, answer: str, expected: list[str]) -> None:
    parsed = OutputSchema.of(output_type).parse(answer)
    assert parsed.value is None
    assert parsed.error is not None
    for part in expected:
        assert part in parsed.error


def test_the_explanation_stays_short_however_wrong_the_answer_is() -> None:
    schema = OutputSchema.of(strict({"a": {"type": "array", "items": {"type": "integer"}}}))
    error = schema.parse(json.dumps({"a": ["x" * 10_000] * 1_000})).error
    assert error is not None
    assert len(error) < 5_000
    assert "990 more" in error


def test_a_json_schema_s_answer_is_returned_as_it_is() -> None:
    schema = OutputSchema.of(strict({"a": {"type": ["string", "null"]}, "n": {"type": "number", "maximum": 2}}))
    assert schema.parse('{"a": null, "n": 2}').value == {"a": None, "n": 2}
    error = schema.parse('{"a": 1, "n": 3}').error
    assert error is not None
    assert "$.a: " in error
    assert "$.n: " in error


@given(st.randoms(use_true_random=False))
def test_what_fits_a_model_s_strict_schema_is_never_malformed_for_its_check(rng: Any) -> None:
    value = instance_of(OutputSchema.of(Node).schema, rng)
    assert OutputSchema.of(Node).parse(json.dumps(value)).value == value


@given(st.text(max_size=30) | st.recursive(st.none() | st.text(max_size=3), st.lists, max_leaves=4).map(json.dumps))
def test_any_text_is_parsed_or_explained(text: str) -> None:
    for output_type in (Cat, strict()):
        parsed = OutputSchema.of(output_type).parse(text)
        assert (parsed.error is None) == (parsed.value is not None)
