"""Rows of real databases become requests."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
from airflow_provider_openai_batches.results import read_results
from airflow_provider_openai_batches.sql import SQLRequests
from tests.databases import CONN_ID, Database, connect, sqlite_database

NIGHT = pendulum.datetime(2026, 11, 20)
REVIEWS = (
    "CREATE TABLE reviews (id INTEGER PRIMARY KEY, language VARCHAR(2), review TEXT)",
    "INSERT INTO reviews VALUES (1, 'en', 'Just what I wanted.'), (2, 'de', 'Na ja, {id} ☕😀'), (3, NULL, NULL)",
)


def lines(source: Any) -> list[dict[str, Any]]:
    """Custom_id, prompt and context of all requests that a source makes."""
    found = []
    for request in read_requests(source, RequestTemplate(model="m")):
        body = json.loads(request.line)["body"]
        context = json.loads(request.context) if request.context else None
        found.append({"id": request.custom_id, "prompt": body["messages"][0]["content"], "context": context})
    return found


def test_a_row_becomes_a_prompt_and_its_columns_the_context(database: Database) -> None:
    database.run(*REVIEWS)
    source = SQLRequests(
        CONN_ID,
        "SELECT id, language, review FROM reviews WHERE review IS NOT NULL AND id <= :most ORDER BY id",
        prompt="{{json}} {language}: {review}",
        key="id",
        parameters={"most": 2},
    )
    assert lines(source) == [
        {
            "id": "1",
            "prompt": "{json} en: Just what I wanted.",
            "context": {"id": 1, "language": "en", "review": "Just what I wanted."},
        },
        {
            "id": "2",
            "prompt": "{json} de: Na ja, {id} ☕😀",
            "context": {"id": 2, "language": "de", "review": "Na ja, {id} ☕😀"},
        },
    ]


def test_without_a_prompt_columns_are_named_as_in_a_file(database: Database) -> None:
    database.run(*REVIEWS)
    messages = json.dumps([{"role": "user", "content": "Hello"}])
    query = f"SELECT 'a' AS custom_id, '{messages}' AS messages, id FROM reviews WHERE id = 1"
    assert lines(SQLRequests(CONN_ID, query.replace(":", r"\:"))) == [
        {"id": "a", "prompt": "Hello", "context": {"id": 1}}
    ]


def test_several_columns_are_one_key(server: Database) -> None:
    server.run(*REVIEWS)
    source = SQLRequests(
        CONN_ID, "SELECT * FROM reviews WHERE id < 3 ORDER BY id", prompt="{id}", key=["language", "id"]
    )
    assert [each["id"] for each in lines(source)] == ['["en",1]', '["de",2]']


def test_types_of_postgresql_become_text_as_those_of_parquet_do(postgresql: Database) -> None:
    query = """
        SELECT 1 AS id, 1.50::numeric AS price, '2026-11-20 02:00+01'::timestamptz AS at, '2026-11-20'::date AS day,
            '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid AS uid, '{"a": [1, null]}'::jsonb AS extra,
            ARRAY['x', 'y'] AS tags, true AS good
    """
    [found] = lines(SQLRequests(CONN_ID, query, prompt="{id}"))
    at = found["context"].pop("at")
    assert pendulum.parse(at) == pendulum.datetime(2026, 11, 20, 1)
    assert found["context"] == {
        "id": 1,
        "price": "1.50",
        "day": "2026-11-20",
        "uid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "extra": {"a": [1, None]},
        "tags": ["x", "y"],
        "good": True,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "language"}, "row 2: the key 'language' is NULL.*WHERE language IS NOT NULL"),
        ({"prompt": "{review}"}, "row 2: the column 'review' is NULL, and the prompt needs it"),
        ({"prompt": "{reviev}"}, "prompt: the query has no column 'reviev'; it has id, language, review"),
        ({"key": "number"}, "key: the query has no column 'number'; it has id, language, review"),
        ({"sql": "SELECT id, id FROM reviews"}, "sql: it selects id more than once. Rename one with AS"),
        ({"sql": "SELECT nothing FROM reviews"}, "sql: the database refuses the query: .*nothing"),
        ({"sql": "queries/reviews.sql"}, "sql: expected a query, got 'queries/reviews.sql'"),
        (
            {"sql": "SELECT * FROM reviews WHERE id = :id"},
            "parameters: the query names :id, but there is no such value",
        ),
        ({"parameters": {"id": 1}}, "parameters: the query does not name :id"),
        ({"sql": "SELECT 5 AS id, review FROM reviews WHERE id < 3", "key": "id"}, "row 1: custom_id '5' is also that"),
    ],
)
def test_what_cannot_work_is_told_with_place_and_remedy(server: Database, change: dict[str, Any], message: str) -> None:
    server.run(*REVIEWS)
    usual = {"conn_id": CONN_ID, "sql": "SELECT * FROM reviews ORDER BY id", "prompt": "{id}"}
    with pytest.raises(InvalidInputError, match=message):
        lines(SQLRequests(**usual | change))


@pytest.mark.parametrize(
    ("value", "shown"),
    [("'infinity'::timestamptz", "infinity"), ("'1066-10-14 BC'::date", "1066"), ("'infinity'::date", "infinity")],
)
def test_a_date_that_the_driver_cannot_read_is_told_and_not_shown(postgresql: Database, value: str, shown: str) -> None:
    postgresql.run(
        "CREATE TABLE days (id INTEGER, day TEXT)",
        f"INSERT INTO days SELECT n, CASE n WHEN 700 THEN ({value})::text ELSE '2026-11-20' END "
        "FROM generate_series(1, 800) n",
    )
    kind = value.partition("::")[2]
    query = f"SELECT id, CAST(day AS {kind}) AS day FROM days ORDER BY id"
    with pytest.raises(InvalidInputError, match=r"sql: the driver cannot read a value.*CAST") as raised:
        lines(SQLRequests(CONN_ID, query, prompt="{day}"))
    assert shown not in "".join(traceback.format_exception(raised.value))
    assert lines(SQLRequests(CONN_ID, "SELECT id, day FROM days WHERE id = 700", prompt="{day}"))


def test_text_in_another_encoding_is_told_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for sqlite in sqlite_database(tmp_path):
        connect(sqlite, monkeypatch)
        sqlite.run("CREATE TABLE reviews (review TEXT)", "INSERT INTO reviews VALUES (CAST(x'536563726574ff' AS TEXT))")
        with pytest.raises(InvalidInputError, match=r"cannot read a value.*text in another encoding") as raised:
            lines(SQLRequests(CONN_ID, "SELECT review FROM reviews", prompt="{review}"))
        assert "Secret" not in "".join(traceback.format_exception(raised.value))


def test_an_error_of_the_database_amidst_the_rows_is_its_own(postgresql: Database) -> None:
    query = "SELECT 1 / (700 - n) AS id FROM generate_series(1, 800) n"
    with pytest.raises(InvalidInputError, match=r"sql: the database refuses the query: .*division by zero"):
        lines(SQLRequests(CONN_ID, query, prompt="{id}"))


def test_another_kind_of_connection_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, reason in (("http", "is no SQL database"), ("oracle", "provider is not installed")):
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": kind, "host": "localhost"}))
        with pytest.raises(InvalidInputError, match=f"'other' is of type '{kind}'.*{reason}"):
            list(SQLRequests("other", "SELECT 1"))


def test_the_hooks_own_settings_hold(postgresql: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # They are no part of the URL that the hook gives to SQLAlchemy, so that an encrypted connection would be none.
    connect(postgresql, monkeypatch, extra=json.dumps({"application_name": "nightly labels"}))
    [found] = lines(SQLRequests(CONN_ID, "SELECT current_setting('application_name') AS prompt"))
    assert found["prompt"] == "nightly labels"


def test_an_extra_may_choose_another_driver(postgresql: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg2")
    connect(postgresql, monkeypatch, extra=json.dumps({"sqlalchemy_scheme": "postgresql+psycopg2"}))
    assert lines(SQLRequests(CONN_ID, "SELECT 'a' AS prompt"))[0]["prompt"] == "a"


def test_reading_changes_nothing(postgresql: Database) -> None:
    postgresql.run(*REVIEWS, "CREATE SEQUENCE seen")
    lines(SQLRequests(CONN_ID, "SELECT id, nextval('seen') FROM reviews", prompt="{id}"))
    locks = (
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{postgresql.connection['schema']}' AND state <> 'idle'"
    )
    assert postgresql.rows(locks) == [(1,)]  # this one


@pytest.mark.timeout(300)
@pytest.mark.parametrize("series", ["postgresql", "mariadb"])
def test_memory_is_the_same_for_a_thousand_rows_and_a_hundred_thousand(
    series: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.getfixturevalue(series)
    few, many = (peak_mb(series, rows) for rows in (1_000, 100_000))
    # Held in memory, they are above 200 MB.
    assert many < few + 40


def peak_mb(series: str, rows: int) -> float:
    """Peak memory of a process that reads rows of a kilobyte."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sql", "--read", series, str(rows)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == rows
    return float(found["peak_rss_mb"])


def reviews_dag(folder: Path, **change: Any) -> DAG:
    source = SQLRequests(
        CONN_ID,
        "SELECT id, review FROM reviews WHERE language = :language AND '{{ ds }}' < '2027-01-01'",
        prompt="{review}",
        key="id",
        parameters={"language": "{{ params.language }}"},
    )
    with DAG("sql_reviews", schedule=None, start_date=NIGHT, params={"language": "en"}) as dag:
        usual = {
            "task_id": "label",
            "model": "gpt-4o-mini",
            "poll_interval": 0.05,
            "output_path": f"{folder}/{{{{ run_id }}}}",
        }
        OpenAIBatchOperator(requests=source, **usual | change)
    return dag


@pytest.mark.airflow
@pytest.mark.usefixtures("connection")
class TestInADag:
    def test_the_query_is_rendered_for_each_run_and_the_rows_are_not(
        self, database: Database, run_dag: Callable[[DAG], Any], tmp_path: Path
    ) -> None:
        database.run(*REVIEWS, "UPDATE reviews SET review = '{{ run_id }}' WHERE id = 1")
        dag = reviews_dag(tmp_path)
        run = run_dag(dag)
        [ti] = run.get_task_instances()
        assert str(run.state) == "success"
        [row] = read_results(ti.xcom_pull(task_ids="label"))
        assert (row["custom_id"], row["context"]) == ("1", {"id": 1, "review": "{{ run_id }}"})
        # What was rendered for that run must not be what the next one finds.
        assert "{{ ds }}" in str(dag.get_task("label").requests.sql)

    def test_a_quiet_night_is_skipped_if_so_wished(
        self, database: Database, run_dag: Callable[[DAG], Any], tmp_path: Path, emulator: Emulator
    ) -> None:
        database.run(REVIEWS[0])
        for when_empty, state in (("skip", "skipped"), ("fail", "failed")):
            run = run_dag(reviews_dag(tmp_path / when_empty, when_empty=when_empty))
            assert [str(ti.state) for ti in run.get_task_instances()] == [state]
        assert emulator.batches() == []

    def test_the_same_file_gives_the_same_dag(self, tmp_path: Path) -> None:
        from airflow.serialization.serialized_objects import DagSerialization

        one, other = (json.dumps(DagSerialization.to_dict(reviews_dag(tmp_path)), default=str) for _ in range(2))
        assert one == other
        assert f"{CONN_ID}: SELECT id, review FROM reviews" in one
