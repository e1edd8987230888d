"""Answers of a job in tables of real databases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event

from airflow_provider_openai_batches.api.errors import InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.transfers.openai_batches_to_sql import OpenAIBatchResultsToSQLOperator
from airflow_provider_openai_batches.transfers.storing import Storing
from tests.databases import CONN_ID, Database, connect
from tests.transfers.rows import answered, failed, written

LABELS = "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label VARCHAR(20), note VARCHAR(20))"
COLUMNS = {"review_id": "context.id", "label": "output"}


def store(results: Any, **change: Any) -> dict[str, Any]:
    """Run the operator."""
    usual = {"task_id": "store", "sql_conn_id": CONN_ID, "table": "labels", "key": "review_id", "columns": COLUMNS}
    return OpenAIBatchResultsToSQLOperator(results=results, **usual | change).execute({})


def labels(database: Database) -> list[tuple[Any, ...]]:
    return database.rows("SELECT review_id, label, note FROM labels ORDER BY review_id")


def letters(database: Database) -> list[tuple[Any, ...]]:
    return database.rows("SELECT custom_id, status, error_code, error_message FROM letters ORDER BY custom_id")


def test_rows_are_added_and_changed_by_key_and_other_columns_left_alone(database: Database, tmp_path: Path) -> None:
    database.run(LABELS, "INSERT INTO labels VALUES (1, 'old', 'mine'), (9, 'old', 'mine')")
    manifest = written(tmp_path, [answered(1), answered(2, "negative ☕😀"), failed(3)])
    for _ in range(2):
        assert store(manifest) == {"table": "labels", "stored": 2, "failed": 1, "not_storable": 0}
        assert labels(database) == [(1, "positive", "mine"), (2, "negative ☕😀", None), (9, "old", "mine")]


def test_results_of_a_task_that_failed_are_found_by_their_path(database: Database, tmp_path: Path) -> None:
    database.run(LABELS)
    written(tmp_path, [answered(1)])
    assert store(str(tmp_path))["stored"] == 1
    with pytest.raises(InvalidInputError, match=f"results: there are none in {tmp_path}/other/results"):
        store(str(tmp_path / "other"))
    with pytest.raises(InvalidInputError, match=r"results: expected a job task's output \(job.output\)"):
        store(None)


def test_a_database_that_cannot_be_opened_is_told_with_its_connection(
    postgresql: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(postgresql, monkeypatch, schema="no_such_database")
    with pytest.raises(
        OpenAIBatchesError, match=f"the connection '{CONN_ID}' cannot be opened: .*no_such_database"
    ) as told:
        store(written(tmp_path, [answered(1)]))
    assert told.value.transient


def test_the_log_says_what_is_not_stored_and_where_it_is(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database.run(LABELS)
    manifest = written(tmp_path, [answered(1), answered(2, "x" * 30), failed(3)])
    store(manifest, failed_table="letters")
    told = (
        "labels: 1 rows are stored; 1 had no answer and 1 could not be stored, which are in letters, with the reasons."
    )
    assert told in capsys.readouterr().out


def test_several_columns_are_one_key(database: Database, tmp_path: Path) -> None:
    database.run("CREATE TABLE labels (a INTEGER, b INTEGER, label VARCHAR(20), UNIQUE (a, b))")
    manifest = written(tmp_path, [answered(1, b=1), answered(1, "negative", b=2)])
    columns = {"a": "context.id", "b": "context.b", "label": "output"}
    for _ in range(2):
        store(manifest, key=["b", "a"], columns=columns)
    assert database.rows("SELECT a, b, label FROM labels ORDER BY b") == [(1, 1, "positive"), (1, 2, "negative")]


def test_only_rows_that_are_there_can_be_changed(database: Database, tmp_path: Path) -> None:
    database.run(
        "CREATE TABLE reviews (id INTEGER PRIMARY KEY, review VARCHAR(20) NOT NULL, label VARCHAR(20))",
        "INSERT INTO reviews VALUES (1, 'Fine.', NULL), (2, 'Bad.', NULL)",
    )
    manifest = written(tmp_path, [answered(1), answered(5)])
    where: dict[str, Any] = {"table": "reviews", "key": "id", "columns": {"id": "context.id", "label": "output"}}
    with pytest.raises(InvalidInputError, match=r"reviews needs a value for 'review'.*insert_missing=False"):
        store(manifest, **where)
    store(manifest, **where, insert_missing=False, failed_table="letters")
    assert database.rows("SELECT * FROM reviews ORDER BY id") == [(1, "Fine.", "positive"), (2, "Bad.", None)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "lables"}, "table: there is no table 'lables'"),
        ({"columns": {"id": "context.id"}}, "columns: labels has no column 'id'; it has review_id, label, note"),
        ({"columns": {"review_id": "contxt.id"}}, "columns: 'review_id' is to be 'contxt.id', but a result row has"),
        ({"columns": {"review_id": "context..id"}}, "columns: 'review_id' is to be"),
        ({"columns": {}}, "columns: expected {column: path into the result row}"),
        (
            {"key": "label"},
            r"no primary key or unique constraint on \(label\).*It has: review_id.*ADD UNIQUE \(label\)",
        ),
        ({"key": "note"}, "key: 'note' is not among the columns to write"),
        (
            {"columns": {**COLUMNS, "note": "context.text"}},
            r"row 1 \('review-1'\) has no 'context.text': context has no 'text', it has id",
        ),
        (
            {"columns": {**COLUMNS, "note": "output.reason"}},
            r"row 1 \('review-1'\) has no 'output.reason': output has no 'reason', it is 'positive'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name_before_anything_is_written(
    database: Database, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    database.run(LABELS)
    with pytest.raises(InvalidInputError, match=message):
        store(written(tmp_path, [answered(1), answered(2)]), **change)
    assert labels(database) == []


def test_usage_of_a_row_that_used_nothing_is_null(database: Database, tmp_path: Path) -> None:
    database.run("CREATE TABLE spent (review_id INTEGER PRIMARY KEY, tokens INTEGER)")
    rows = [{**answered(1), "usage": {"total_tokens": 14}}, answered(2)]
    where: dict[str, Any] = {"table": "spent", "key": "review_id"}
    store(written(tmp_path, rows), **where, columns={"review_id": "context.id", "tokens": "usage.total_tokens"})
    assert database.rows("SELECT * FROM spent ORDER BY review_id") == [(1, 14), (2, None)]
    with pytest.raises(InvalidInputError, match=r"has no 'usage.tokens': usage has no 'tokens', it has total_tokens"):
        store(written(tmp_path, rows), **where, columns={"review_id": "context.id", "tokens": "usage.tokens"})


def test_another_unique_key_is_refused_where_it_would_change_a_strangers_row(mariadb: Database, tmp_path: Path) -> None:
    mariadb.run("CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label VARCHAR(20) UNIQUE)")
    with pytest.raises(InvalidInputError, match=r"labels is also unique by \(label\)"):
        store(written(tmp_path, [answered(1)]))


def test_other_databases_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, postgresql: Database) -> None:
    from airflow_provider_openai_batches.transfers.upsert import open_target

    monkeypatch.setattr(postgresql.engine.dialect, "name", "redshift")
    with pytest.raises(InvalidInputError, match=r"redshift is not among the databases.*read_results\(\)"):
        open_target(postgresql.engine, "labels", ["id"], ["id"])


class TestTypes:
    def test_values_come_to_the_columns_own_types(self, postgresql: Database, tmp_path: Path) -> None:
        postgresql.run(
            "CREATE TYPE mood AS ENUM ('good', 'bad')",
            """CREATE TABLE labels (
               id INTEGER PRIMARY KEY, price NUMERIC(9,2), at TIMESTAMPTZ, day DATE, uid UUID,
               whole JSONB, mood mood, score DOUBLE PRECISION, sure BOOLEAN, tags TEXT[], whole_text TEXT, none JSONB
            )""",
        )
        output = {"mood": "good", "score": 1, "sure": True, "tags": ["a", "b"], "none": None}
        context = {"price": "1.50", "at": "2026-11-20T02:00:00Z", "day": "2026-11-20"}
        uid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
        columns = {"id": "context.id", "whole": "output", "whole_text": "output"}
        columns |= {name: f"context.{name}" for name in ("price", "at", "day", "uid")}
        columns |= {name: f"output.{name}" for name in ("mood", "score", "sure", "tags", "none")}
        store(written(tmp_path, [answered(1, output, uid=uid, **context)]), key="id", columns=columns)
        [row] = postgresql.rows(
            "SELECT price::text, extract(epoch FROM at)::int, day::text, uid::text, whole->>'mood', mood::text, score, "
            "sure, tags, whole_text::json->>'score', none IS NULL FROM labels"
        )
        assert row == ("1.50", 1795140000, "2026-11-20", uid, "good", "good", 1.0, True, ["a", "b"], "1", True)

    def test_a_moment_without_a_zone_is_in_utc(self, server: Database, tmp_path: Path) -> None:
        kind = "TIMESTAMP" if server.kind == "postgresql" else "DATETIME"
        server.run(f"CREATE TABLE labels (id INTEGER PRIMARY KEY, at {kind})")
        moment = answered(1, at="2026-11-20T02:00:00+02:00")
        store(written(tmp_path, [moment]), key="id", columns={"id": "context.id", "at": "context.at"})
        [(found,)] = server.rows("SELECT at FROM labels")
        assert found.isoformat() == "2026-11-20T00:00:00"

    @pytest.mark.parametrize(
        ("output", "reason"),
        [
            ("x" * 21, r"'label' \(VARCHAR\(20\)\) takes 20 characters, not 21"),
            ({"long": "x" * 20}, r"'label' \(VARCHAR\(20\)\) takes 20 characters, not 31"),
        ],
    )
    def test_a_row_that_does_not_fit_is_named(
        self, database: Database, tmp_path: Path, output: Any, reason: str
    ) -> None:
        database.run(LABELS)
        manifest = written(tmp_path, [answered(1), answered(2, output)])
        with pytest.raises(InvalidInputError, match=rf"row 2 \('review-2'\) cannot be stored: {reason}.*failed_table"):
            store(manifest)
        assert labels(database) == []
        assert store(manifest, failed_table="letters")["not_storable"] == 1
        assert labels(database) == [(1, "positive", None)]
        assert letters(database)[0][:3] == ("review-2", "succeeded", "not_storable")

    @pytest.mark.parametrize(
        ("column", "output"),
        [
            ("INTEGER", "many"),
            ("INTEGER", 1.5),
            ("INTEGER", True),
            ("INTEGER", "1_000"),
            ("NUMERIC(9, 2)", "much"),
            ("BOOLEAN", "yes"),
            ("DATE", "tomorrow"),
            ("TIMESTAMP", 5),
            ("UUID", "none"),
            ("TEXT NOT NULL", None),
            ("TEXT", "a\0b"),
            ("TEXT[]", "a"),
            ("mood", "fair"),
        ],
    )
    def test_no_value_is_bent_to_fit(self, postgresql: Database, tmp_path: Path, column: str, output: Any) -> None:
        postgresql.run(
            "CREATE TYPE mood AS ENUM ('good', 'bad')", f"CREATE TABLE labels (id INTEGER PRIMARY KEY, x {column})"
        )
        counts = store(
            written(tmp_path, [answered(1, output)]),
            key="id",
            columns={"id": "context.id", "x": "output"},
            failed_table="letters",
        )
        assert (counts["stored"], counts["not_storable"]) == (0, 1)

    def test_many_rows_are_one_round_trip(self, mariadb: Database, tmp_path: Path) -> None:
        mariadb.run(LABELS)
        engine, inserts = create_engine(mariadb.engine.url), []
        to_letters: dict[str, Any] = {"insert_missing": True, "failed_table": "letters", "failed_path": None}
        storing = Storing.prepare(engine, "labels", "review_id", COLUMNS, **to_letters)

        @event.listens_for(engine, "commit")
        def count(connection: Connection) -> None:
            [(_, number)] = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Com_insert'")
            inserts.append(int(number))

        rows = [answered(number) if number % 2 else failed(number) for number in range(1_000)]
        assert storing.store(written(tmp_path, rows), 1_000)["stored"] == 500
        engine.dispose()
        assert inserts[-1] < 20

    def test_a_boolean_of_mysql_is_a_small_number(self, mariadb: Database, tmp_path: Path) -> None:
        mariadb.run("CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label BOOLEAN)")
        store(written(tmp_path, [answered(1, True), answered(2, False)]))
        assert mariadb.rows("SELECT label FROM labels ORDER BY review_id") == [(1,), (0,)]

    def test_text_longer_than_mysql_takes_is_no_trouble_to_others(self, mariadb: Database, tmp_path: Path) -> None:
        mariadb.run("CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label TEXT)")
        manifest = written(tmp_path, [answered(1, "é" * 40_000), answered(2, "é" * 32_000)])
        assert store(manifest, failed_table="letters")["stored"] == 1
        assert "takes 65,535 bytes, not 80,000" in letters(mariadb)[0][3]

    def test_a_column_that_cannot_be_written_is_refused_before(self, postgresql: Database, tmp_path: Path) -> None:
        postgresql.run("CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label BYTEA)")
        with pytest.raises(InvalidInputError, match="columns: the column 'label' is of type BYTEA"):
            store(written(tmp_path, []))


class TestDeadLetters:
    def test_a_row_that_failed_is_in_the_table_until_it_is_stored(self, database: Database, tmp_path: Path) -> None:
        database.run(LABELS)
        store(written(tmp_path, [answered(1), failed(2), failed(3)]), failed_table="letters")
        trouble = ("failed", "content_filter", "The answer was filtered.")
        assert letters(database) == [("review-2", *trouble), ("review-3", *trouble)]
        store(written(tmp_path, [answered(2), failed(3)]), failed_table="letters")
        assert letters(database) == [("review-3", *trouble)]
        [(target, attempts, batch_id, context)] = database.rows(
            "SELECT target, attempts, batch_id, context FROM letters"
        )
        assert (target, attempts, batch_id) == ("labels", 3, "batch_1")
        assert (json.loads(context) if isinstance(context, str) else context) == {"id": 3}

    def test_one_table_serves_several(self, database: Database, tmp_path: Path) -> None:
        database.run(LABELS, LABELS.replace("labels", "others"))
        store(written(tmp_path, [failed(1)]), failed_table="letters")
        store(written(tmp_path, [answered(1)]), failed_table="letters", table="others")
        assert len(letters(database)) == 1

    def test_ids_that_differ_by_case_are_two(self, database: Database, tmp_path: Path) -> None:
        database.run(LABELS)
        rows = [{**failed(number), "custom_id": name} for number, name in enumerate(("a", "A"))]
        store(written(tmp_path, rows), failed_table="letters")
        assert len(letters(database)) == 2

    def test_what_the_database_refuses_stops_no_other_row(self, database: Database, tmp_path: Path) -> None:
        database.run(
            "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label VARCHAR(20), CHECK (label <> 'negative'))"
        )
        manifest = written(
            tmp_path, [answered(number, "negative" if number == 2 else "positive") for number in (1, 2, 3)]
        )
        assert store(manifest, failed_table="letters")["stored"] == 2
        assert [row[:3] for row in letters(database)] == [("review-2", "succeeded", "not_storable")]

    def test_text_that_the_columns_character_set_lacks(self, mariadb: Database, tmp_path: Path) -> None:
        mariadb.run("CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label VARCHAR(20)) CHARACTER SET utf8mb3")
        assert store(written(tmp_path, [answered(1), answered(2, "😀")]), failed_table="letters")["stored"] == 1
        assert [row[:3] for row in letters(mariadb)] == [("review-2", "succeeded", "not_storable")]

    def test_in_a_file_they_are_those_of_the_last_run(self, database: Database, tmp_path: Path) -> None:
        database.run(LABELS)
        file = tmp_path / "letters.jsonl"
        store(written(tmp_path, [answered(1), failed(2)]), failed_path=str(file))
        [letter] = [json.loads(line) for line in file.read_text().splitlines()]
        assert letter == {
            "custom_id": "review-2",
            "status": "failed",
            "error_code": "content_filter",
            "error_message": "The answer was filtered.",
            "batch_id": "batch_1",
            "attempts": 3,
            "context": {"id": 2},
        }
        store(written(tmp_path, [answered(2)]), failed_path=str(file))
        assert not file.exists()

    def test_a_table_of_another_make_is_refused(self, database: Database, tmp_path: Path) -> None:
        database.run(LABELS)
        with pytest.raises(InvalidInputError, match="labels has no column 'target', 'custom_id'"):
            store(written(tmp_path, []), failed_table="labels")


@pytest.mark.timeout(300)
def test_killed_in_the_middle_and_run_again_equals_one_run(server: Database, tmp_path: Path) -> None:
    server.run(LABELS)
    rows = [failed(n) if n % 10 == 0 else answered(n, f"label {n}") for n in range(20_000)]
    manifest = written(tmp_path, rows)
    code = (
        "from tests.airflow import conftest; from tests.transfers.test_to_sql import store\n"
        f"store({manifest!r}, failed_table='letters', rows_per_transaction=100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=os.environ)
    count = 0
    while count < 1_000:
        assert process.poll() is None
        time.sleep(0.01)
        [(count,)] = server.rows("SELECT count(*) FROM labels")
    process.send_signal(signal.SIGKILL)
    process.wait()
    [(count,)] = server.rows("SELECT count(*) FROM labels")
    assert count < 18_000
    assert count % 90 == 0  # Whole transactions.
    store(manifest, failed_table="letters")
    assert labels(server) == [(n, f"label {n}", None) for n in range(20_000) if n % 10]
    assert len(letters(server)) == 2_000


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_memory_is_the_same_for_a_thousand_rows_and_fifty_thousand(kind: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(kind)
    peaks = []
    for rows in (1_000, 50_000):
        command = [sys.executable, "-m", "benchmarks.sql", "--store", kind, str(rows)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["rows"] == rows
        peaks.append(found["peak_rss_mb"])
    # Held in memory, they would be above 100 MB.
    assert peaks[1] < peaks[0] + 20
