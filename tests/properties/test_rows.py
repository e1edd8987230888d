"""Whatever a file of rows holds: requests that the service takes, or an error that names the row."""

from __future__ import annotations

import csv
import io
import json
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.emulator.validation import UNKNOWN_MODEL_PREFIX, validate
from airflow_provider_openai_batches.jobs.requests import CHAT, EMBEDDINGS, RESPONSES, RequestTemplate, read_requests
from airflow_provider_openai_batches.jobs.shards import ShardLimits, write_shards
from tests.properties.effort import TIMEOUT_S, effort
from tests.properties.odd_json import FRAGMENTS, VALUES, nested, spelled, spoiled

pytestmark = pytest.mark.timeout(TIMEOUT_S)

CONTENT = {CHAT: "messages", RESPONSES: "input", EMBEDDINGS: "input", "/v1/moderations": "input"}
FIELDS = ("custom_id", "prompt", "input", "messages", "body", "model", "context", "method", "url", "mine", "", "\x00")
MESSAGES = [{"role": "user", "content": "a"}]

rows = st.one_of(
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
    st.fixed_dictionaries(
        {"prompt": st.text(min_size=1, max_size=9)},
        optional={"custom_id": st.text(max_size=3), "model": st.sampled_from(["m", "n"]), "mine": VALUES},
    ),
    st.fixed_dictionaries({"messages": st.just(MESSAGES)}, optional={"custom_id": VALUES, "context": VALUES}),
    st.fixed_dictionaries(
        {"custom_id": st.text(max_size=3), "method": st.just("POST"), "url": st.sampled_from([*CONTENT])},
        optional={"body": st.just({"messages": MESSAGES, "input": "a"}) | VALUES},
    ),
    VALUES,
)


@st.composite
def jsonl(draw: st.DrawFn) -> bytes:
    """The content of a file: some good rows, and then whatever people save."""
    lines = draw(st.lists(rows.flatmap(spelled) | rows.flatmap(spelled).flatmap(spoiled), max_size=6))
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b"\r"]))
    return draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + end.join(lines) + draw(st.sampled_from([b"", end]))


def sent(path: Path, template: RequestTemplate, limits: ShardLimits = ShardLimits()) -> list[dict[str, Any]]:  # noqa: B008
    """Return all lines of all shards of a source, after the service's own check of each file.

    :raises InvalidInputError: a row cannot be sent
    """
    lines: list[dict[str, Any]] = []
    with TemporaryDirectory() as directory:
        for shard in write_shards(read_requests(path, template), limits, Path(directory)):
            verdict = validate(shard.requests_path, template.endpoint, threading.Event())
            unknown = [error for error in verdict.errors if error["code"] == "model_not_found"]
            assert verdict.errors == unknown, verdict.errors
            assert bool(unknown) == shard.model.startswith(UNKNOWN_MODEL_PREFIX)
            assert verdict.total == shard.requests
            assert unknown or verdict.model == shard.model
            lines += map(json.loads, shard.requests_path.read_bytes().splitlines())
    return lines


def check_file(content: bytes, suffix: str, endpoint: str) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory, f"rows{suffix}")
        path.write_bytes(content)
        try:
            lines = sent(path, RequestTemplate(endpoint=endpoint, model="m"))
        except InvalidInputError as error:
            named = f"{path}, row " in str(error) or "requests: row " in str(error)
            assert named and len(str(error)) < 2_000, "read by people"  # noqa: PT017, PT018 - either is right
        else:
            assert len({line["custom_id"] for line in lines}) == len(lines)


@effort(300)
@given(content=jsonl(), endpoint=st.sampled_from([*CONTENT]))
def test_any_file_of_lines_becomes_requests_that_the_service_takes_or_an_error_with_its_row(
    content: bytes, endpoint: str
) -> None:
    check_file(content, ".jsonl", endpoint)


@effort(100)
@given(
    header=st.lists(st.sampled_from(FIELDS) | st.text(max_size=3), max_size=4),
    cells=st.lists(st.lists(st.text(max_size=6) | st.sampled_from(["", "[", json.dumps(MESSAGES), '{"a":1e999}']))),
    spoil=st.data(),
)
def test_any_table_becomes_requests_that_the_service_takes_or_an_error_with_its_row(
    header: list[str], cells: list[list[str]], spoil: st.DataObject
) -> None:
    written = io.StringIO()
    csv.writer(written).writerows([header, *cells])
    content = written.getvalue().encode("utf-8", "surrogatepass")
    if spoil.draw(st.booleans()):
        at = spoil.draw(st.integers(0, len(content)))
        content = content[:at] + spoil.draw(st.sampled_from(FRAGMENTS)) + content[at:]
    check_file(content, ".csv", CHAT)


@effort(150)
@given(st.lists(st.tuples(st.text(min_size=1).filter(str.strip), VALUES), max_size=5).flatmap(
    lambda drawn: st.tuples(st.just(drawn), st.tuples(*(spelled({"prompt": text, "mine": own}) for text, own in drawn)))
))  # fmt: skip
def test_good_rows_arrive_as_they_are_in_whatever_way_they_are_spelled(drawn: Any) -> None:
    expected, lines = drawn
    with TemporaryDirectory() as directory:
        path = Path(directory, "rows.jsonl")
        path.write_bytes(b"\n".join(lines))
        found = [line["body"]["messages"][0]["content"] for line in sent(path, RequestTemplate(model="m"))]
    assert found == [text for text, _ in expected]


@pytest.mark.parametrize("depth", [*range(960, 1_010, 7), 2_000, 100_000])
def test_depth_is_passed_on_or_refused_by_the_row(tmp_path: Path, depth: int) -> None:
    for row in (f'{{"body": {{"messages": {nested(depth)}}}}}', f'{{"prompt": "a", "mine": {nested(depth)}}}'):
        path = tmp_path / "rows.jsonl"
        path.write_text(f'{{"prompt": "fine"}}\n{row}\n')
        try:
            lines = sent(path, RequestTemplate(model="m"))
        except InvalidInputError as error:
            assert "row 1: " in str(error)  # noqa: PT017 - either is right
        else:
            assert len(lines) == 2


@effort(100)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 400), st.sampled_from("mn")), max_size=12),
    most_bytes=st.integers(1, 700),
    most_requests=st.integers(1, 4),
)
def test_limits_too_small_for_a_row_name_it_and_any_others_lose_nothing(
    sizes: list[tuple[int, str]], most_bytes: int, most_requests: int
) -> None:
    template = RequestTemplate()
    given_rows = [{"prompt": "x" * size, "model": model} for size, model in sizes]
    limits = ShardLimits(most_requests, most_bytes)
    too_large = [each.index for each in read_requests(given_rows, template) if len(each.line) + 1 > most_bytes]
    with TemporaryDirectory() as directory:
        written = write_shards(read_requests(given_rows, template), limits, Path(directory))
        if too_large:
            with pytest.raises(InvalidInputError, match=rf"row {too_large[0]}: .*bytes"):
                list(written)
            return
        shards = list(written)
        assert sum(shard.requests for shard in shards) == len(sizes)
        assert all(shard.requests_path.stat().st_size <= most_bytes for shard in shards)
        indexes = {model: [index for index, (_, other) in enumerate(sizes) if other == model] for model in "mn"}
        for model, expected in indexes.items():
            contexts = [shard.context_path for shard in shards if shard.model == model]
            assert [json.loads(line)["index"] for path in contexts for line in path.open()] == expected
