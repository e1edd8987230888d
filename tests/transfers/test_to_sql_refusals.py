"""A row that a database does not take is a dead letter, whatever the reason; a fault of anybody else is none."""

from __future__ import annotations

import json
import random
import string
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from airflow_provider_openai_batches.api.errors import InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.transfers.storing import Storing
from tests.databases import Database, connect, sqlite_database
from tests.transfers.rows import answered, failed, written
from tests.transfers.test_to_sql import COLUMNS, LABELS, labels, letters, store

SIGNAL = """CREATE TRIGGER no_bad BEFORE INSERT ON labels FOR EACH ROW
    IF NEW.label = 'bad' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not that one'; END IF"""
RAISE = """CREATE FUNCTION no_bad() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN IF NEW.label = 'bad' THEN RAISE EXCEPTION 'not that one'; END IF; RETURN NEW; END $$"""
LONG = "".join(random.Random(1).choices(string.ascii_letters, k=60_000))
IMPATIENT: dict[str, dict[str, Any]] = {
    "postgresql": {"options": "-c lock_timeout=100ms"},
    "mysql": {"init_command": "SET innodb_lock_wait_timeout = 0"},
    "sqlite": {"timeout": 0.1},
}


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    for database in sqlite_database(tmp_path):
        connect(database, monkeypatch)
        yield database


class TestTheRowsOwnFault:
    def good_and(self, database: Database, directory: Path, bad: Any, good: Any = "positive") -> str:
        """Store a row that can be and one that cannot; return why not."""
        rows = [answered(1, good), answered(2, bad), answered(3, good)]
        counts = store(written(directory, rows), failed_table="letters")
        assert (counts["stored"], counts["not_storable"]) == (2, 1)
        assert database.rows("SELECT review_id FROM labels ORDER BY 1") == [(1,), (3,)]
        [(custom_id, status, code, message)] = letters(database)
        assert (custom_id, status, code) == ("review-2", "succeeded", "not_storable")
        return str(message)

    @pytest.mark.parametrize(
        ("column", "good", "bad", "reason"),
        [
            ("TIMESTAMP NULL", "2026-11-20", "1950-01-01T00:00:00", "Incorrect datetime value"),
            ("TIMESTAMP NULL", "2026-11-20", "2107-01-01T00:00:00", "Incorrect datetime value"),
            ("INET6", "::1", "home", "Incorrect inet6 value"),
            ("POINT", None, "here", "Cannot get geometry object"),
            ("DECIMAL(20,2)", "1.5", "1e30", "18 digits before the point"),
        ],
    )
    def test_of_mariadb(self, mariadb: Database, tmp_path: Path, column: str, good: Any, bad: Any, reason: str) -> None:
        if column == "INET6" and not mariadb.is_mariadb:
            pytest.skip("only MariaDB has this type")
        mariadb.run(f"CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label {column})")
        assert reason in self.good_and(mariadb, tmp_path, bad, good)

    @pytest.mark.parametrize(
        ("column", "good", "bad", "reason"),
        [
            ("TEXT UNIQUE", None, LONG, "index row"),
            ("INTEGER[]", [1], [{"a": 1}], "has elements of type INTEGER, which a value of type dict is not"),
            ("INTEGER[]", [[1]], [[1], 2], "is not"),
            ("INTEGER[]", [2**31 - 1], [2**40], "out of range"),
            ("TEXT[]", ["a"], [["a"], ["b", "c"]], "malformed array literal"),
            ("BOOLEAN[]", [True], ["yes"], "has elements of type BOOLEAN, which 'yes' is not"),
            ("DATE[]", ["2026-11-20"], [1], "has elements of type DATE, which 1 is not"),
        ],
    )
    def test_of_postgresql(
        self, postgresql: Database, tmp_path: Path, column: str, good: Any, bad: Any, reason: str
    ) -> None:
        postgresql.run(f"CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label {column})")
        assert reason in self.good_and(postgresql, tmp_path, bad, good)

    def test_of_sqlite_an_integer_beyond_64_bits(self, sqlite: Database, tmp_path: Path) -> None:
        sqlite.run("CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label BIGINT)")
        assert "too large" in self.good_and(sqlite, tmp_path, 2**63, 2**63 - 1)

    def test_a_trigger_says_no(self, database: Database, tmp_path: Path) -> None:
        database.run(LABELS)
        database.run(
            *{
                "mysql": [SIGNAL],
                "postgresql": [
                    RAISE,
                    "CREATE TRIGGER no_bad BEFORE INSERT ON labels FOR EACH ROW EXECUTE FUNCTION no_bad()",
                ],
                "sqlite": [
                    "CREATE TRIGGER no_bad BEFORE INSERT ON labels WHEN NEW.label = 'bad' "
                    "BEGIN SELECT RAISE(ABORT, 'not that one'); END"
                ],
            }[database.kind]
        )
        assert "not that one" in self.good_and(database, tmp_path, "bad")

    def test_a_constraint_that_is_checked_at_the_commit(self, postgresql: Database, tmp_path: Path) -> None:
        postgresql.run(
            "CREATE TABLE moods (mood TEXT PRIMARY KEY)",
            "INSERT INTO moods VALUES ('positive')",
            "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, "
            "label TEXT REFERENCES moods DEFERRABLE INITIALLY DEFERRED)",
        )
        assert "violates foreign key" in self.good_and(postgresql, tmp_path, "sour")

    def test_rows_of_one_transaction_may_refer_to_each_other(self, postgresql: Database, tmp_path: Path) -> None:
        postgresql.run(
            "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, "
            "label INTEGER REFERENCES labels DEFERRABLE INITIALLY DEFERRED)"
        )
        assert store(written(tmp_path, [answered(1, 2), answered(2, 1)]))["stored"] == 2
        # Without deferring, and in no order of their keys.
        postgresql.run(
            "DROP TABLE labels", "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label INTEGER REFERENCES labels)"
        )
        assert store(written(tmp_path, [answered(2, None), answered(1, 2)]))["stored"] == 2

    def test_without_a_place_for_letters_nothing_of_its_transaction_is_stored(
        self, database: Database, tmp_path: Path
    ) -> None:
        database.run("CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label VARCHAR(20), CHECK (label <> 'bad'))")
        with pytest.raises(InvalidInputError, match=r"(?s)row 2 \('review-2'\) cannot be stored: .*failed_table"):
            store(written(tmp_path, [answered(1), answered(2, "bad")]))
        assert database.rows("SELECT * FROM labels") == []


class TestOthersFault:
    def test_what_would_hold_for_all_rows(self, postgresql: Database, tmp_path: Path) -> None:
        postgresql.run(
            LABELS,
            "CREATE TABLE log (review_id INTEGER)",
            "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO no_such_log VALUES (NEW.review_id); RETURN NEW; END $$",
            "CREATE TRIGGER log BEFORE INSERT ON labels FOR EACH ROW EXECUTE FUNCTION log()",
        )
        with pytest.raises(OpenAIBatchesError, match=r"Rows 1 to 1 could not be written to labels: .*no_such_log"):
            store(written(tmp_path, [answered(1)]), failed_table="letters")
        assert letters(postgresql) == []

    def test_a_lock(self, database: Database, tmp_path: Path) -> None:
        """It fails the task, whose next attempt may find the row free."""
        database.run(LABELS, "INSERT INTO labels VALUES (1, 'old', NULL)")
        manifest = written(tmp_path, [answered(1), answered(2)])
        engine = create_engine(database.engine.url, connect_args=IMPATIENT[database.kind])
        to_letters: dict[str, Any] = {"insert_missing": True, "failed_table": "letters", "failed_path": None}
        storing = Storing.prepare(engine, "labels", "review_id", COLUMNS, **to_letters)
        with database.engine.connect() as other:
            other.exec_driver_sql("UPDATE labels SET label = 'locked' WHERE review_id = 1")
            with pytest.raises(
                OpenAIBatchesError, match=r"Rows 1 to 2 could not be written to labels: .*([Ll]ock|1205)"
            ):
                storing.store(manifest, 1_000)
        assert letters(database) == []
        assert storing.store(manifest, 1_000)["stored"] == 2
        engine.dispose()


class TestKeys:
    def test_null_is_no_key(self, database: Database, tmp_path: Path) -> None:
        database.run("CREATE TABLE labels (a INTEGER, b INTEGER, label VARCHAR(20), UNIQUE (a, b))")
        columns = {"a": "context.id", "b": "context.b", "label": "output"}
        manifest = written(tmp_path, [answered(1, b=None), answered(2, b=1)])
        for _ in range(2):
            counts = store(manifest, key=["a", "b"], columns=columns, failed_table="letters")
            assert (counts["stored"], counts["not_storable"]) == (1, 1)
        assert database.rows("SELECT a, b FROM labels") == [(2, 1)]
        assert "'b' is NULL, and the key" in letters(database)[0][3]

    def test_a_row_that_is_not_there_to_be_changed_is_a_dead_letter_until_it_is(
        self, database: Database, tmp_path: Path
    ) -> None:
        database.run(LABELS, "INSERT INTO labels VALUES (1, NULL, NULL), (3, 'positive', NULL)")
        manifest = written(tmp_path, [answered(number) for number in (1, 2, 3)])
        for _ in range(2):
            counts = store(manifest, insert_missing=False, failed_table="letters")
            assert (counts["stored"], counts["not_storable"]) == (2, 1)
            assert [row[0] for row in letters(database)] == ["review-2"]
        assert letters(database)[0][3] == "there is no row with this key"
        assert labels(database) == [(1, "positive", None), (3, "positive", None)]
        database.run("INSERT INTO labels VALUES (2, NULL, NULL)")
        assert store(manifest, insert_missing=False, failed_table="letters")["stored"] == 3
        assert letters(database) == []

    def test_whether_a_row_is_there_is_for_the_database_to_say(self, mariadb: Database, tmp_path: Path) -> None:
        mariadb.run(
            "CREATE TABLE labels (name VARCHAR(20), price DECIMAL(5,2), label VARCHAR(20), PRIMARY KEY (name, price))",
            "INSERT INTO labels VALUES ('Tea', 1.50, NULL), ('Pot', 9, NULL)",
        )
        rows = [
            answered(1, name="tea", price=1.5),
            answered(2, name="Pot", price="9.0"),
            answered(3, name="Cup", price=1),
        ]
        counts = store(
            written(tmp_path, rows),
            key=["name", "price"],
            columns={"name": "context.name", "price": "context.price", "label": "output"},
            insert_missing=False,
            failed_table="letters",
        )
        assert (counts["stored"], counts["not_storable"]) == (2, 1)
        assert mariadb.rows("SELECT label FROM labels") == [("positive",)] * 2

    def test_among_rows_to_be_changed_one_may_be_refused(self, database: Database, tmp_path: Path) -> None:
        database.run(
            "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label VARCHAR(20), CHECK (label <> 'bad'))",
            "INSERT INTO labels VALUES (1, NULL), (2, NULL)",
        )
        manifest = written(tmp_path, [answered(1), answered(2, "bad"), answered(3), answered(2**62)])
        counts = store(manifest, insert_missing=False, failed_table="letters")
        assert (counts["stored"], counts["not_storable"]) == (1, 3)
        assert database.rows("SELECT review_id, label FROM labels ORDER BY 1") == [(1, "positive"), (2, None)]

    def test_of_two_answers_with_one_key_the_later_stays(self, database: Database, tmp_path: Path) -> None:
        database.run("CREATE TABLE labels (name VARCHAR(20) PRIMARY KEY, label VARCHAR(20))")
        names = ["b", "a", "A", "a", "A" if database.kind == "mysql" else "a", "b"]
        rows = [answered(number, f"{number}", name=name) for number, name in enumerate(names)]
        store(written(tmp_path, rows), key="name", columns={"name": "context.name", "label": "output"})
        found = {str(name).lower(): label for name, label in database.rows("SELECT name, label FROM labels ORDER BY 1")}
        assert (found["a"], found["b"]) == ("4", "5")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"key": ["review_id", "review_id"]}, "key: it names 'review_id' more than once"),
            ({"key": []}, "key: expected a column, or a list of columns"),
            ({"key": None, "insert_missing": False}, "key: expected a column"),
            ({"key": 5}, "key: expected a column"),
            ({"key": [5]}, "key: expected a column"),
            ({"table": None}, "table: expected table or schema.table, got None"),
            ({"table": "a\0b"}, "table: .* Take it out"),
            ({"failed_table": " "}, "failed_table: expected table or schema.table, got ' '"),
            ({"failed_table": "\ud800"}, "failed_table: .* Take it out"),
            ({"failed_path": "/"}, "failed_path: / is a directory"),
            ({"failed_path": "a\0b"}, "failed_path: .* Take it out"),
        ],
    )
    def test_what_is_no_key_or_table_is_refused(
        self, database: Database, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        database.run(LABELS, "INSERT INTO labels VALUES (1, 'old', NULL)")
        with pytest.raises(InvalidInputError, match=message):
            store(written(tmp_path, [answered(1)]), **change)
        assert labels(database) == [(1, "old", None)]


class TestLetters:
    def test_ids_that_postgresql_cannot_hold_stop_no_row(self, database: Database, tmp_path: Path) -> None:
        database.run(LABELS)
        odd = {"custom_id": "a\0b"}
        store(written(tmp_path, [answered(1), {**failed(2), **odd}]), failed_table="letters")
        assert [row[0] for row in letters(database)] == ["a\N{REPLACEMENT CHARACTER}b"]
        store(written(tmp_path, [answered(1), {**answered(2), **odd}]), failed_table="letters")
        assert letters(database) == []
        assert len(labels(database)) == 2

    def test_ids_that_differ_by_a_space_at_the_end_are_two(self, database: Database, tmp_path: Path) -> None:
        database.run(LABELS)
        rows = [{**failed(number), "custom_id": name} for number, name in enumerate(("a", "a ", "A"))]
        store(written(tmp_path, rows), failed_table="letters")
        assert sorted(row[0] for row in letters(database)) == ["A", "a", "a "]

    def test_a_table_that_does_not_take_a_letter_is_named(self, database: Database, tmp_path: Path) -> None:
        database.run(LABELS)
        database.run(
            "CREATE TABLE letters (target VARCHAR(20), custom_id VARCHAR(20), status VARCHAR(3), error_code TEXT, "
            "error_message VARCHAR(99), batch_id VARCHAR(20), attempts INTEGER, context VARCHAR(99), "
            "PRIMARY KEY (target, custom_id))"
        )
        with pytest.raises(InvalidInputError, match=r"failed_table: letters does not take .*'review-1'.*'status'"):
            store(written(tmp_path, [failed(1), answered(2)]), failed_table="letters")
        # Nothing of that transaction is there.
        assert labels(database) == []

    @pytest.mark.timeout(120)
    def test_several_tasks_begin_at_once_and_write_the_same_rows(self, server: Database, tmp_path: Path) -> None:
        """In orders of their own, with letters in a table that none has made yet."""
        server.run(LABELS)
        rows = [answered(number) if number % 3 else failed(number) for number in range(1, 2_000)]
        orders = [rows, rows[::-1], random.Random(1).sample(rows, len(rows)), random.Random(2).sample(rows, len(rows))]
        manifests = [written(tmp_path / str(number), order) for number, order in enumerate(orders)]
        begin, found = threading.Barrier(len(manifests)), []

        def run(manifest: dict[str, Any]) -> None:
            begin.wait()
            try:
                found.append(store(manifest, failed_table="letters")["stored"])
            except Exception as error:  # noqa: BLE001
                found.append(error)

        threads = [threading.Thread(target=run, args=(manifest,)) for manifest in manifests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [1_333] * len(manifests)
        assert len(letters(server)) == 666


def test_json_of_a_letter_is_json(database: Database, tmp_path: Path) -> None:
    database.run(LABELS)
    context = {"note": "a\0b", "counts": [2**64 - 1, 2**64, True], "share": 0.1}
    store(written(tmp_path, [failed(1, **context)]), failed_table="letters")
    [(found,)] = database.rows("SELECT context FROM letters")
    found = json.loads(found) if isinstance(found, str) else found
    # MySQL would round what has more than 64 bits.
    assert found == {"id": 1, **context, "counts": [2**64 - 1, str(2**64), True]}
