from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.requests import Request, RequestTemplate, read_requests

TEMPLATE = RequestTemplate(model="gpt-4o-mini")
USER = [{"role": "user", "content": "hi"}]
LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": USER},
}


def read(source: Any) -> list[Request]:
    return list(read_requests(source, TEMPLATE))


def refusal(source: Any) -> str:
    with pytest.raises(InvalidInputError) as raised:
        read(source)
    assert raised.value.param == "requests"
    return str(raised.value)


def test_a_source_is_read_lazily_and_once() -> None:
    seen: list[int] = []

    def rows() -> Iterator[str]:
        for index in range(3):
            seen.append(index)
            yield f"prompt {index}"

    requests = read_requests(rows, TEMPLATE)
    assert seen == []
    assert next(requests).custom_id == "row-0"
    assert seen == [0]
    assert [request.index for request in requests] == [1, 2]
    assert seen == [0, 1, 2]


def test_an_error_of_the_user_s_generator_passes_through() -> None:
    def rows() -> Iterator[str]:
        yield "fine"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        read(rows)


@pytest.mark.parametrize("source", [[], (), iter(()), lambda: []])
def test_a_source_without_rows_gives_no_requests(source: Any) -> None:
    assert read(source) == []


class Frame:
    columns = ("prompt",)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Summarize this.", "a bare string is not a list of requests: 'Summarize this.'"),
        ("Summarize\nrows.csv", "a bare string"),
        ("a\0b.csv", "Take it out"),
        ("\ud800.jsonl", "Take it out"),
        ("x" * 10_000, "..."),
        ({"prompt": "hi"}, "list"),
        (b"hi", "bytes"),
        ({"a", "b"}, "order"),
        (Frame(), "to_dict"),
        (None, "NoneType"),
        (7, "int"),
        (dict, "type"),
        (lambda: lambda: [], "another function"),
        (lambda: "no path", "a bare string"),
        (Path("rows.xlsx"), ".parquet"),
    ],
)
def test_what_is_no_list_of_requests_is_refused_at_once(source: Any, expected: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        read_requests(source, TEMPLATE)
    assert raised.value.param == "requests"
    assert expected in str(raised.value)
    assert len(str(raised.value)) < 400


def test_rows_of_a_jsonl_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "one", "id": 10**30, "url": "https://example.com"},
        "two",
        {"custom_id": "c", "prompt": "three", "context": {"n": 1}},
        {"prompt": "four", "context": "a text", "n": 2},
        LINE,
        {"prompt": "six", "n": 1, "context": {"m": 2}},
    ]
    path.write_text("\ufeff" + "\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    for source in (path, str(path)):
        requests = read(source)
        assert [request.custom_id for request in requests] == ["row-0", "row-1", "c", "row-3", "a", "row-5"]
        assert [request.context and json.loads(request.context) for request in requests] == [
            {"id": 10**30, "url": "https://example.com"},
            None,
            {"n": 1},
            {"context": "a text", "n": 2},
            None,
            {"n": 1, "m": 2},
        ]


def test_rows_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    long = "long " * 40_000
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["custom_id", "prompt", "messages", "model", "country", "note"])
        writer.writerow(["a", 'one, "two"\nthree', "", "", "DE", ""])
        writer.writerow(["", "", json.dumps(USER), "o3", "FR", "{}"])
        writer.writerow(["", long, "", "", "", ""])
    first, second, third = read(path)
    assert (first.custom_id, first.model) == ("a", "gpt-4o-mini")
    assert json.loads(first.line)["body"]["messages"][0]["content"] == 'one, "two"\nthree'
    assert first.context == b'{"country":"DE","note":""}'
    assert (second.custom_id, second.model) == ("row-1", "o3")
    assert json.loads(second.line)["body"]["messages"] == USER
    assert second.context == b'{"country":"FR","note":"{}"}'
    assert json.loads(third.line)["body"]["messages"][0]["content"] == long


def test_rows_of_a_parquet_file(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    at = datetime.datetime(2026, 1, 2, 3, 4)
    rows = [
        {"prompt": "one", "messages": None, "id": 1, "at": at, "tags": ["a"]},
        {"prompt": None, "messages": USER, "id": None, "at": None, "tags": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows * 2_000), path)
    requests = read(path)
    assert len(requests) == 4_000
    assert requests[0].context == b'{"id":1,"at":"2026-01-02T03:04:00","tags":["a"]}'
    assert requests[3_999].context == b'{"id":null,"at":null,"tags":null}'
    assert json.loads(requests[3_999].line)["body"]["messages"] == USER


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"prompt":"a"}\n{"prompt":\n', ["a.jsonl, row 1: ", "not valid JSON"]),
        ("a.jsonl", b'{"prompt":"a"}\n{"prompt":NaN}\n', ["a.jsonl, row 1: ", "not valid JSON"]),
        ("a.jsonl", b'{"prompt":"a"}\n{"prompt":"\xff"}\n', ["a.jsonl, row 1: ", "not valid JSON"]),
        ("a.jsonl", b"[" * 5_000, ["a.jsonl, row 0: ", "not valid JSON"]),
        ("a.ndjson", b'["a"]\n', ["a.ndjson, row 0: ", "list"]),
        ("a.csv", b"prompt,id\na,1\nb\n", ["a.csv, row 1: ", "1 cells for 2 columns"]),
        ("a.csv", b"prompt,id\na,1\nb,2,3\n", ["a.csv, row 1: ", "3 cells for 2 columns"]),
        ("a.csv", b"prompt,id,id\na,1,2\n", ["a.csv, row 0: ", "id more than once"]),
        ("a.csv", b'prompt,id\n"a"b,1\n', ["a.csv, row 0: ", "not valid CSV"]),
        ("a.csv", b"prompt\n\xff\n", ["a.csv, row 0: ", "not valid CSV in UTF-8"]),
        ("a.csv", b"messages\n[{]\n", ["a.csv, row 0: ", "'messages' is not valid JSON"]),
        ("a.csv", b"text\nhello\n", ["a.csv, row 0: ", "exactly one of"]),
        ("A.PARQUET", b"PAR0", ["A.PARQUET, row 0: ", "Parquet"]),
    ],
)
def test_a_broken_file_is_refused_by_name_and_row(
    tmp_path: Path, name: str, content: bytes, expected: list[str]
) -> None:
    if name.endswith("PARQUET"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    for part in expected:
        assert part in message
