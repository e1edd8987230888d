from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.requests import Request, RequestTemplate, read_requests


def read(source: Any) -> list[Request]:
    return list(read_requests(source, RequestTemplate(model="gpt-4o-mini")))


def refusal(source: Any) -> str:
    with pytest.raises(InvalidInputError) as raised:
        read(source)
    assert raised.value.param == "requests"
    return str(raised.value)


def numbered(ids: Mapping[int, str], rows: int) -> Iterator[dict[str, Any]]:
    for index in range(rows):
        yield {"prompt": "a", "custom_id": ids.get(index)}


@given(st.data())
def test_an_id_used_twice_is_refused_with_both_rows(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=30, unique=True))
    first, second = sorted(data.draw(st.lists(st.sampled_from(range(len(ids))), min_size=2, max_size=2, unique=True)))
    ids[second] = ids[first]
    message = refusal([{"prompt": "a", "custom_id": custom_id} for custom_id in ids])
    assert f"row {second}: custom_id {ids[first]!r}" in message
    assert f"row {first}." in message


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 59_999), (24_000, 26_000), (30_000, 59_000)])
def test_an_id_used_twice_is_found_at_any_distance(first: int, second: int) -> None:
    ids = {index: f"id-{index}" for index in range(60_000)}
    ids[second] = ids[first]
    message = refusal(numbered(ids, 60_000))
    assert f"row {second}: custom_id 'id-{first}' is also that of row {first}." in message


@pytest.mark.parametrize(
    ("ids", "rows"),
    [({3: "row-1"}, (1, 3)), ({1: "row-3"}, (1, 3)), ({0: "row-29999", 1: "b"}, (0, 29_999))],
)
def test_an_id_that_is_another_row_s_default_is_refused(ids: dict[int, str], rows: tuple[int, int]) -> None:
    message = refusal(numbered(ids, 30_000))
    assert f"row {rows[1]}: custom_id " in message
    assert f"row {rows[0]}." in message


@pytest.mark.parametrize(
    "ids",
    [
        {0: "row-0", 1: "row-1"},
        {0: "row-1", 1: "row-0"},
        {0: "row-5", 1: "row-05", 2: "row-", 3: "row-1x", 4: "row--1", 5: "b"},
        {0: "row-05", 1: "row-2x", 3: "row-99999999999999999999", 4: "row-6"},
        {0: "a", 1: "A", 2: "ä", 3: "a\u0308", 4: "a\0", 5: "a\0b"},
    ],
)
def test_ids_that_only_look_alike_pass(ids: dict[int, str]) -> None:
    assert [request.custom_id for request in read(numbered(ids, 6))] == [ids.get(i, f"row-{i}") for i in range(6)]


def test_default_ids_are_not_remembered() -> None:
    def peak(rows: int) -> int:
        tracemalloc.start()
        for _ in read_requests(("hi" for _ in range(rows)), RequestTemplate(model="m")):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few = peak(1_000)
    assert peak(20_000) < few + 20_000
