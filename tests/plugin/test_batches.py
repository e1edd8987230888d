"""The list of batches, one batch, and what can be done to it."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_openai_batches.api.listing import PAGE_SIZE
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.plugin import batches
from tests.airflow.conftest import connection_json
from tests.conftest import API_KEY
from tests.plugin.auth import DAG, OTHER_DAG
from tests.plugin.conftest import CONN_ID, Browser, until

Browse = Callable[[str | None], Browser]
Buy = Callable[..., Batch]

CONN = {"conn_id": CONN_ID}
LISTING = ("GET", "/v1/batches")
FILE = ("GET", "/v1/files/{file_id}")


@pytest.fixture
def page(browse: Browse) -> Browser:
    """An admin's."""
    return browse("admin")


def listed(page: Browser, **query: Any) -> list[dict[str, Any]]:
    answer = page.get("/api/batches", **CONN, **query)
    assert answer.status_code == 200, answer.text
    batches: list[dict[str, Any]] = answer.json()["batches"]
    return batches


class TestBatch:
    def test_as_it_is_shown(self, page: Browser, buy: Buy, emulator: Emulator, connection: Any) -> None:
        connection(extra=json.dumps({"prices": {"gpt-4o-mini": {"input": 10, "output": 100}}}))
        job = {"airflow_job": "j1", "airflow_shard": "2", "airflow_round": "3", "airflow_map_index": "4"}
        batch = buy(DAG, colour="blue", **job)
        emulator.advance(500)
        (shown,) = listed(page)
        at = shown["created_at"]
        assert shown == {
            "id": batch.id,
            "status": "completed",
            "endpoint": "/v1/chat/completions",
            "model": "gpt-4o-mini",
            "made_by": {
                "dag_id": DAG,
                "run_id": "manual__2026-01-01T00:00:00+00:00",
                "task_id": "label",
                "map_index": 4,
                "url": f"/dags/{DAG}/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00/tasks/label/mapped/4",
            },
            "job": {"job_id": "j1", "shard": 2, "round": 3},
            "counts": {"total": 3, "completed": 3, "failed": 0},
            "created_at": at,
            "in_progress_at": at + 3,
            "finalizing_at": at + 123,
            "ended_at": at + 125,
            "expires_at": at + 86_400,
            "eta_s": None,
            "at_risk": False,
            "usage": {"input_tokens": 6, "cached_input_tokens": 0, "output_tokens": 42, "reasoning_tokens": 0},
            "cost_usd": pytest.approx((6 * 10 + 42 * 100) / 1e6),
            "metadata": {"colour": "blue"},
            "dashboard_url": None,
            "can_act": True,
        }

    def test_made_outside_airflow(self, page: Browser, buy: Buy) -> None:
        buy(None, colour="blue")
        (shown,) = listed(page)
        assert (shown["made_by"], shown["job"], shown["cost_usd"]) == (None, None, None)

    def test_time_left_follows_from_the_rate(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        begun = int(time.time()) - 600
        show(emulator, "in_progress", in_progress_at=begun, counts=(100, 20, 5))
        buy()
        (shown,) = listed(page)
        assert shown["eta_s"] == pytest.approx(600 / 25 * 75, abs=15)
        assert shown["at_risk"] is False

    @pytest.mark.parametrize(
        ("status", "expires_in", "counts", "at_risk"),
        [
            ("in_progress", 3 * 3600, (100, 50, 0), False),
            ("in_progress", 1 * 3600, (100, 50, 0), True),  # its day is nearly over
            ("in_progress", 10 * 3600, (1000, 1, 0), True),  # too slow
            ("validating", 1 * 3600, (0, 0, 0), True),
            ("finalizing", 1 * 3600, (100, 100, 0), False),
            ("cancelling", 1 * 3600, (100, 50, 0), False),
            ("completed", -3600, (100, 100, 0), False),
        ],
    )
    def test_at_risk(
        self,
        status: str,
        expires_in: int,
        counts: tuple[int, int, int],
        at_risk: bool,
        page: Browser,
        buy: Buy,
        emulator: Emulator,
    ) -> None:
        now = int(time.time())
        show(emulator, status, in_progress_at=now - 600, expires_at=now + expires_in, counts=counts)
        buy()
        assert listed(page)[0]["at_risk"] is at_risk

    def test_the_dashboard_is_openais_only(self, page: Browser) -> None:
        from airflow_provider_openai_batches.plugin.account import Account, account

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIRFLOW_CONN_REAL", json.dumps({"conn_type": "openai_batches", "password": "sk-x"}))
            assert Account("real").dashboard_url("batch_1/..") == "https://platform.openai.com/batches/batch_1%2F.."
        assert account(CONN_ID).dashboard_url("batch_1") is None


def show(emulator: Emulator, status: str, *, counts: tuple[int, int, int], **times: int) -> None:
    """Let every batch appear in a certain state."""
    total, completed, failed = counts
    patch = {
        "status": status,
        **times,
        "request_counts": {"total": total, "completed": completed, "failed": failed},
    }
    emulator.add_fault({"on": {"method": "GET", "path": "/batches"}, "do": {"set": patch}, "times": None})


class TestFilters:
    @pytest.fixture
    def batches(self, buy: Buy, emulator: Emulator) -> dict[str, str]:
        done = buy(DAG, airflow_task_id="embed")
        emulator.advance(500)
        made = {"done": done, "going": buy(DAG, note="Straße 7"), "theirs": buy(OTHER_DAG), "outside": buy(None)}
        return {batch.id: name for name, batch in made.items()}

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ({}, "outside theirs going done"),
            ({"dag_id": DAG}, "going done"),
            ({"dag_id": "nothing"}, ""),
            ({"status": "completed"}, "done"),
            ({"status": ["completed", "validating"]}, "outside theirs going done"),
            ({"status": "cancelled"}, ""),
            ({"status": ""}, "outside theirs going done"),
            ({"text": "STRASSE"}, "going"),
            ({"text": "embed"}, "done"),
            ({"text": OTHER_DAG}, "theirs"),
            ({"text": "gpt-4o"}, "done"),  # the service tells the model at the end
            ({"text": "chat/completions", "dag_id": DAG, "status": "validating"}, "going"),
            ({"text": "' OR 1=1 --"}, ""),
        ],
    )
    def test_filter(self, query: dict[str, Any], found: str, page: Browser, batches: dict[str, str]) -> None:
        assert [batches[each["id"]] for each in listed(page, **query)] == found.split()

    def test_by_id(self, page: Browser, batches: dict[str, str]) -> None:
        wanted = next(iter(batches))
        assert [each["id"] for each in listed(page, text=wanted[-8:])] == [wanted]

    def test_nobody_finds_what_they_may_not_see(self, browse: Browse, batches: dict[str, str]) -> None:
        assert listed(browse("reader"), text=OTHER_DAG) == []
        assert listed(browse("reader"), dag_id=OTHER_DAG) == []


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 101},
        {"limit": "many"},
        {"cursor": "a b"},
        {"cursor": "x" * 501},
        {"conn_id": ""},
        {"conn_id": "a\x00b"},
        {"conn_id": "x" * 251},
        {"text": "x" * 501},
    ],
)
def test_a_request_that_makes_no_sense(query: dict[str, Any], page: Browser) -> None:
    answer = page.get("/api/batches", **{**CONN, **query})
    assert (answer.status_code, answer.json()["detail"]["code"]) == (400, "bad_request")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with filled(tmp_path_factory.mktemp("ten-thousand"), 10_000) as emulator:
        yield emulator


@contextlib.contextmanager
def filled(directory: Path, number_of_batches: int) -> Iterator[Emulator]:
    """Run an emulator that has had many batches, half of them of a DAG that few may see."""
    from airflow_provider_openai_batches.emulator.store import Store, StoredBatch

    store = Store(directory)
    with store.transaction():
        for number in range(number_of_batches):
            needle = {"needle": "here"} if number == 50 else {}
            dag = {"airflow_dag_id": DAG if number % 2 else OTHER_DAG, "airflow_task_id": f"t{number}"}
            store.add_batch(
                StoredBatch(
                    id=f"batch_{number:05d}",
                    endpoint="/v1/chat/completions",
                    input_file_id="file-x",
                    completion_window="24h",
                    created_at=1_700_000_000 + number,
                    expires_at=1_700_086_400 + number,
                    metadata=dag | needle,
                    born=0.0,
                    since=0.0,
                    status="completed",
                )
            )
    store.close()
    with Emulator(directory, api_key=API_KEY, speed=0) as emulator:
        yield emulator


class TestTenThousand:
    """One request costs a few calls and a few hundred batches, however many there are."""

    @pytest.fixture
    def look(self, browse: Browse, many: Emulator, monkeypatch: pytest.MonkeyPatch, dags: None) -> Callable[..., Any]:
        monkeypatch.setenv("AIRFLOW_CONN_MANY", connection_json(many))
        return lambda user="admin", **query: browse(user).get("/api/batches", conn_id="many", **query).json()

    def test_first_page_is_one_call(self, look: Any, many: Emulator) -> None:
        before = many.count(*LISTING)
        answer = look(limit=25)
        assert [each["id"] for each in answer["batches"]] == [f"batch_{number:05d}" for number in range(9999, 9974, -1)]
        assert answer["scanned"] == 25
        assert answer["next_cursor"]
        assert many.count(*LISTING) == before + 1

    def test_a_search_is_bounded_and_goes_on(self, look: Any, many: Emulator) -> None:
        cursor, requests, found = None, 0, []
        before = many.count(*LISTING)
        while True:
            answer = look(text="HERE", **({"cursor": cursor} if cursor else {}))
            requests += 1
            assert answer["scanned"] <= 500
            found += answer["batches"]
            cursor = answer["next_cursor"]
            if cursor is None:
                break
        assert [each["id"] for each in found] == ["batch_00050"]
        assert requests == 21  # the last one finds that nothing is left
        assert many.count(*LISTING) - before == 101

    def test_pages_join_without_gap_or_overlap(self, look: Any) -> None:
        seen: list[str] = []
        cursor = None
        for limit in (1, 99, 100, 100, 37, 64):
            answer = look("reader", limit=limit, **({"cursor": cursor} if cursor else {}))
            assert len(answer["batches"]) == limit
            seen += [each["id"] for each in answer["batches"]]
            cursor = answer["next_cursor"]
        assert seen == [f"batch_{number:05d}" for number in range(9999, 9999 - 2 * len(seen), -2)]

    def test_a_search_that_is_repeated_makes_no_call(self, look: Any, many: Emulator) -> None:
        before = many.count(*LISTING)
        first = look(text="HERE")
        assert many.count(*LISTING) - before == 5, "the newest 500 and no more"
        for user in ("admin", "reader"):
            again = look(user, text="HERE")
            assert again["batches"] == first["batches"]
        assert many.count(*LISTING) - before <= 10, "five more if this machine took two seconds for it"

    @pytest.mark.parametrize(
        "query", [{}, {"limit": 100}, {"text": "nothing has this"}, {"dag_id": DAG}, {"status": ["failed"]}]
    )
    def test_work_does_not_grow_with_their_number(
        self, query: dict[str, Any], look: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Counted in function calls of ours: they are the same however busy the machine is."""
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        from airflow_provider_openai_batches.plugin.access import Caller, Scope
        from airflow_provider_openai_batches.plugin.batches import list_batches

        def calls(conn_id: str) -> int:
            counted = 0

            def count(frame: Any, event: str, arg: object) -> None:
                nonlocal counted
                counted += event == "call" and "/airflow_provider_openai_batches/" in frame.f_code.co_filename

            scope = Scope(Caller(SimpleAuthManagerUser(username="admin", role="admin")), conn_id)
            sys.setprofile(count)
            try:
                list_batches(scope, **query)
            finally:
                sys.setprofile(None)
            return counted

        look(limit=1)  # for the settings, and what is imported once
        with filled(tmp_path, 600) as few:
            monkeypatch.setenv("AIRFLOW_CONN_FEW", connection_json(few))
            of_few = calls("few")
        assert 100 < calls("many") <= 1.02 * of_few


class TestCursor:
    """Where a page ends may be a batch that its reader may not see: neither its id nor how many there are is told."""

    def test_it_shows_no_id_and_counts_what_is_seen(
        self, browse: Browse, many: Emulator, monkeypatch: pytest.MonkeyPatch, dags: None
    ) -> None:
        import base64

        monkeypatch.setenv("AIRFLOW_CONN_MANY", connection_json(many))
        hidden = [f"batch_{number:05d}" for number in range(0, 10_000, 2)]
        cursors, cursor = [], None
        for query in ({"limit": 7}, {"limit": 100}, {"text": "HERE"}, {"dag_id": OTHER_DAG}):
            more = {"cursor": cursor} if cursor else {}
            answer = browse("reader").get("/api/batches", conn_id="many", **query, **more)
            assert not any(batch_id in answer.text for batch_id in hidden)
            cursor = answer.json()["next_cursor"]
            cursors.append(cursor)
            looked_at = {7: 7, 100: 100}.get(query.get("limit", 0), 250)
            assert answer.json()["scanned"] == looked_at, "of 500, every second is of a DAG that this user may not see"
        for each in cursors:
            decoded = base64.urlsafe_b64decode(each)
            assert not any(batch_id.encode() in decoded for batch_id in hidden)
        assert len({len(each) for each in cursors}) == 1

    @pytest.mark.parametrize("cursor", ["batch_1", "x", "gAAAA", "A" * 140])
    def test_one_that_nobody_made(self, cursor: str, page: Browser, buy: Buy) -> None:
        buy()
        answer = page.get("/api/batches", **CONN, cursor=cursor)
        assert (answer.status_code, answer.json()["detail"]["code"]) == (400, "bad_cursor")

    def test_every_api_server_reads_it_until_the_key_changes(self) -> None:
        from airflow_provider_openai_batches.plugin.cursors import Cursors
        from airflow_provider_openai_batches.plugin.errors import PageError

        cursor = Cursors("sk-1").seal("batch_1")
        assert Cursors("sk-1").open(cursor) == "batch_1"
        with pytest.raises(PageError):
            Cursors("sk-2").open(cursor)
        changed = cursor[:-6] + ("AAAA" if cursor[-6:-2] != "AAAA" else "BBBB") + cursor[-2:]
        with pytest.raises(PageError):
            Cursors("sk-1").open(changed)


class TestSharing:
    def test_fifty_browsers_make_one_call(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        buy()
        before = emulator.count(*LISTING)
        with ThreadPoolExecutor(8) as browsers:
            answers = list(browsers.map(lambda _: page.get("/api/batches", **CONN), range(50)))
        assert {answer.status_code for answer in answers} == {200}
        # Two at most: the answer is good for two seconds, and this machine may be slow.
        assert emulator.count(*LISTING) - before <= 2

    def test_what_is_shared_is_still_seen_only_by_those_who_may(self, browse: Browse, buy: Buy) -> None:
        buy(OTHER_DAG)
        assert len(listed(browse("admin"))) == 1
        assert listed(browse("reader")) == []

    def test_after_an_action_the_list_is_new(self, page: Browser, buy: Buy) -> None:
        batch = buy()
        listed(page)
        page.post(f"/api/batches/{batch.id}/cancel", **CONN)
        assert listed(page)[0]["status"] == "cancelling"

    def test_a_service_that_is_down_is_asked_once_for_all(self, page: Browser, emulator: Emulator) -> None:
        down(emulator, {"status": 503, "body": {"error": {"message": "overloaded"}}})
        answers = [page.get("/api/batches", **CONN) for _ in range(5)]
        assert {(each.status_code, each.json()["detail"]["code"]) for each in answers} == {(502, "service_down")}
        assert emulator.count(*LISTING) <= 2

    def test_a_hanging_service_holds_few_threads(self, page: Browser, emulator: Emulator) -> None:
        from airflow_provider_openai_batches.plugin.account import account

        home = account(CONN_ID)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("airflow_provider_openai_batches.plugin.account._PATIENCE_S", 0.01)
            for _ in range(8):
                home._callers.acquire()
            answer = page.get("/api/batches", **CONN)
            for _ in range(8):
                home._callers.release()
        assert (answer.status_code, answer.json()["detail"]["code"]) == (503, "busy")
        assert page.get("/api/batches", **CONN).status_code == 200

    def test_nor_more_when_its_connection_is_read_anew(
        self, page: Browser, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow_provider_openai_batches.plugin import account

        monkeypatch.setattr(account, "_PATIENCE_S", 0.01)
        down(emulator, {"delay": 5})
        home = account.account(CONN_ID)
        with ThreadPoolExecutor(8) as browsers:
            waiting = [browsers.submit(page.get, "/api/batches", **CONN) for _ in range(8)]
            until(lambda: home._callers._value == 0)
            account.forget_all()  # As after ten seconds; a service that drips may take longer.
            statuses = [page.get("/api/batches", **CONN).status_code for _ in range(3)]
            assert statuses == [503, 503, 503]
            assert not any(each.done() for each in waiting), "or the test shows nothing"
            assert {each.result(60).status_code for each in waiting} == {200}

    def test_what_bounds_callers_is_gone_with_the_last_account(self, page: Browser) -> None:
        from airflow_provider_openai_batches.plugin import account

        page.get("/api/batches", **CONN)
        assert list(account._callers) == [CONN_ID]
        account.forget_all()
        gc.collect()
        assert list(account._callers) == []


def down(emulator: Emulator, do: dict[str, Any]) -> None:
    emulator.add_fault({"on": {"path": "**"}, "do": do, "times": None})


class TestErrors:
    @pytest.mark.parametrize(
        ("do", "status", "code"),
        [
            ({"status": 401, "body": {"error": {"message": "Incorrect API key"}}}, 502, "unauthorized_key"),
            ({"status": 403, "body": {"error": {"message": "no"}}}, 502, "forbidden_key"),
            (
                {"status": 429, "body": {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}},
                503,
                "rate_limited",
            ),
            ({"status": 404, "body": {"error": {"message": "Invalid URL"}}}, 502, "wrong_host"),
            ({"status": 200, "body": "<h1>Airflow</h1>"}, 502, "wrong_host"),
            ({"status": 500, "body": "<h1>oops</h1>"}, 502, "service_down"),
            ({"drop": "before"}, 502, "service_down"),
        ],
    )
    def test_of_the_service(
        self, do: dict[str, Any], status: int, code: str, page: Browser, emulator: Emulator
    ) -> None:
        down(emulator, do)
        before = len(emulator.calls)
        answer = page.get("/api/batches", **CONN)
        assert (answer.status_code, answer.json()["detail"]["code"]) == (status, code)
        assert answer.json()["detail"]["message"]
        assert len(emulator.calls) - before == 1, "no second attempt here: somebody waits"

    @pytest.mark.parametrize(
        ("fields", "status", "code"),
        [
            ({"password": ""}, 502, "bad_connection"),
            ({"host": "nonsense"}, 502, "bad_connection"),
            ({"conn_type": "postgres"}, 404, "no_connection"),
        ],
    )
    def test_of_the_connection(
        self, fields: dict[str, str], status: int, code: str, page: Browser, connection: Any, emulator: Emulator
    ) -> None:
        connection(**fields)
        answer = page.get("/api/batches", **CONN)
        assert (answer.status_code, answer.json()["detail"]["code"]) == (status, code)
        assert len(emulator.calls) == 0, "the password of another type is not sent anywhere"

    @pytest.mark.usefixtures("odd_extras_are_read")
    @pytest.mark.parametrize("extra", ['["secret-in-a-list"]', '"secret-in-a-list"', "17", "true"])
    def test_an_extra_that_is_no_object_is_named_with_its_remedy(
        self, extra: str, page: Browser, connection: Any
    ) -> None:
        from airflow_provider_openai_batches.api.errors import InvalidInputError
        from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook

        connection(extra=extra)
        answer = page.get("/api/batches", **CONN)
        assert (answer.status_code, answer.json()["detail"]["code"]) == (502, "bad_connection")
        said = [answer.json()["detail"]["message"]]
        hook = OpenAIBatchesHook(CONN_ID)
        for use in (hook.get_conn, lambda: hook.prices, lambda: hook.queue_limits, lambda: hook.webhook_secret):
            with pytest.raises(InvalidInputError) as refusal:
                use()
            said.append(str(refusal.value))
        works, message = hook.test_connection()
        assert not works
        for each in [*said, message]:
            assert f"connection {CONN_ID}: its extra has to be a JSON object" in each
            assert "secret-in-a-list" not in each

    def test_one_in_the_database_that_airflow_cannot_read(self, page: Browser, airflow_db: None) -> None:
        from airflow.utils.session import create_session
        from sqlalchemy import text

        body = {"connection_id": "odd_extra", "conn_type": "openai_batches", "password": "sk-x", "extra": "{}"}
        assert page._http.post("/api/v2/connections", json=body).status_code == 201
        with create_session() as session:  # as older Airflows took it
            session.execute(
                text("UPDATE connection SET extra = '[1]', is_extra_encrypted = false WHERE conn_id = 'odd_extra'")
            )
        try:
            answer = page.get("/api/batches", conn_id="odd_extra")
        finally:
            with create_session() as session:
                session.execute(text("DELETE FROM connection WHERE conn_id = 'odd_extra'"))
        assert (answer.status_code, answer.json()["detail"]["code"]) == (502, "bad_connection")
        assert "connection odd_extra" in answer.json()["detail"]["message"]
        assert "JSON object" in answer.json()["detail"]["message"]

    def test_no_such_connection(self, page: Browser) -> None:
        answer = page.get("/api/batches", conn_id="nothing")
        detail = answer.json()["detail"]
        assert (answer.status_code, detail["code"]) == (404, "no_connection")
        assert detail["message"] == "No connection has the id nothing. Create it in Admin, Connections."

    def test_prices_that_are_none_cost_only_the_costs(self, page: Browser, buy: Buy, connection: Any) -> None:
        connection(extra=json.dumps({"prices": {"gpt-4o-mini": "cheap"}}))
        buy()
        assert listed(page)[0]["cost_usd"] is None

    def test_no_such_batch(self, page: Browser) -> None:
        answer = page.get("/api/batches/batch_nothing", **CONN)
        assert (answer.status_code, answer.json()["detail"]["code"]) == (404, "not_found")


class TestConnections:
    def test_from_the_database_the_environment_and_of_both_types(
        self, page: Browser, second_connection: str, airflow_db: None
    ) -> None:
        http = page._http
        rows = [("in_database", "openai"), ("somewhere", "postgres")]
        for conn_id, conn_type in rows:
            body = {"connection_id": conn_id, "conn_type": conn_type, "password": "sk-in-database"}
            assert http.post("/api/v2/connections", json=body).status_code == 201
        try:
            answer = page.get("/api/connections").json()
        finally:
            for conn_id, _ in rows:
                http.delete(f"/api/v2/connections/{conn_id}")
        assert answer == {
            "connections": [
                {"conn_id": "in_database", "conn_type": "openai"},
                {"conn_id": CONN_ID, "conn_type": "openai_batches"},
                {"conn_id": second_connection, "conn_type": "openai"},
            ],
            "default": CONN_ID,
        }

    def test_a_broken_one_hides_no_other(self, page: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_BROKEN", '{"conn_type": ')
        monkeypatch.setenv("AIRFLOW_CONN_EMPTY", "")
        assert [each["conn_id"] for each in page.get("/api/connections").json()["connections"]] == [CONN_ID]

    def test_without_any(self, page: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT")
        assert page.get("/api/connections").json() == {"connections": [], "default": None}

    def test_one_of_the_database_is_used(self, page: Browser, emulator: Emulator, buy: Buy) -> None:
        batch = buy(None)
        fields = {**json.loads(connection_json(emulator)), "connection_id": "kept"}
        http = page._http
        assert http.post("/api/v2/connections", json=fields).status_code == 201
        try:
            answer = page.get("/api/batches", conn_id="kept").json()
        finally:
            http.delete("/api/v2/connections/kept")
        assert [each["id"] for each in answer["batches"]] == [batch.id]


class TestDetail:
    def test_of_a_batch_that_failed(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        errors = [{"code": "invalid_json_line", "message": "<b>not</b> JSON", "line": 7, "param": None}]
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": errors}})
        batch = buy()
        emulator.advance(500)
        detail = page.get(f"/api/batches/{batch.id}", **CONN).json()
        assert detail["errors"] == errors
        assert [each["kind"] for each in detail["files"]] == ["input"]
        assert [step["event"] for step in detail["timeline"]] == ["created", "failed"]

    def test_files_and_history(self, page: Browser, buy: Buy, emulator: Emulator, client: Any) -> None:
        emulator.add_fault({"on": {"custom_id": "row-1"}, "do": {"outcome": "error"}})
        batch = buy()
        emulator.advance(500)
        client.delete_file(batch.input_file_id)
        detail = page.get(f"/api/batches/{batch.id}", **CONN).json()
        events = [step["event"] for step in detail["timeline"]]
        assert events == ["created", "in_progress", "finalizing", "completed"]
        assert detail["timeline"] == sorted(detail["timeline"], key=lambda step: step["at"])
        by_kind = {each.pop("kind"): each for each in detail["files"]}
        gone = {"id": batch.input_file_id, "filename": None, "bytes": None, "expires_at": None, "deleted": True}
        gone["problem"] = None
        assert by_kind["input"] == gone
        assert {(kind, each["deleted"]) for kind, each in by_kind.items()} == {
            ("input", True),
            ("output", False),
            ("errors", False),
        }
        assert by_kind["output"]["bytes"] > 0

    def test_of_a_key_without_access_to_files(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        batch = buy()
        emulator.advance(500)
        no = {"status": 403, "body": {"error": {"message": "Missing scopes: api.files.read"}}}
        emulator.add_fault({"on": {"path": "/files/**"}, "do": no, "times": None})
        answer = page.get(f"/api/batches/{batch.id}", **CONN)
        assert answer.status_code == 200, answer.text
        detail = answer.json()
        assert (detail["id"], detail["status"]) == (batch.id, "completed")
        assert [each["kind"] for each in detail["files"]] == ["input", "output"]
        assert not any(each["deleted"] for each in detail["files"]), "nobody knows that"
        assert all("Missing scopes: api.files.read" in each["problem"] for each in detail["files"])
        assert emulator.count(*FILE) == 1, "the second one would fare no better"

    def test_tabs_share_the_calls_for_files(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        batch = buy()
        emulator.advance(500)
        with ThreadPoolExecutor(8) as tabs:
            answers = list(tabs.map(lambda _: page.get(f"/api/batches/{batch.id}", **CONN), range(20)))
        assert {answer.status_code for answer in answers} == {200}
        # Once each, or twice: the answer is good for two seconds, and this machine may be slow.
        assert emulator.count(*FILE) in (2, 4)

    def test_after_files_are_deleted_the_view_is_new(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        batch = buy()
        emulator.advance(500)
        page.get(f"/api/batches/{batch.id}", **CONN)
        page.post(f"/api/batches/{batch.id}/delete-files", **CONN)
        detail = page.get(f"/api/batches/{batch.id}", **CONN).json()
        assert [each["deleted"] for each in detail["files"]] == [True, True]


class TestOddBatches:
    """What a service or a link may hold that no batch should."""

    @pytest.mark.parametrize("at", [253_402_300_800, 10**15, 2**62, 10**40, -1, "999999-01-01T00:00:00Z"])
    def test_times_that_no_calendar_has(self, at: Any, page: Browser, buy: Buy, emulator: Emulator) -> None:
        times = dict.fromkeys(("created_at", "in_progress_at", "completed_at", "expires_at"), at)
        for path in ("/batches", "/batches/*"):
            emulator.add_fault({"on": {"method": "GET", "path": path}, "do": {"set": times}, "times": None})
        emulator.add_fault({"on": {"method": "GET", "path": "/files/*"}, "do": {"set": times}, "times": None})
        batch = buy()
        emulator.advance(500)
        (shown,) = listed(page)
        detail = page.get(f"/api/batches/{batch.id}", **CONN)
        assert detail.status_code == 200, detail.text
        assert {key: detail.json()[key] for key in shown} == shown
        assert [shown[key] for key in times if key in shown] == [None] * 3
        assert (shown["id"], shown["ended_at"]) == (batch.id, None)
        assert {each["event"] for each in detail.json()["timeline"]} <= {"finalizing"}

    @pytest.mark.parametrize(
        "batch_id",
        ["a/b", "a%2Fb", "%2F", "%2e%2e%2f", "{id}/x", "{id}%2Fx", "a b", "%00", "ü", "x" * 300, "%2e", "%2e%2e"],
    )
    @pytest.mark.parametrize("action", ["", "/preview", "/cancel", "/delete-files"])
    def test_an_id_that_is_none(self, batch_id: str, action: str, page: Browser, buy: Buy, emulator: Emulator) -> None:
        real = buy()
        send = page.post if action in ("/cancel", "/delete-files") else page.get
        answer = send(f"/api/batches/{batch_id.replace('{id}', real.id)}{action}", **CONN)
        assert (answer.status_code, answer.json()["detail"]["code"]) == (404, "not_found")
        assert len(answer.json()["detail"]["message"]) > len("Not Found")
        assert emulator.batches()[0]["status"] == "validating"

    def test_a_search_for_one_finds_nothing(self, page: Browser, buy: Buy) -> None:
        batch = buy()
        assert listed(page, text=f"{batch.id}/x") == []

    def test_no_statuses_mean_all(self, page: Browser, buy: Buy) -> None:
        buy()
        assert len(listed(page, status=[])) == len(listed(page, status=["", ""])) == 1


class TestPreview:
    def test_of_an_error_file(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        do = {"outcome": "error", "status": 400, "code": "bad", "message": "<img src=x>"}
        emulator.add_fault({"on": {"custom_id": "*"}, "do": do, "times": None})
        batch = buy()
        emulator.advance(500)
        rows = page.get(f"/api/batches/{batch.id}/preview", **CONN).json()["rows"]
        assert {row["custom_id"] for row in rows} == {"row-0", "row-1", "row-2"}
        assert {(row["status_code"], row["text"], row["error"]) for row in rows} == {(400, "", "bad: <img src=x>")}

    def test_rows_are_limited(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        batch = buy(rows=20)
        emulator.advance(500)
        answer = page.get(f"/api/batches/{batch.id}/preview", rows=4, **CONN).json()
        assert (len(answer["rows"]), answer["truncated"]) == (4, True)
        assert len(page.get(f"/api/batches/{batch.id}/preview", **CONN).json()["rows"]) == 5

    def test_only_the_beginning_of_the_file_is_read(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        batch = buy(rows=2000)  # 1.5 MB of results
        emulator.advance(500)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("airflow_provider_openai_batches.plugin.batches._PREVIEW_BYTES", 3000)
            answer = page.get(f"/api/batches/{batch.id}/preview", rows=50, **CONN).json()
        assert 1 <= len(answer["rows"]) <= 4
        assert answer["truncated"] is True
        assert all(row["error"] is None for row in answer["rows"]), "a line that is cut off is not shown"

    def test_before_there_is_anything(self, page: Browser, buy: Buy) -> None:
        answer = page.get(f"/api/batches/{buy().id}/preview", **CONN).json()
        assert answer == {"rows": [], "truncated": False}

    @pytest.mark.parametrize(
        ("line", "row"),
        [
            (b"{broken", (None, None, "", "The line is not readable as JSON.")),
            (b"[]", (None, None, "", "The line is not readable as JSON.")),
            (
                b'{"custom_id":"</script>","response":{"status_code":200,"body":{"data":[{"embedding":[1.5,2]}]}}}',
                ("</script>", 200, "[1.5,2]", None),
            ),
        ],
    )
    def test_odd_lines(self, line: bytes, row: tuple[Any, ...]) -> None:
        from airflow_provider_openai_batches.plugin.shown import preview

        batch = Batch(id="b", status="completed", endpoint="/v1/embeddings")
        (shown,) = preview(line, batch, 5, is_whole=True)["rows"]
        assert tuple(shown.values()) == row


class TestCancel:
    def test_a_batch_that_goes_on(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        batch = buy()
        answer = page.post(f"/api/batches/{batch.id}/cancel", **CONN).json()
        assert (answer["id"], answer["status"]) == (batch.id, "cancelling")
        assert emulator.batches()[0]["status"] == "cancelling"

    def test_a_batch_that_is_over_stays_as_it_is(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        batch = buy()
        emulator.advance(500)
        answer = page.post(f"/api/batches/{batch.id}/cancel", **CONN)
        assert (answer.status_code, answer.json()["status"]) == (200, "completed")


class TestDeleteFiles:
    def test_a_batch_that_still_reads_a_file_is_not_named_to_who_may_not_see_it(
        self, browse: Browse, buy: Buy, emulator: Emulator, client: Any
    ) -> None:
        batch = buy(DAG)
        emulator.advance(500)
        hidden = client.create_batch(
            batch.input_file_id, "/v1/chat/completions", metadata={"airflow_dag_id": OTHER_DAG}
        )
        answer = browse("editor").post(f"/api/batches/{batch.id}/delete-files", **CONN)
        assert answer.json()["kept"] == [{"id": batch.input_file_id, "reason": "Another batch still reads it."}]
        assert hidden.id not in answer.text

    def test_of_a_batch_that_is_over(self, page: Browser, buy: Buy, emulator: Emulator, client: Any) -> None:
        batch = buy()
        emulator.advance(500)
        answer = page.post(f"/api/batches/{batch.id}/delete-files", **CONN).json()
        assert (len(answer["deleted"]), answer["kept"]) == (2, [])
        assert list(client.list_files()) == []
        again = page.post(f"/api/batches/{batch.id}/delete-files", **CONN)
        assert again.status_code == 200, "what is gone already is fine"

    def test_of_a_batch_that_goes_on(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        answer = page.post(f"/api/batches/{buy().id}/delete-files", **CONN)
        assert (answer.status_code, answer.json()["detail"]["code"]) == (409, "not_over")
        assert emulator.count("DELETE", "/v1/files/{file_id}") == 0

    def test_what_another_batch_reads_is_kept(self, page: Browser, buy: Buy, emulator: Emulator, client: Any) -> None:
        batch = buy()
        emulator.advance(500)
        other = client.create_batch(batch.input_file_id, "/v1/chat/completions")
        answer = page.post(f"/api/batches/{batch.id}/delete-files", **CONN).json()
        assert answer["kept"] == [{"id": batch.input_file_id, "reason": f"Batch {other.id} still reads it."}]
        assert len(answer["deleted"]) == 1

    def test_what_a_batch_of_days_ago_still_reads_is_kept_where_batches_take_days(
        self,
        page: Browser,
        buy: Buy,
        emulator: Emulator,
        client: Any,
        connection: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        connection(extra=json.dumps({"dialect": "groq"}))
        emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "stuck", "status": "in_progress"}, "times": 1})
        slow = buy()
        batch = client.create_batch(slow.input_file_id, "/v1/chat/completions")
        for _ in range(PAGE_SIZE):
            client.create_batch(slow.input_file_id, "/v1/chat/completions")
        emulator.advance(500)
        monkeypatch.setattr(batches, "time", SimpleNamespace(time=lambda: time.time() + 5 * 86_400))
        answer = page.post(f"/api/batches/{batch.id}/delete-files", **CONN).json()
        assert answer["kept"] == [{"id": batch.input_file_id, "reason": f"Batch {slow.id} still reads it."}]

    def test_results_of_a_run_that_goes_on_are_kept(
        self, page: Browser, buy: Buy, emulator: Emulator, running: str
    ) -> None:
        batch = buy(DAG, airflow_run_id=running)
        emulator.advance(500)
        answer = page.post(f"/api/batches/{batch.id}/delete-files", **CONN).json()
        assert answer["deleted"] == []
        assert len(answer["kept"]) == 2
        assert emulator.count("DELETE", "/v1/files/{file_id}") == 0

    def test_one_that_cannot_be_deleted_is_kept(self, page: Browser, buy: Buy, emulator: Emulator) -> None:
        batch = buy()
        emulator.advance(500)
        do = {"status": 500, "body": {"error": {"message": "sorry"}}}
        emulator.add_fault({"on": {"method": "DELETE", "path": "/files/*"}, "do": do})
        answer = page.post(f"/api/batches/{batch.id}/delete-files", **CONN).json()
        assert len(answer["deleted"]) == 1
        assert [each["id"] for each in answer["kept"]] == [batch.input_file_id]
        assert "sorry" in answer["kept"][0]["reason"]


@pytest.fixture
def running(dags: None, page: Browser) -> Iterator[str]:
    """A run of the DAG that goes on."""
    run_id = "goes_on"
    answer = page._http.post(f"/api/v2/dags/{DAG}/dagRuns", json={"dag_run_id": run_id, "logical_date": None})
    assert answer.status_code == 200, answer.text
    yield run_id
    page._http.delete(f"/api/v2/dags/{DAG}/dagRuns/{run_id}")


def test_files_that_are_not_the_page_s_are_not_served(page: Browser) -> None:
    static = Path(__file__).parents[2] / "airflow_provider_openai_batches/plugin/static"
    assert page.get("/static/main.js").content == (static / "main.js").read_bytes()
    for name in ("../app.py", "%2e%2e/app.py", "..%2fapp.py", "//etc/passwd", ".js", "nothing.js"):
        assert page.get(f"/static/{name}").status_code == 404, name
