from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
import uuid
from io import BytesIO
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import check_input_file
from airflow_provider_openai_batches.api.models import ENDPOINTS
from airflow_provider_openai_batches.jobs.requests import Request, RequestTemplate, read_requests
from airflow_provider_openai_batches.jobs.structured import OutputSchema
from tests.jobs.fresh_python import run_fresh

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
USER = [{"role": "user", "content": "hi"}]
LABEL = OutputSchema.of(
    {
        "title": "label",
        "type": "object",
        "properties": {"label": {"type": "string"}},
        "required": ["label"],
        "additionalProperties": False,
    }
)


def template(**changes: Any) -> RequestTemplate:
    return RequestTemplate(**{"model": "gpt-4o-mini", **changes})


def read(source: Any, **changes: Any) -> list[Request]:
    return list(read_requests(source, template(**changes)))


def body(item: Any, **changes: Any) -> dict[str, Any]:
    (request,) = read([item], **changes)
    return json.loads(request.line)["body"]


def line(**changes: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m", "messages": USER}, **changes}


def refusal(source: Any, **changes: Any) -> str:
    with pytest.raises(InvalidInputError) as raised:
        read(source, **changes)
    return str(raised.value)


# What a row becomes


def test_a_prompt_becomes_a_complete_line_with_a_default_id() -> None:
    first, second = read(["one", "two"])
    assert (first.index, first.custom_id, first.model, first.context, first.inputs) == (
        0,
        "row-0",
        "gpt-4o-mini",
        None,
        1,
    )
    assert (second.index, second.custom_id) == (1, "row-1")
    assert json.loads(second.line) == {
        "custom_id": "row-1",
        "method": "POST",
        "url": CHAT,
        "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "two"}]},
    }


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
        (RESPONSES, {"input": "hi"}),
        (EMBEDDINGS, {"input": "hi"}),
        ("/v1/moderations", {"input": "hi"}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/images/generations", {"prompt": "hi"}),
        ("/v1/rerank", {"prompt": "hi"}),
    ],
)
def test_a_prompt_goes_where_the_endpoint_reads_it(endpoint: str, fields: dict[str, Any]) -> None:
    assert body("hi", endpoint=endpoint) == {"model": "gpt-4o-mini", **fields}
    assert body({"prompt": "hi"}, endpoint=endpoint) == {"model": "gpt-4o-mini", **fields}


@pytest.mark.parametrize(
    ("endpoint", "item", "fields"),
    [
        (CHAT, {"messages": [*USER, {"role": "assistant", "content": None, "tool_calls": []}]}, None),
        (CHAT, {"body": {"messages": USER, "temperature": 0.5}}, {"messages": USER, "temperature": 0.5}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}, None),
        (RESPONSES, {"body": {"prompt": {"id": "pmpt_1"}}}, {"prompt": {"id": "pmpt_1"}}),
        (EMBEDDINGS, {"input": ["a", "b"]}, None),
        (EMBEDDINGS, {"input": ("a", "b")}, {"input": ["a", "b"]}),
        ("/v1/completions", {"prompt": ["a", "b"]}, None),
        ("/v1/rerank", {"input": {"query": "q"}}, None),
        ("/v1/rerank", {"messages": "anything"}, None),
    ],
)
def test_other_content_is_passed_on_as_it_is(endpoint: str, item: dict[str, Any], fields: Any) -> None:
    assert body(item, endpoint=endpoint) == {"model": "gpt-4o-mini", **(item if fields is None else fields)}


def test_the_job_s_defaults_fill_in_and_the_row_s_own_fields_win() -> None:
    defaults = {"temperature": 0, "reasoning": {"effort": "low", "summary": "auto"}}
    own = {"body": {"messages": USER, "reasoning": {"effort": "high"}}}
    assert body(own, body=defaults) == {
        "model": "gpt-4o-mini",
        "messages": USER,
        "temperature": 0,
        "reasoning": {"effort": "high"},
    }


@pytest.mark.parametrize(
    "item",
    [
        {"prompt": "hi", "model": "o3"},
        {"body": {"messages": USER, "model": "o3"}},
        line(body={"model": "o3", "messages": USER}),
    ],
)
def test_a_row_s_model_wins_over_the_job_s(item: dict[str, Any]) -> None:
    (request,) = read([item])
    assert request.model == json.loads(request.line)["body"]["model"] == "o3"


def test_the_job_s_model_may_be_in_its_body() -> None:
    assert body("hi", model=None, body={"model": "o3"})["model"] == "o3"


def test_the_system_prompt_comes_first_unless_the_conversation_has_its_own() -> None:
    system = {"role": "system", "content": "Be brief."}
    for item in ("hi", {"messages": USER}, {"body": {"messages": USER}}, line(body={"messages": USER})):
        assert body(item, system_prompt="Be brief.")["messages"] == [system, *USER]
    for role in ("system", "developer"):
        own = [{"role": role, "content": "Be long."}, *USER]
        assert body({"messages": own}, system_prompt="Be brief.")["messages"] == own


def test_for_responses_the_system_prompt_becomes_the_instructions() -> None:
    assert body("hi", endpoint=RESPONSES, system_prompt="Be brief.")["instructions"] == "Be brief."
    own = {"body": {"input": "hi", "instructions": "Be long."}}
    assert body(own, endpoint=RESPONSES, system_prompt="Be brief.")["instructions"] == "Be long."


def test_the_schema_goes_into_every_body() -> None:
    for item in ("hi", {"messages": USER}, line(body={"messages": USER})):
        assert body(item, output=LABEL)["response_format"] == LABEL.chat_format()
    shared = {"text": {"verbosity": "low"}}
    assert body("hi", endpoint=RESPONSES, output=LABEL, body=shared)["text"] == {
        "verbosity": "low",
        "format": LABEL.responses_format(),
    }
    own = {"body": {"input": "hi", "text": {"verbosity": "high"}}}
    assert body(own, endpoint=RESPONSES, output=LABEL, body=shared)["text"] == {
        "verbosity": "high",
        "format": LABEL.responses_format(),
    }


def test_the_user_s_columns_are_carried_beside_the_line() -> None:
    columns = {
        "id": 7,
        "price": decimal.Decimal("1.50"),
        "at": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
        "key": uuid.UUID(int=1),
        "tags": ["a", None],
    }
    (request,) = read([{"prompt": "hi", "context": columns}])
    assert request.context is not None
    assert json.loads(request.context) == {
        "id": 7,
        "price": "1.50",
        "at": "2026-01-02T03:04:00Z",
        "key": str(uuid.UUID(int=1)),
        "tags": ["a", None],
    }
    assert b"price" not in request.line


def test_a_complete_line_keeps_its_id_and_may_have_context() -> None:
    (request,) = read([line(context={"n": 1})])
    assert request.custom_id == "a"
    assert json.loads(request.line) == line()
    assert request.context == b'{"n":1}'


def test_row_text_is_data_and_never_a_template() -> None:
    text = "{{ conn.openai.password }} {% raw %} %s {0} ${HOME}"
    assert body(text, system_prompt=text)["messages"] == [
        {"role": "system", "content": text},
        {"role": "user", "content": text},
    ]


def test_no_reader_can_cut_a_line_at_a_line_end_of_unicode() -> None:
    text = "a\u2028b\u2029c\x85d\ne\r\x0b\x0c\x1c\x1d\x1e é\x85 €\u2028 ”"
    (request,) = read([{"custom_id": f"id{text}", "prompt": text, "context": {"t": text}}], system_prompt=text)
    assert request.context is not None
    for encoded in (request.line, request.context):
        assert len(encoded.decode().splitlines()) == 1
    assert json.loads(request.line)["body"]["messages"][1]["content"] == text
    assert json.loads(request.line)["custom_id"] == f"id{text}"
    assert json.loads(request.context) == {"t": text}


class Tone(enum.StrEnum):
    DRY = "dry"


class Money(float):
    """As NumPy's float64 is: a float by inheritance."""


class Name(str):
    __slots__ = ()


def test_subclasses_of_json_s_types_are_written_as_what_they_are() -> None:
    (request,) = read([{"prompt": Name("hi"), "context": {"tone": Tone.DRY, "price": Money(1.5), Name("key"): True}}])
    assert request.context == b'{"tone":"dry","price":1.5,"key":true}'
    assert body(MappingProxyType({"prompt": Name("hi")}))["messages"] == USER


def test_whole_numbers_of_any_size_survive() -> None:
    assert read([{"prompt": "hi", "context": {"n": 10**30}}])[0].context == b'{"n":%d}' % 10**30


@pytest.mark.parametrize(
    ("content", "inputs"),
    [("a", 1), (["a", "b", "c"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2), (["a"] * 2_048, 2_048)],
)
def test_embedding_inputs_are_counted_as_the_api_counts_them(content: Any, inputs: int) -> None:
    assert read([{"input": content}], endpoint=EMBEDDINGS)[0].inputs == inputs
    assert read([{"body": {"input": content}}], endpoint=EMBEDDINGS)[0].inputs == inputs


def test_tokens_are_estimated_from_the_body_s_bytes() -> None:
    short, long = read(["word " * 10, "word " * 1_000])
    assert long.tokens - short.tokens == pytest.approx(990 * 5 / 4, abs=1)
    assert read(["字" * 1_000])[0].tokens == pytest.approx(750, abs=30)
    shared = read(["hi"], system_prompt="word " * 1_000)[0]
    assert shared.tokens > 1_250


def test_an_inline_image_is_not_counted_by_its_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
    (request,) = read([{"messages": [{"role": "user", "content": [image, image]}]}])
    assert request.tokens == pytest.approx(2_000, abs=100)


# What is refused


class Rude:
    """An object whose every description fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no description")


BAD_ROWS: dict[str, tuple[Any, list[str]]] = {
    "nothing": (None, ["NoneType"]),
    "a number": (7, ["int", "dict"]),
    "bytes": (b"hi", ["bytes", "text"]),
    "a tuple": (("a", "b"), ["tuple"]),
    "a set": ({"a"}, ["set"]),
    "a list": (["a"], ["list"]),
    "empty prompt": ("", ["empty"]),
    "blank prompt": (" \n\t", ["empty"]),
    "blank prompt in a dict": ({"prompt": "  "}, ["empty"]),
    "no content": ({"custom_id": "a"}, ["exactly one of", "got none"]),
    "null content": ({"prompt": None}, ["exactly one of", "got none"]),
    "two contents": ({"prompt": "a", "messages": USER}, ["exactly one of", "prompt and messages"]),
    "unknown field": ({"prompt": "a", "tag": 1, "n": 2}, ["unknown fields 'n', 'tag'", "context"]),
    "field that is no text": ({"prompt": "a", 1: 2}, ["unknown field 1"]),
    "half a line": ({"prompt": "a", "url": CHAT}, ["unknown field 'url'", "complete API line"]),
    "line with more": (line(tag=1), ["unknown field 'tag'"]),
    "line without id": ({k: v for k, v in line().items() if k != "custom_id"}, ["custom_id is missing"]),
    "other method": (line(method="GET"), ["'GET'", "POST"]),
    "other url": (line(url=RESPONSES), [RESPONSES, CHAT]),
    "body no dict": (line(body="{}"), ["body must be a dict", "str"]),
    "own body no dict": ({"body": [1]}, ["body must be a dict", "list"]),
    "stream": ({"body": {"messages": USER, "stream": True}}, ["body.stream", "Remove it"]),
    "stream in a line": (line(body={"messages": USER, "stream": True}), ["body.stream", "Remove it"]),
    "no messages": ({"body": {}}, ["body.messages is missing"]),
    "null messages": ({"body": {"messages": None}}, ["body.messages is missing"]),
    "empty messages": ({"messages": []}, ["messages must be a list"]),
    "messages as text": ({"messages": "hi"}, ["messages must be a list"]),
    "message as text": ({"messages": [*USER, "hi"]}, ["messages[1]", "role"]),
    "message without role": ({"messages": [{"content": "hi"}]}, ["messages[0]", "role"]),
    "input for chat": ({"input": "hi"}, ["'input'", "'messages'"]),
    "prompt no text": ({"prompt": ["hi"]}, ["prompt must be text", "'messages'"]),
    "prompt as bytes": ({"prompt": b"hi"}, ["prompt must be text", "bytes"]),
    "model no text": ({"prompt": "a", "model": 4}, ["model", "4"]),
    "model empty": ({"prompt": "a", "model": ""}, ["model", "''"]),
    "two models": ({"body": {"messages": USER, "model": "a"}, "model": "b"}, ["'a'", "'b'"]),
    "id no text": ({"custom_id": 7, "prompt": "a"}, ["custom_id", "7", "str()"]),
    "id empty": ({"custom_id": "", "prompt": "a"}, ["custom_id is empty"]),
    "id too long": ({"custom_id": "x" * 513, "prompt": "a"}, ["513", "512"]),
    "context no dict": ({"prompt": "a", "context": [1]}, ["context must be a dict", "list"]),
    "NaN": ({"body": {"messages": USER, "temperature": math.nan}}, ["body.temperature is nan"]),
    "infinity deep inside": (
        {"messages": [{"role": "user", "content": [{"x": [1, -math.inf]}]}]},
        ["content[0].x[1] is -inf"],
    ),
    "NaN in context": ({"prompt": "a", "context": {"price": Money("nan")}}, ["context.price is nan", "None"]),
    "number as key": ({"body": {"messages": USER, "logit_bias": {50256: -100}}}, ["body.logit_bias", "50256", "str()"]),
    "number as key in context": ({"prompt": "a", "context": {1: 2}}, ["context", "key 1"]),
    "bytes inside": ({"messages": [{"role": "user", "content": b"hi"}]}, ["messages[0].content", "bytes"]),
    "set inside": ({"body": {"messages": USER, "stop": {"a"}}}, ["body.stop", "set"]),
    "date outside context": ({"body": {"messages": USER, "user": datetime.date.min}}, ["body.user", "date"]),
    "object": ({"prompt": "a", "context": {"o": object()}}, ["context.o", "object"]),
    "half a character": ("a\ud800", ["\\ud800"]),
    "half a character in an id": ({"custom_id": "\udfff", "prompt": "a"}, ["\\udfff"]),
    "an id that cannot be shown": ({"custom_id": Rude(), "prompt": "a"}, ["custom_id", "type Rude"]),
    "endless number as id": ({"custom_id": 10**5_000, "prompt": "a"}, ["custom_id", "type int"]),
    "endless number as model": ({"prompt": "a", "model": 10**5_000}, ["model", "type int"]),
    "endless number as method": (line(method=10**5_000), ["method", "type int"]),
    "endless number as field": ({"prompt": "a", 10**5_000: 1}, ["unknown field", "type int"]),
    "endless number as key": ({"prompt": "a", "context": {10**5_000: 1}}, ["context", "type int"]),
    "long text where a method belongs": (line(method="x" * 100_000), ["method is 'xxx", "..."]),
    "number without an end": ({"prompt": "a", "context": {"n": 10**5_000}}, ["JSON"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused_by_its_number_with_a_remedy(case: str) -> None:
    item, expected = BAD_ROWS[case]
    message = refusal(["fine", item])
    assert message.startswith("requests: row 1: ")
    assert len(message) < 600
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("", "empty"),
        ({"input": []}, "input is empty"),
        ({"input": ""}, "input is empty"),
        ({"input": ["a", ""]}, "input[1] is empty"),
        ({"input": ["a"] * 2_049}, "2,049"),
        ({"input": ["a", 1]}, "list of"),
        ({"input": [[1], ["a"]]}, "list of"),
        ({"input": [True]}, "list of"),
        ({"input": {"text": "a"}}, "dict"),
        ({"input": 5}, "int"),
        ({"messages": USER}, "'messages'"),
        ({"body": {}}, "body.input is missing"),
    ],
)
def test_embedding_inputs_are_checked(item: Any, expected: str) -> None:
    assert expected in refusal([item], endpoint=EMBEDDINGS)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert "row 0: context" in refusal([{"prompt": "a", "context": loop}])


def test_a_row_that_contradicts_the_job_s_schema_is_refused() -> None:
    chat = {"body": {"messages": USER, "response_format": {"type": "json_object"}}}
    assert "output_type" in refusal([chat], output=LABEL)
    responses = {"body": {"input": "a", "text": {"format": {"type": "text"}}}}
    assert "output_type" in refusal([responses], output=LABEL, endpoint=RESPONSES)


def test_a_row_without_any_model_is_refused() -> None:
    assert "row 0: no model" in refusal(["hi"], model=None)


@pytest.mark.parametrize(
    ("changes", "param", "expected"),
    [
        ({"endpoint": "chat"}, "endpoint", "path"),
        ({"model": ""}, "model", "name"),
        ({"model": 4}, "model", "name"),
        ({"system_prompt": " "}, "system_prompt", "text"),
        ({"system_prompt": "a", "endpoint": EMBEDDINGS}, "system_prompt", "no place"),
        ({"system_prompt": "a", "endpoint": "/v1/completions"}, "system_prompt", "no place"),
        ({"output": LABEL, "endpoint": EMBEDDINGS}, "output_type", "no schema"),
        ({"body": [1]}, "body", "dict"),
        ({"body": {"stream": True}}, "body", "stream"),
        ({"body": {"messages": USER}}, "body", "'messages'"),
        ({"body": {"temperature": math.nan}}, "body", "nan"),
        ({"body": {"user": "\ud800"}}, "body", "ud800"),
        ({"body": {"model": "o3"}}, "body", "contradicts"),
        ({"body": {"response_format": {}}, "output": LABEL}, "body", "output_type"),
        ({"body": {"text": {"format": {}}}, "output": LABEL, "endpoint": RESPONSES}, "body", "output_type"),
    ],
)
def test_a_template_that_cannot_work_is_refused_before_any_row(changes: Any, param: str, expected: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        template(**changes)
    assert raised.value.param == param
    assert expected in str(raised.value)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.text(st.characters(categories=["Cs"]), max_size=2)
    | st.binary(max_size=3)
    | st.sampled_from([decimal.Decimal("NaN"), object(), {1}, frozenset(), range(3), 1j, USER, CHAT, "POST", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["role", "content", "model", "stream", "messages", "input", "text"]), inner)
        | st.dictionaries(st.text(max_size=2) | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = ("custom_id", "prompt", "input", "messages", "body", "model", "context", "method", "url", "extra")


@settings(max_examples=400)
@given(
    item=ANYTHING
    | st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4)
    | st.fixed_dictionaries({"custom_id": ANYTHING, "method": st.just("POST"), "url": st.just(CHAT), "body": ANYTHING}),
    endpoint=st.sampled_from([*sorted(ENDPOINTS), "/v1/rerank"]),
)
def test_any_item_becomes_a_line_the_api_takes_or_an_error_with_its_row(item: Any, endpoint: str) -> None:
    requests = read_requests(["fine", item], template(endpoint=endpoint))
    next(requests)
    try:
        (request,) = requests
    except InvalidInputError as error:
        assert "row 1: " in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert check_input_file(BytesIO(request.line), "line").model == request.model
        assert json.loads(request.line)["custom_id"] == request.custom_id


@given(st.text(min_size=1).filter(lambda text: text.strip() != ""))
def test_a_prompt_arrives_as_it_was(prompt: str) -> None:
    assert msgspec.json.decode(read([prompt])[0].line)["body"]["messages"][0]["content"] == prompt


def test_a_job_of_plain_prompts_loads_nothing_heavy() -> None:
    loaded = run_fresh(
        "import sys\n"
        "from airflow_provider_openai_batches.jobs import requests, shards, structured\n"
        "rows = ['a', {'custom_id': 'b', 'prompt': 'c'}]\n"
        "assert list(requests.read_requests(rows, requests.RequestTemplate(model='m')))\n"
        "print(*sorted({'airflow', 'pydantic', 'pyarrow', 'jsonschema', 'sqlite3'} & set(sys.modules)))"
    )
    assert loaded == ""
