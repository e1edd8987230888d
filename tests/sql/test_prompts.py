"""A prompt takes names of columns and nothing else."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.sources import RowError
from airflow_provider_openai_batches.sql.prompts import PromptTemplate


@given(text=st.text(), before=st.text(), after=st.text())
def test_text_of_a_row_is_never_looked_into(text: str, before: str, after: str) -> None:
    escaped = [part.replace("{", "{{").replace("}", "}}") for part in (before, after)]
    prompt = PromptTemplate(f"{escaped[0]}{{review}}{escaped[1]}")
    assert prompt.fill({"review": text}) == f"{before}{text}{after}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (True, "true"),
        (1.5, "1.5"),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.date(2026, 11, 20), "2026-11-20"),
        (datetime.datetime(2026, 11, 20, 2, tzinfo=datetime.UTC), "2026-11-20T02:00:00Z"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ({"a": [1, "b"]}, '{"a":[1,"b"]}'),
    ],
)
def test_what_is_no_text_stands_there_as_in_json(value: Any, text: str) -> None:
    assert PromptTemplate("{it}!").fill({"it": value}) == f"{text}!"


@pytest.mark.parametrize(
    "text",
    ["{a.b}", "{a[0]}", "{a!r}", "{a:>10}", "{}", "{0.x}", "{a.__class__}", "{a:{b}}", "{a", "a}", "", "no column"],
)
def test_anything_but_a_name_is_refused_when_the_dag_is_parsed(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^prompt: "):
        PromptTemplate(text)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInputError, match="the query has no column 'reviev'; it has id, review"):
        PromptTemplate("{reviev} {id}").check(["id", "review"])


def test_null_is_refused_with_the_remedy() -> None:
    with pytest.raises(RowError, match=r"'review' is NULL.*WHERE review IS NOT NULL.*COALESCE\(review, ''\)"):
        PromptTemplate("{review}").fill({"review": None})


def test_bytes_are_no_text() -> None:
    with pytest.raises(RowError, match="'review' is of type bytes"):
        PromptTemplate("{review}").fill({"review": b"a"})
