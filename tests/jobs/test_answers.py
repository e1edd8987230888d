"""Values that a service wrote and nobody can use: they are found when the answer is read, row by row."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.models import Usage
from airflow_provider_openai_batches.jobs.classify import Done, Outcome, Retry
from airflow_provider_openai_batches.jobs.parts import output_column, read_results, write_parts
from airflow_provider_openai_batches.jobs.results import ResultRow
from tests.jobs.result_files import CHAT, EMBEDDINGS, RESPONSES, decide, plain

MODERATIONS = "/v1/moderations"
LARGEST_FLOAT32 = 3.4028234663852886e38


def in_base64(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def line(body: str) -> str:
    """A line with a body as it stands, for JSON that no encoder would write."""
    return f'{{"custom_id":"r","response":{{"status_code":200,"request_id":"q","body":{body}}},"error":null}}'


def embeddings(*vectors: str) -> str:
    data = ",".join(f'{{"index":{index},"embedding":{vector}}}' for index, vector in enumerate(vectors))
    return line(f'{{"data":[{data}],"model":"m","usage":{{"prompt_tokens":3,"total_tokens":3}}}}')


def written_and_read(outcome: Outcome, endpoint: str, directory: Path) -> list[Any]:
    """What is read of an outcome's output when it was written as JSON Lines, and as Parquet."""
    row = ResultRow(
        custom_id="r", index=0, batch_id="b", attempts=1, context=None, request_id=None, finish_reason=None, model=None,
        status=outcome.status, output=outcome.output, error=outcome.error, usage=outcome.usage,
    )  # fmt: skip
    found = []
    for form in ("jsonl", "parquet"):
        column = output_column(endpoint, structured=False)
        (part,) = write_parts([[row]], directory, format=form, column=column)  # type: ignore[arg-type]
        (read,) = read_results({"results": [str(part.path)]})
        found.append(read["output"])
    return found


# --- vectors ---------------------------------------------------------------------------------------------------------

BAD_VECTORS = {
    "[NaN,0.5]": r"got `null` - at `\$\[0\]`",
    "[0.5,Infinity]": r"got `null` - at `\$\[1\]`",
    "[0.5,null]": r"got `null` - at `\$\[1\]`",
    "[1e400,1]": r"out of range - at `\$\[0\]`",
    "[1,-1e39]": r">= -3.4.* - at `\$\[1\]`",
    "[1,-2e+39]": r">= -3.4.* - at `\$\[1\]`",
    "[1,1E39]": r"<= 3.4.* - at `\$\[1\]`",
    f"[1,4{'0' * 38}]": r"<= 3.4.* - at `\$\[1\]`",
    f"[1,{'9' * 5000}]": "out of range",
    "[true,false]": "got `bool`",
    '["0.5"]': "got `str`",
    "[[0.1,0.2],[0.3]]": "got `array`",
    '[{"a":1},2]': "got `object`",
    "[]": "length >= 1",
    "0.5": "got `float`",
    "{}": "got `object`",
    '""': "base64 of nothing",
    '"abc"': "padding",
    '"abcd"': "not a multiple of item size",
    '"AACA!Pw=="': "base64",
    '"größer"': "ASCII",
    json.dumps(in_base64(0.5, math.nan)): "base64 of NaN or infinity",
    json.dumps(in_base64(math.inf, -math.inf)): "base64 of NaN or infinity",
}


@pytest.mark.parametrize("vector", BAD_VECTORS, ids=lambda vector: vector[:20])
def test_vector_that_is_none_is_an_invalid_output_that_says_what_is_wrong(vector: str) -> None:
    outcome = decide(embeddings("[0.5]", vector), endpoint=EMBEDDINGS)
    assert isinstance(outcome, Retry)
    assert (outcome.status, outcome.output) == ("invalid_output", None)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.http_status) == ("unusable_output", 200)
    assert re.search(rf"^Vector 1 of the answer is .*{BAD_VECTORS[vector]}", outcome.error.message or "")
    assert outcome.usage == Usage(input_tokens=3, total_tokens=3)


GOOD_VECTORS = ["[5]", "[-1.5e-05, 0.25]", f"[0,{LARGEST_FLOAT32}]", "[1E2,-0.0]", f"[0.{'1' * 50},1]", "[\n1 ,\t2 ]"]


@pytest.mark.parametrize("vector", [*GOOD_VECTORS, json.dumps(in_base64(0.5, LARGEST_FLOAT32))])
def test_vector_is_passed_on_as_it_was_written(vector: str) -> None:
    outcome = decide(embeddings(vector), endpoint=EMBEDDINGS)
    assert isinstance(outcome, Done)
    assert bytes(outcome.output).decode() == vector


numbers = st.floats() | st.floats(width=32) | st.integers() | st.none() | st.floats().map(lambda n: n * 1e300)
vectors = st.lists(numbers, max_size=4).map(json.dumps) | st.text(max_size=9).map(json.dumps)
encoded = st.lists(st.floats(width=32), max_size=4).map(lambda items: json.dumps(in_base64(*items)))
odd_numbers = st.from_regex(r"\[-?[1-9][0-9]{0,50}(\.[0-9]{1,45})?([eE][+-]?[0-9]{1,3})?(,[0-9])?\]", fullmatch=True)


@given(vector=vectors | encoded | odd_numbers)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_any_vector_is_refused_or_can_be_written_and_read_as_finite_numbers(tmp_path: Path, vector: str) -> None:
    outcome = decide(embeddings(vector), endpoint=EMBEDDINGS)
    if isinstance(outcome, Done):
        as_text, as_numbers = written_and_read(outcome, EMBEDDINGS, tmp_path)
        assert as_text == json.loads(vector)
        assert as_numbers
        assert all(map(math.isfinite, as_numbers))
    else:
        assert outcome.error is not None
        assert "Vector 0" in (outcome.error.message or "")


# --- the rest --------------------------------------------------------------------------------------------------------

TOO_LARGE = ["1e400", "9" * 5000]


@pytest.mark.parametrize("number", TOO_LARGE, ids=["float", "integer"])
def test_body_with_a_number_that_no_reader_takes_is_an_invalid_output(number: str, tmp_path: Path) -> None:
    outcome = decide(line(f'{{"model":"m","results":[{{"score":{number}}}]}}'), endpoint=MODERATIONS)
    assert isinstance(outcome, Retry)
    assert (outcome.status, outcome.model) == ("invalid_output", "m")
    assert outcome.error is not None
    assert outcome.error.code == "unusable_output"
    assert "out of range" in (outcome.error.message or "")
    assert written_and_read(outcome, MODERATIONS, tmp_path) == [None, None]


@pytest.mark.parametrize("number", TOO_LARGE, ids=["float", "integer"])
def test_call_of_a_tool_with_such_a_number_is_an_invalid_output(number: str) -> None:
    items = f'[{{"type":"reasoning"}},{{"type":"function_call","arguments":{{"n":{number}}}}}]'
    outcome = decide(line(f'{{"status":"completed","output":{items}}}'), endpoint=RESPONSES)
    assert isinstance(outcome, Retry)
    assert (outcome.status, outcome.error and outcome.error.code) == ("invalid_output", "unusable_output")
    call = f'{{"message":{{"content":null,"tool_calls":[{{"n":{number}}}]}}}}'
    outcome = decide(line(f'{{"choices":[{call}]}}'), endpoint=CHAT)
    assert (outcome.status, outcome.output) == ("invalid_output", None)


@pytest.mark.parametrize("body", ['{"a":[1e308,null,"é"]}', "[1]", '"text"', f"{'9' * 4000}"])
def test_any_other_body_is_passed_on(body: str, tmp_path: Path) -> None:
    outcome = decide(line(body), endpoint=MODERATIONS)
    assert isinstance(outcome, Done)
    assert plain(outcome.output) == json.loads(body)
    assert written_and_read(outcome, MODERATIONS, tmp_path) == [json.loads(body)] * 2
