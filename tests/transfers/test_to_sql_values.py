"""A value comes to a column as it is, or not at all."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.transfers.storing import Storing
from tests.databases import Database
from tests.transfers.rows import answered, written
from tests.transfers.test_to_sql import COLUMNS, letters, store


def why_not(database: Database, directory: Path, column: str, output: Any) -> str:
    """Store a value that a column does not take; return the reason."""
    database.run(f"CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label {column})")
    counts = store(written(directory, [answered(1, output)]), failed_table="letters")
    assert (counts["stored"], counts["not_storable"]) == (0, 1), database.rows("SELECT label FROM labels")
    return str(letters(database)[0][3])


def stored(database: Database, directory: Path, column: str, output: Any, shown: str = "label") -> Any:
    """Store a value; return what is in the table then."""
    database.run(f"CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label {column})")
    store(written(directory, [answered(1, output)]))
    [(found,)] = database.rows(f"SELECT {shown} FROM labels")
    return found


@pytest.mark.parametrize(
    ("column", "output", "reason"),
    [
        ("NUMERIC(5,2)", 1.239, "takes 2 decimals, not 3"),
        ("NUMERIC(5,2)", "1.239", "takes 2 decimals, not 3"),
        ("NUMERIC(5,2)", 1000, "takes 3 digits before the point"),
        ("NUMERIC(5,2)", "1_0", "which '1_0' is not"),
        ("NUMERIC(5,2)", " 1 ", "which ' 1 ' is not"),
        ("NUMERIC(5,2)", "٣", "is not"),
        ("DOUBLE PRECISION", "1e400", "which '1e400' is not"),
        ("TIME", "10:00:00+02:00", "takes no time with a zone"),
    ],
)
def test_nothing_is_cut_or_rounded(database: Database, tmp_path: Path, column: str, output: Any, reason: str) -> None:
    assert reason in why_not(database, tmp_path, column, output)


@pytest.mark.parametrize(
    ("column", "output", "reason"),
    [
        ("INTEGER[]", [1.5], "INTEGER, which 1.5 is not"),
        ("INTEGER[]", [[1], [True]], "INTEGER, which True is not"),
        ("VARCHAR(2)[]", ["ab", "abc"], "takes 2 characters, not 3"),
        ("NUMERIC(3,1)[]", [1.25], "takes 1 decimals, not 2"),
    ],
)
def test_nor_is_an_element_of_an_array(
    postgresql: Database, tmp_path: Path, column: str, output: Any, reason: str
) -> None:
    assert reason in why_not(postgresql, tmp_path, column, output)


@pytest.mark.parametrize(
    ("column", "output", "found"),
    [
        ("INTEGER[]", [[1, None], [2, 3]], "{{1,NULL},{2,3}}"),
        ("TEXT[]", ["a", {"b": [1]}, True], '{a,"{\\"b\\":[1]}",true}'),
        ("NUMERIC(5,2)[]", ["1.50", 2, 2.5], "{1.50,2.00,2.50}"),
        ("DOUBLE PRECISION[]", [1, "1e308"], "{1,1e+308}"),
        ("DATE[]", ["2026-11-20"], "{2026-11-20}"),
        ("BOOLEAN[]", [True, None], "{t,NULL}"),
        ("UUID[]", ["6ba7b8109dad11d180b400c04fd430c8"], "{6ba7b810-9dad-11d1-80b4-00c04fd430c8}"),
        ("JSONB[]", [{"a": 1}, "x"], '{"{\\"a\\": 1}","\\"x\\""}'),
        ("INTEGER[]", [], "{}"),
        ("TIMETZ", "10:00:00", "10:00:00+00"),
        ("TIMETZ", "10:00:00+02:00", "10:00:00+02"),
    ],
)
def test_what_fits_comes_as_it_is(postgresql: Database, tmp_path: Path, column: str, output: Any, found: str) -> None:
    assert stored(postgresql, tmp_path, column, output, "label::text") == found


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.decimals(-1000, 1000, places=3) | st.decimals(-100, 100, places=1), min_size=1, max_size=20))
def test_a_decimal_is_stored_exactly_or_not_at_all(
    postgresql: Database, tmp_path: Path, numbers: list[Decimal]
) -> None:
    postgresql.run(
        "DROP TABLE IF EXISTS labels, letters",
        "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label NUMERIC(5,2))",
    )
    outputs = [number if place % 2 else float(number) for place, number in enumerate(numbers)]
    rows = [answered(place, str(n) if isinstance(n, Decimal) else n) for place, n in enumerate(outputs)]
    store(written(tmp_path, rows), failed_table="letters")
    fit = {n: value for n, value in enumerate(numbers) if value == round(value, 2) and abs(value) < 1000}
    assert dict(postgresql.rows("SELECT review_id, label FROM labels")) == fit


@pytest.mark.parametrize("column", ["name", '"char"'])
def test_types_that_cut_text_are_refused(postgresql: Database, tmp_path: Path, column: str) -> None:
    postgresql.run(f"CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label {column})")
    with pytest.raises(InvalidInputError, match="columns: the column 'label' is of type name or \"char\""):
        store(written(tmp_path, []))


def test_a_moment_without_a_zone_is_in_utc_whatever_the_sessions_is(
    postgresql: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c timezone=Asia/Tokyo")
    epoch = "extract(epoch FROM label)::bigint"
    assert stored(postgresql, tmp_path, "TIMESTAMPTZ", "2026-01-01T00:00:00", epoch) == 1_767_225_600


class TestMariaDB:
    @pytest.mark.parametrize("output", ["1e308", 1e308, 5e-324, 0.1, 3])
    def test_a_float_is_that_float(self, mariadb: Database, tmp_path: Path, output: Any) -> None:
        assert stored(mariadb, tmp_path, "DOUBLE", output) == float(output)

    @pytest.mark.parametrize(
        "output",
        ["plain", "null", '{"a": 1}', "a\0b", {"a": [1, None]}, [1], 1.5, 0.1, 5e-324, True, -(2**63), 2**64 - 1],
    )
    def test_json_is_what_the_answer_is(self, mariadb: Database, tmp_path: Path, output: Any) -> None:
        assert json.loads(stored(mariadb, tmp_path, "JSON", output)) == output

    @pytest.mark.parametrize("output", [10**30, [{"a": 2**64}], {"a": -(2**63) - 1}])
    def test_and_is_no_rounded_number(self, mariadb: Database, tmp_path: Path, output: Any) -> None:
        if mariadb.is_mariadb:
            assert json.loads(stored(mariadb, tmp_path, "JSON", output)) == output
        else:
            assert "takes whole numbers from" in why_not(mariadb, tmp_path, "JSON", output)

    def test_a_vector_is_left_alone(self, mariadb: Database, tmp_path: Path) -> None:
        try:
            mariadb.run("CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label TEXT, embedding VECTOR(3))")
        except DBAPIError as error:
            pytest.skip(f"MySQL knows vectors from 9 on, MariaDB from 11.7: {error.orig}")
        manifest = written(tmp_path, [answered(1)])
        assert store(manifest)["stored"] == 1
        with pytest.raises(InvalidInputError, match=r"columns: .*'embedding' is of type VECTOR\(3\).*Leave it out"):
            store(manifest, columns={**COLUMNS, "embedding": "context.vector"})

    def test_text_with_another_check_is_text(self, mariadb: Database, tmp_path: Path) -> None:
        assert stored(mariadb, tmp_path, "LONGTEXT CHECK (label <> 'json_valid(`label`)')", "plain") == "plain"

    @pytest.mark.parametrize(("output", "found"), [("a", "a"), ("a,b", "a,b"), (["b", "a"], "a,b"), ("", "")])
    def test_a_set_has_some_of_its_members(self, mariadb: Database, tmp_path: Path, output: Any, found: str) -> None:
        assert stored(mariadb, tmp_path, "SET('a', 'b')", output, "CONCAT(label)") == found

    @pytest.mark.parametrize("output", ["a,c", ["c"], [1], {"a": 1}])
    def test_and_no_others(self, mariadb: Database, tmp_path: Path, output: Any) -> None:
        assert "takes some of a, b, not" in why_not(mariadb, tmp_path, "SET('a', 'b')", output)

    def test_whatever_zone_and_mode_the_server_is_set_up_with(self, mariadb: Database, tmp_path: Path) -> None:
        mariadb.run(
            "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label TIMESTAMP NULL, tiny TINYINT)",
        )
        lax = create_engine(
            mariadb.engine.url, connect_args={"init_command": "SET time_zone = '+05:00', sql_mode = ''"}
        )
        storing = Storing.prepare(
            lax,
            "labels",
            "review_id",
            {**COLUMNS, "tiny": "context.tiny"},
            insert_missing=True,
            failed_table="letters",
            failed_path=None,
        )
        moments = ["2026-01-01T00:00:00Z", "2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00"]
        rows = [answered(n, moment, tiny=n) for n, moment in enumerate(moments, 1)]
        rows.append(answered(4, moments[0], tiny=1000))
        counts = storing.store(written(tmp_path, rows), 1_000)
        lax.dispose()
        assert (counts["stored"], counts["not_storable"]) == (3, 1)
        assert mariadb.rows("SELECT UNIX_TIMESTAMP(label) FROM labels") == [(1_767_225_600,)] * 3

    def test_a_column_that_the_driver_cannot_name_is_refused(self, mariadb: Database, tmp_path: Path) -> None:
        mariadb.run(
            "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, `a%%b` TEXT)", "INSERT INTO labels VALUES (1, NULL)"
        )
        manifest = written(tmp_path, [answered(1)])
        columns = {"review_id": "context.id", "a%b": "output"}
        with pytest.raises(InvalidInputError, match=r"columns: .*cannot write to 'a%b'.*insert_missing=False"):
            store(manifest, columns=columns)
        assert store(manifest, columns=columns, insert_missing=False)["stored"] == 1
        assert mariadb.rows("SELECT `a%%b` FROM labels") == [("positive",)]
