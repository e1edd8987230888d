"""Who may see and do what: every route, for everybody."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.emulator import Emulator
from tests.airflow.conftest import connection_json
from tests.conftest import API_KEY
from tests.plugin.auth import DAG, OTHER_DAG, USERS
from tests.plugin.conftest import CONN_ID, Browser

Browse = Callable[[str | None], Browser]
Buy = Callable[..., Batch]

JOB = {"dag_id": DAG, "run_id": "run", "task_id": "label"}
CONN = {"conn_id": CONN_ID}

# Each route, how it is called ({batch_id} is a finished batch of the DAG), and what becomes of it by user.
# The first three are not logged in, see DAGs only, and may do everything.
RULES: dict[tuple[str, str], tuple[dict[str, Any], dict[str | None, int]]] = {
    ("GET", "/api/connections"): ({}, {None: 401, "viewer": 200, "admin": 200}),
    ("GET", "/api/batches"): (CONN, {None: 401, "viewer": 403, "user": 403, "reader": 200, "op": 200, "admin": 200}),
    ("GET", "/api/batches/{batch_id}"): (CONN, {None: 401, "viewer": 403, "user": 403, "reader": 200, "admin": 200}),
    ("GET", "/api/batches/{batch_id}/preview"): (CONN, {None: 401, "viewer": 403, "reader": 200, "admin": 200}),
    ("POST", "/api/batches/{batch_id}/cancel"): (
        CONN,
        {None: 401, "viewer": 403, "user": 403, "reader": 403, "keeper": 404, "editor": 200, "op": 200, "admin": 200},
    ),
    ("POST", "/api/batches/{batch_id}/delete-files"): (
        CONN,
        {None: 401, "viewer": 403, "user": 403, "reader": 403, "keeper": 404, "editor": 200, "op": 200, "admin": 200},
    ),
    ("GET", "/api/job"): (JOB, {None: 401, "keeper": 403, "half": 403, "reader": 200, "viewer": 200, "admin": 200}),
    # The signature is the login; nobody's session helps.
    ("POST", "/webhooks/{conn_id}"): ({}, {None: 401, "viewer": 401, "admin": 401}),
    # A script and icons, the same for everybody.
    ("GET", "/static"): ({}, {None: 200, "viewer": 200, "admin": 200}),
}


def test_every_route_has_a_rule() -> None:
    from starlette.routing import Mount, Route

    from airflow_provider_openai_batches.plugin.app import build_app

    found = set()
    routes = build_app().routes
    while routes:
        route = routes.pop()
        if included := getattr(route, "original_router", None):  # as newer versions of FastAPI keep it
            routes += included.routes
            continue
        assert isinstance(route, (Route, Mount)), route
        methods = route.methods if isinstance(route, Route) else {"GET"}
        found |= {(method, route.path) for method in methods or () if method != "HEAD"}
    assert found == set(RULES)


@pytest.mark.parametrize(
    ("method", "path", "user", "status"),
    [(*route, user, status) for route, (_, by_user) in RULES.items() for user, status in by_user.items()],
    ids=lambda value: str(value).replace("/", "."),
)
def test_route(
    method: str, path: str, user: str | None, status: int, browse: Browse, buy: Buy, emulator: Emulator
) -> None:
    batch = buy(OTHER_DAG if user == "half" else DAG)
    emulator.advance(500)
    before = emulator.batches(), len(emulator.calls)
    url = path.format(batch_id=batch.id, conn_id=CONN_ID) + ("/main.js" if path == "/static" else "")
    browser = browse(user)
    answer = (browser.get if method == "GET" else browser.post)(url, **RULES[method, path][0])
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert set(answer.json()["detail"]) == {"code", "message"}
        assert emulator.batches() == before[0]
    if status in (401, 403) and user not in ("reader",):
        assert len(emulator.calls) == before[1], "who may not ask gets no call made"


@pytest.mark.parametrize(
    "path", ["/api/nothing", "/", "/api/batches/x/y", "/docs", "/openapi.json", "/static/", "/static"]
)
def test_there_is_nothing_else(path: str, browse: Browse) -> None:
    assert browse("admin").get(path).status_code == 404


def test_a_forged_login_is_refused(airflow_app: Any, browse: Browse) -> None:
    browse(None)  # for the settings
    answer = Browser(airflow_app, "e30.e30.x").get("/api/connections")
    assert (answer.status_code, answer.json()["detail"]["code"]) == (403, "forbidden")


def test_connections_are_those_that_the_user_may_read(browse: Browse, second_connection: str) -> None:
    assert ids(browse("admin")) == [CONN_ID, second_connection]
    assert ids(browse("half")) == [CONN_ID]
    assert ids(browse("viewer")) == []
    assert browse("viewer").get("/api/connections").json()["default"] is None
    assert browse("half").get("/api/batches", conn_id=second_connection).status_code == 403


def ids(browser: Browser) -> list[str]:
    return [each["conn_id"] for each in browser.get("/api/connections").json()["connections"]]


def test_whether_a_connection_exists_is_not_told(browse: Browse) -> None:
    answers = {browse("viewer").get("/api/batches", conn_id=name).text for name in (CONN_ID, "no_such_connection")}
    assert len(answers) == 1


@pytest.mark.parametrize("conn_id", ["conn\n", "conn\nx", "\nconn", "", "c" * 251])
def test_what_could_be_no_connections_id_is_none(conn_id: str) -> None:
    from airflow_provider_openai_batches.plugin.access import is_conn_id

    assert is_conn_id("conn")
    assert not is_conn_id(conn_id)


class TestTeams:
    """Airflow asks whether a user may see a connection together with the team that it belongs to, and so do we."""

    @pytest.fixture
    def teams(self, browse: Browse, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Two teams with a connection each, in an Airflow that keeps teams apart."""
        from airflow.models import Connection
        from airflow.models.team import Team
        from airflow.utils.session import create_session
        from sqlalchemy import delete

        if not hasattr(Connection, "team_name"):
            pytest.skip("this Airflow's connections name their team in another way")
        names = ("ours", "theirs")
        fields = json.loads(connection_json(emulator))
        with create_session() as session:
            session.add_all(Team(name=name) for name in names)
            session.flush()
            session.add_all(Connection(conn_id=f"of_{name}", team_name=name, **fields) for name in names)
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        yield
        with create_session() as session:
            session.execute(delete(Connection).where(Connection.conn_id.in_([f"of_{name}" for name in names])))
            session.execute(delete(Team).where(Team.name.in_(names)))

    def test_a_connection_is_seen_by_its_team(self, teams: None, browse: Browse, buy: Buy) -> None:
        batch = buy(None)
        assert ids(browse("member")) == ["of_ours", CONN_ID]
        assert browse("member").get("/api/batches", conn_id="of_theirs").status_code == 403
        answer = browse("member").get("/api/batches", conn_id="of_ours")
        assert (answer.status_code, [each["id"] for each in answer.json()["batches"]]) == (200, [batch.id])

    def test_airflow_itself_decides_so(self, teams: None, browse: Browse) -> None:
        http = browse("member")._http
        assert [http.get(f"/api/v2/connections/of_{name}").status_code for name in ("ours", "theirs")] == [200, 403]

    def test_the_variable_of_a_teams_connection_is_no_way_around(
        self, teams: None, browse: Browse, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN__THEIRS___SECRET", connection_json(emulator))
        assert browse("member").get("/api/batches", conn_id="_theirs___secret").status_code == 403
        assert "_theirs___secret" not in ids(browse("admin"))

    def test_without_teams_what_is_left_of_them_counts_for_nothing(
        self, teams: None, browse: Browse, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "False")
        http = browse("member")._http
        for name in ("ours", "theirs"):
            assert http.get(f"/api/v2/connections/of_{name}").status_code == 200
            assert browse("member").get("/api/batches", conn_id=f"of_{name}").status_code != 403


class TestVisibility:
    """A batch is seen by who may see its DAG; one that no DAG made by who may read the connection."""

    @pytest.fixture
    def batches(self, buy: Buy) -> dict[str, str]:
        made = {"ours": buy(DAG), "theirs": buy(OTHER_DAG), "gone": buy("deleted_dag"), "outside": buy(None)}
        return {batch.id: name for name, batch in made.items()}

    @pytest.mark.parametrize(
        ("user", "seen", "acts"),
        [
            ("admin", "ours theirs gone outside", "ours theirs gone outside"),
            ("reader", "ours outside", ""),
            ("editor", "ours outside", "ours"),
            ("keeper", "gone outside", "gone outside"),
            ("half", "outside", ""),
        ],
    )
    def test_of_a_user(self, user: str, seen: str, acts: str, browse: Browse, batches: dict[str, str]) -> None:
        listed = browse(user).get("/api/batches", **CONN).json()["batches"]
        assert {batches[each["id"]] for each in listed} == set(seen.split())
        assert {batches[each["id"]] for each in listed if each["can_act"]} == set(acts.split())
        for batch_id, name in batches.items():
            statuses = [
                browse(user).get(f"/api/batches/{batch_id}", **CONN).status_code,
                browse(user).get(f"/api/batches/{batch_id}/preview", **CONN).status_code,
                browse(user).post(f"/api/batches/{batch_id}/cancel", **CONN).status_code,
            ]
            visible = 200 if name in seen.split() else 404
            action = 200 if name in acts.split() else 403 if visible == 200 else 404
            assert statuses == [visible, visible, action], name

    def test_what_is_not_seen_is_not_told_from_what_is_not_there(self, browse: Browse, buy: Buy) -> None:
        hidden = buy(OTHER_DAG).id
        nobodys = hidden[:-4] + "0000"
        reader = browse("reader")
        calls = [(reader.get, ""), (reader.get, "/preview"), (reader.post, "/cancel"), (reader.post, "/delete-files")]
        for call, path in calls:
            answers = [(each, call(f"/api/batches/{each}{path}", **CONN)) for each in (hidden, nobodys)]
            assert [answer.status_code for _, answer in answers] == [404, 404]
            assert len({answer.text.replace(batch_id, "ID") for batch_id, answer in answers}) == 1, path

    def test_of_a_dag_whose_name_is_hostile(self, browse: Browse, buy: Buy) -> None:
        hostile = "made_by_us' OR 1=1 --<script>\x00/../../%2e"
        batch = buy(hostile)
        (shown,) = browse("admin").get("/api/batches", **CONN).json()["batches"]
        assert (shown["made_by"]["dag_id"], shown["made_by"]["url"]) == (hostile, None)
        assert browse("reader").get("/api/batches", **CONN).json()["batches"] == []
        assert browse("editor").post(f"/api/batches/{batch.id}/cancel", **CONN).status_code == 404


class TestCrossSite:
    """A page of another site cannot act with the login that the browser adds to its calls."""

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
            ({"Sec-Fetch-Site": "nonsense"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"}, 403),
            ({"Sec-Fetch-Site": "cross-site", "Authorization": "Basic eDp5"}, 403),
            ({"Sec-Fetch-Site": "same-origin"}, 200),
            ({"Sec-Fetch-Site": "none"}, 200),
            ({"Origin": "http://testserver"}, 200),
            ({}, 200),
        ],
    )
    @pytest.mark.parametrize("action", ["cancel", "delete-files"])
    def test_write_with_a_cookie(
        self,
        action: str,
        headers: dict[str, str],
        status: int,
        browse: Browse,
        buy: Buy,
        emulator: Emulator,
        tokens: dict[str, str],
    ) -> None:
        batch = buy()
        emulator.advance(500 if action == "delete-files" else 0)
        cookie = {"Cookie": f"_token={tokens['admin']}"}
        answer = browse(None).post(f"/api/batches/{batch.id}/{action}", headers={**cookie, **headers}, **CONN)
        assert answer.status_code == status, answer.text
        if status == 403:
            assert answer.json()["detail"]["code"] == "cross_site"
            assert "cancelling_at" not in {key for key, value in emulator.batches()[0].items() if value}
            assert emulator.count("DELETE", "/v1/files/{file_id}") == 0

    def test_a_token_is_no_cookie(self, browse: Browse, buy: Buy) -> None:
        answer = browse("admin").post(
            f"/api/batches/{buy().id}/cancel", headers={"Sec-Fetch-Site": "cross-site"}, **CONN
        )
        assert answer.status_code == 200


class TestAuditLog:
    """Airflow's audit log names who did what to which batch, and how it ended."""

    @pytest.fixture
    def entries(self, browse: Browse) -> Callable[[], list[dict[str, Any]]]:
        before = max((each["event_log_id"] for each in event_log(browse)), default=0)
        return lambda: [each for each in event_log(browse) if each["event_log_id"] > before]

    def test_of_a_cancel(self, browse: Browse, buy: Buy, entries: Any) -> None:
        batch = buy()
        browse("editor").post(f"/api/batches/{batch.id}/cancel", **CONN)
        (entry,) = entries()
        assert {key: entry[key] for key in ("event", "owner", "dag_id", "run_id", "task_id", "map_index")} == {
            "event": "openai_batch_cancel",
            "owner": "editor",
            "dag_id": DAG,
            "run_id": "manual__2026-01-01T00:00:00+00:00",
            "task_id": "label",
            "map_index": -1,
        }
        assert json.loads(entry["extra"]) == {
            **CONN,
            "batch_id": batch.id,
            "outcome": "succeeded",
            "status": "cancelling",
        }

    def test_of_a_refusal(self, browse: Browse, buy: Buy, entries: Any) -> None:
        browse("reader").post(f"/api/batches/{buy().id}/cancel", **CONN)
        (entry,) = entries()
        assert entry["owner"] == "reader"
        assert json.loads(entry["extra"])["outcome"] == "refused"

    def test_of_a_failure(self, browse: Browse, buy: Buy, emulator: Emulator, entries: Any) -> None:
        batch = buy(None)
        emulator.add_fault({"on": {"path": "/batches/*/cancel"}, "do": {"status": 500}})
        assert browse("admin").post(f"/api/batches/{batch.id}/cancel", **CONN).status_code == 502
        (entry,) = entries()
        assert entry["dag_id"] is None
        extra = json.loads(entry["extra"])
        assert (extra["outcome"], extra["code"], extra["batch_id"]) == ("failed", "service_down", batch.id)

    def test_of_deleted_files(self, browse: Browse, buy: Buy, emulator: Emulator, entries: Any) -> None:
        batch = buy()
        emulator.advance(500)
        answer = browse("admin").post(f"/api/batches/{batch.id}/delete-files", **CONN).json()
        (entry,) = entries()
        assert entry["event"] == "openai_batch_delete_files"
        extra = json.loads(entry["extra"])
        assert (extra["outcome"], extra["deleted"]) == ("succeeded", answer["deleted"])
        assert len(answer["deleted"]) == 2

    def test_names_of_a_batch_are_no_danger_to_it(self, browse: Browse, buy: Buy, entries: Any) -> None:
        batch = buy(DAG, airflow_run_id="r\x00un" * 120, airflow_task_id="\x00", airflow_map_index="9" * 30)
        assert browse("admin").post(f"/api/batches/{batch.id}/cancel", **CONN).status_code == 200
        (entry,) = entries()
        assert entry["run_id"] == ("run" * 120)[:250]
        assert entry["map_index"] == -1


def event_log(browse: Browse) -> list[dict[str, Any]]:
    """The page's entries of Airflow's audit log, as its own API shows them."""
    http = browse("admin")._http
    entries = http.get("/api/v2/eventLogs", params={"limit": 100, "order_by": "-event_log_id"}).json()["event_logs"]
    return [each for each in entries if each["event"].startswith("openai_")]


def test_the_key_never_leaves(browse: Browse, buy: Buy, emulator: Emulator, connection: Any) -> None:
    extra = json.dumps({"headers": {"X-Gateway": "gateway-secret-1"}, "webhook_secret": "whsec_c2VjcmV0LXNlY3JldA=="})
    connection(extra=extra)
    batch = buy()
    emulator.advance(500)
    answers = []

    def call_everything() -> None:
        for (method, path), (query, _) in RULES.items():
            for user in (None, *USERS):
                browser = browse(user)
                url = path.format(batch_id=batch.id, conn_id=CONN_ID)
                answers.append((browser.get if method == "GET" else browser.post)(url, **query))

    call_everything()
    # A gateway that repeats what it was sent, as some do.
    echo = {"status": 401, "body": {"error": {"message": f"no such key: {API_KEY}"}}}
    emulator.add_fault({"on": {"path": "**"}, "do": echo, "times": None})
    call_everything()
    everything = "\n".join(answer.text + str(answer.headers) for answer in answers)
    assert "***" in everything, "the fault has to be seen, or this proves nothing"
    for secret in (API_KEY, "gateway-secret-1", "whsec_", "c2VjcmV0"):
        assert secret not in everything
    log = json.dumps(event_log(browse))
    assert API_KEY not in log
