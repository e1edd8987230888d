from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import check_input_file
from airflow_provider_openai_batches.jobs.requests import Request, RequestTemplate, read_requests
from airflow_provider_openai_batches.jobs.shards import ShardFiles, ShardLimits, write_shards
from tests.jobs.fresh_python import run_fresh

TEMPLATE = RequestTemplate(model="gpt-4o-mini")
EMBEDDINGS = RequestTemplate(model="text-embedding-3-small", endpoint="/v1/embeddings")


def shards(
    items: Iterable[Any], directory: Path, template: RequestTemplate = TEMPLATE, **limits: Any
) -> list[ShardFiles]:
    return list(write_shards(read_requests(items, template), ShardLimits(**limits), directory))


def contexts(shard: ShardFiles) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shard.context_path.read_bytes().split(b"\n")[:-1]]


def test_a_shard_s_files_are_ready_to_upload_and_to_join(tmp_path: Path) -> None:
    (shard,) = shards(["one", {"custom_id": "b", "prompt": "two", "context": {"n": "\u2028"}}], tmp_path)
    content = shard.requests_path.read_bytes()
    with shard.requests_path.open("rb") as file:
        summary = check_input_file(file, "shard")
    assert (summary.requests, summary.bytes, summary.model) == (2, len(content), "gpt-4o-mini")
    assert (shard.index, shard.model, shard.first_index, shard.requests, shard.bytes, shard.inputs) == (
        0,
        "gpt-4o-mini",
        0,
        2,
        len(content),
        2,
    )
    assert contexts(shard) == [
        {"index": 0, "custom_id": "row-0", "context": None},
        {"index": 1, "custom_id": "b", "context": {"n": "\u2028"}},
    ]


def test_no_requests_give_no_shards(tmp_path: Path) -> None:
    assert shards([], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.strip() != "")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
MODELS = st.sampled_from([None, "gpt-4o-mini", "gpt-5", "o3"])


@st.composite
def items(draw: st.DrawFn) -> list[tuple[Any, str, dict[str, Any] | None]]:
    """Valid items, each with the text and the context it stands for."""
    drawn = []
    for number in range(draw(st.integers(0, 25))):
        text = draw(TEXT)
        messages = [{"role": "user", "content": text}]
        form = draw(st.sampled_from(["prompt", "dict", "messages", "body", "line"]))
        if form == "prompt":
            drawn.append((text, text, None))
            continue
        context = draw(st.none() | st.dictionaries(st.text(max_size=3), JSON, max_size=3))
        item: dict[str, Any] = {"custom_id": draw(st.none() | st.just(f"id-{number}")), "context": context}
        model = draw(MODELS)
        if form == "line":
            item |= {"custom_id": f"line-{number}", "method": "POST", "url": TEMPLATE.endpoint}
            item["body"] = {"messages": messages} | ({"model": model} if model else {})
        else:
            item["model"] = model
            name = "prompt" if form == "dict" else form
            item[name] = {"prompt": text, "messages": messages, "body": {"messages": messages}}[name]
        drawn.append((item, text, context))
    return drawn


LIMITS = st.fixed_dictionaries(
    {
        "max_requests": st.integers(1, 6),
        "max_bytes": st.integers(600, 2_000),
        "max_inputs": st.integers(1, 6),
        "max_tokens": st.none() | st.dictionaries(st.sampled_from(["gpt-4o-mini", "o3"]), st.integers(10, 100)),
    }
)


@given(items(), LIMITS)
def test_every_request_is_in_one_shard_in_order_and_no_limit_is_passed(
    drawn: list[tuple[Any, str, dict[str, Any] | None]], limits: dict[str, Any]
) -> None:
    source = [item for item, _, _ in drawn]
    requests = {request.index: request for request in read_requests(source, TEMPLATE)}
    with TemporaryDirectory() as directory:
        found: dict[str, list[int]] = defaultdict(list)
        written = shards(source, Path(directory), **limits)
        for shard in written:
            lines = shard.requests_path.read_bytes().split(b"\n")[:-1]
            rows = contexts(shard)
            assert [row["index"] for row in rows] == sorted(row["index"] for row in rows)
            assert shard.first_index == rows[0]["index"]
            assert len(lines) == len(rows) == shard.requests
            for line, row in zip(lines, rows, strict=True):
                request = requests[row["index"]]
                decoded = json.loads(line)
                assert (line, request.model) == (request.line, shard.model)
                assert decoded["body"]["messages"] == [{"role": "user", "content": drawn[row["index"]][1]}]
                assert row["custom_id"] == decoded["custom_id"] == request.custom_id
                assert row["context"] == drawn[row["index"]][2]
                found[shard.model].append(row["index"])
            part = [requests[row["index"]] for row in rows]
            assert shard.bytes == shard.requests_path.stat().st_size <= limits["max_bytes"]
            assert shard.requests <= limits["max_requests"]
            assert shard.inputs == sum(request.inputs for request in part) <= limits["max_inputs"]
            assert shard.tokens == sum(request.tokens for request in part)
            most_tokens = (limits["max_tokens"] or {}).get(shard.model)
            assert most_tokens is None or shard.tokens <= most_tokens or shard.requests == 1
        for model, indexes in found.items():
            assert indexes == [index for index, request in requests.items() if request.model == model]
        assert sum(map(len, found.values())) == len(drawn)
        assert sorted(shard.index for shard in written) == list(range(len(written)))
        assert_no_shard_could_take_the_next_request(written, requests, limits)


def assert_no_shard_could_take_the_next_request(
    written: list[ShardFiles], requests: dict[int, Request], limits: dict[str, Any]
) -> None:
    by_model: dict[str, list[ShardFiles]] = defaultdict(list)
    for shard in sorted(written, key=lambda shard: shard.index):
        by_model[shard.model].append(shard)
    for model, ordered in by_model.items():
        for shard, following in pairwise(ordered):
            request = requests[following.first_index]
            most_tokens = (limits["max_tokens"] or {}).get(model)
            assert (
                shard.requests == limits["max_requests"]
                or shard.bytes + len(request.line) + 1 > limits["max_bytes"]
                or shard.inputs + request.inputs > limits["max_inputs"]
                or (most_tokens is not None and shard.tokens + request.tokens > most_tokens)
            )


def test_embedding_inputs_are_held_to_their_limit(tmp_path: Path) -> None:
    written = shards([{"input": ["a"] * 2_000}] * 60, tmp_path, EMBEDDINGS)
    assert [(shard.requests, shard.inputs) for shard in written] == [(25, 50_000), (25, 50_000), (10, 20_000)]


def test_a_shard_may_be_filled_to_the_last_byte(tmp_path: Path) -> None:
    size = sum(len(request.line) + 1 for request in read_requests(["one", "two"], TEMPLATE))
    assert [shard.bytes for shard in shards(["one", "two"], tmp_path, max_bytes=size)] == [size]
    assert len(shards(["one", "two"], tmp_path, max_bytes=size - 1)) == 2


def test_a_shard_is_given_out_while_the_source_is_still_read(tmp_path: Path) -> None:
    read: list[int] = []

    def rows() -> Iterator[str]:
        for index in range(10):
            read.append(index)
            yield "hi"

    written = write_shards(read_requests(rows, TEMPLATE), ShardLimits(max_requests=3), tmp_path)
    first = next(written)
    assert first.requests == 3
    assert read == [0, 1, 2, 3]
    first.requests_path.unlink()
    first.context_path.unlink()
    assert [shard.requests for shard in written] == [3, 3, 1]


def test_each_model_gets_shards_of_its_own_numbered_as_they_begin(tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "model": model} for model in ("a", "b", "a", "a", "b", "c")]
    written = shards(rows, tmp_path, max_requests=2)
    assert [(shard.index, shard.model, shard.first_index, shard.requests) for shard in written] == [
        (0, "a", 0, 2),
        (1, "b", 1, 2),
        (2, "a", 3, 1),
        (3, "c", 5, 1),
    ]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "model": f"m{n % 3}", "context": {"n": n}} for n in range(50)]
    snapshots = []
    for name in ("one", "two"):
        directory = tmp_path / name
        directory.mkdir()
        shards(rows, directory, max_requests=7)
        snapshots.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert snapshots[0] == snapshots[1]


def test_files_left_by_an_earlier_attempt_are_replaced(tmp_path: Path) -> None:
    shards([f"long prompt {n}" for n in range(100)], tmp_path)
    (shard,) = shards(["hi"], tmp_path)
    assert shard.bytes == shard.requests_path.stat().st_size
    assert len(contexts(shard)) == 1


def test_many_models_need_few_open_files(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
from airflow_provider_openai_batches.jobs.shards import ShardLimits, write_shards
resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))
rows = ({"prompt": str(n), "model": f"m{n * 7 % 300}"} for n in range(3_000))
for shard in write_shards(read_requests(rows, RequestTemplate()), ShardLimits(), Path(sys.argv[1])):
    lines = shard.requests_path.read_bytes().splitlines()
    assert len(lines) == len(shard.context_path.read_bytes().splitlines()) == shard.requests == 10
    print(shard.index)
"""
    assert run_fresh(code, tmp_path).split() == [str(index) for index in range(300)]


def test_files_are_closed_when_the_caller_stops_early(tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "model": model} for model in ("a", "b", "a")]
    written = write_shards(read_requests(rows, TEMPLATE), ShardLimits(max_requests=1), tmp_path)
    assert next(written).model == "a"
    other = tmp_path / "shard-00001.requests.jsonl"
    assert other.stat().st_size == 0
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always", ResourceWarning)
        written.close()  # type: ignore[attr-defined]
        del written
    assert [str(complaint.message) for complaint in complaints] == []
    assert other.stat().st_size > 0


def test_a_request_too_large_for_any_batch_is_refused_by_its_row(tmp_path: Path) -> None:
    (request,) = read_requests(["x" * 500], TEMPLATE)
    size = len(request.line) + 1
    assert [shard.bytes for shard in shards(["x" * 500], tmp_path, max_bytes=size)] == [size]
    with pytest.raises(InvalidInputError, match=rf"row 1: the request has {size} bytes.* may have {size - 1}"):
        shards(["a", "x" * 500], tmp_path, max_bytes=size - 1)


def test_a_request_with_too_many_inputs_is_refused_by_its_row(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"row 1: the request has 11 inputs.* may have 10"):
        shards(["a", {"input": ["a"] * 11}], tmp_path, EMBEDDINGS, max_inputs=10)


def test_a_request_above_the_token_limit_gets_a_shard_of_its_own(tmp_path: Path) -> None:
    written = shards(["a", "long " * 500, "b", "c"], tmp_path, max_tokens={"gpt-4o-mini": 100})
    assert [shard.requests for shard in written] == [1, 1, 2]


@pytest.mark.parametrize(
    ("limits", "param"),
    [
        ({"max_requests": 0}, "max_requests"),
        ({"max_requests": 100_001}, "max_requests"),
        ({"max_requests": True}, "max_requests"),
        ({"max_requests": "10"}, "max_requests"),
        ({"max_bytes": 200_000_001}, "max_bytes"),
        ({"max_bytes": 1.5}, "max_bytes"),
        ({"max_inputs": -1}, "max_inputs"),
        ({"max_inputs": None}, "max_inputs"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_tokens": {"m": 0}}, "max_tokens"),
        ({"max_tokens": {1: 1}}, "max_tokens"),
    ],
)
def test_a_limit_out_of_range_is_refused_by_name(limits: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        ShardLimits(**limits)
    assert raised.value.param == param


PEAK_RSS = """
import resource, sys
from pathlib import Path
from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
from airflow_provider_openai_batches.jobs.shards import ShardLimits, write_shards
rows, form, directory = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
items = {"prompts": lambda n: f"p{n}", "ids": lambda n: {"custom_id": f"id-{n}", "prompt": "p", "context": {"n": n}}}
requests = read_requests(map(items[form], range(rows)), RequestTemplate(model="m"))
for shard in write_shards(requests, ShardLimits(), directory):
    shard.requests_path.unlink()
    shard.context_path.unlink()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize(("form", "few", "many"), [("prompts", 50_000, 400_000), ("ids", 100_000, 400_000)])
def test_memory_does_not_depend_on_the_number_of_rows(tmp_path: Path, form: str, few: int, many: int) -> None:
    low, high = (int(run_fresh(PEAK_RSS, rows, form, tmp_path)) for rows in (few, many))
    assert high < low * 1.1, f"{low:,} KB for {few:,} rows, {high:,} KB for {many:,}"
