"""The webhook endpoint, called as OpenAI calls it and as nobody should."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from tests.plugin.conftest import CONN_ID, Browser, until

Browse = Callable[[str | None], Browser]

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
URL = f"/webhooks/{CONN_ID}"
RETRIEVE = ("GET", "/v1/batches/{batch_id}")


def body(kind: str = "batch.completed", batch_id: str = "batch_1") -> bytes:
    event = {"id": "evt_1", "object": "event", "created_at": 1, "type": kind, "data": {"id": batch_id}}
    return json.dumps(event).encode()


def signed(content: bytes, *, webhook_id: str, at: float | None = None, key: bytes = KEY) -> dict[str, str]:
    timestamp = str(int(time.time() if at is None else at))
    digest = hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + content, hashlib.sha256)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        "Content-Type": "application/json",
    }


@pytest.fixture
def webhook_id(request: pytest.FixtureRequest) -> str:
    """Of an event that no other test knows: what was seen stays in the database."""
    return "wh_" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:32]


@pytest.fixture
def openai(browse: Browse, connection: Any) -> Browser:
    """Whoever calls from the internet, at a connection with a secret."""
    connection(extra=json.dumps({"webhook_secret": SECRET}))
    return browse(None)


@pytest.fixture
def events(browse: Browse, airflow_db: None) -> Callable[[], list[dict[str, Any]]]:
    """The asset events that webhooks for the connection have made since the test began."""
    from airflow import sdk
    from airflow.sdk import BaseOperator

    from airflow_provider_openai_batches.assets import webhook_asset
    from tests.airflow.conftest import register

    asset = webhook_asset(CONN_ID)
    with sdk.DAG("when_a_batch_ends", schedule=[asset]) as dag:
        BaseOperator(task_id="react")
    register(dag)
    http = browse("admin")._http

    def made() -> list[dict[str, Any]]:
        found = http.get("/api/v2/assets/events", params={"limit": 100}).json()["asset_events"]
        return [each["extra"] for each in found if each["uri"] == asset.uri]

    before = len(made())
    return lambda: made()[before:]


def test_a_signed_event_is_announced_once(openai: Browser, events: Any, webhook_id: str) -> None:
    for _ in range(3):  # at least once, says OpenAI
        answer = openai.post(URL, content=body(), headers=signed(body(), webhook_id=webhook_id))
        assert (answer.status_code, answer.content) == (204, b"")
    (event,) = events()
    assert (event["batch_id"], event["status"], event["webhook_id"]) == ("batch_1", "completed", webhook_id)


def test_at_the_same_time_too(openai: Browser, events: Any, webhook_id: str) -> None:
    headers = signed(body(), webhook_id=webhook_id)
    with ThreadPoolExecutor(4) as servers:
        answers = list(servers.map(lambda _: openai.post(URL, content=body(), headers=headers), range(4)))
    # One that could not be dealt with is sent again; what counts is that none counts twice.
    assert 204 in {answer.status_code for answer in answers}
    assert len(events()) == 1


def test_what_is_no_end_of_a_batch_is_taken_and_ignored(openai: Browser, events: Any, webhook_id: str) -> None:
    content = body("response.completed", "resp_1")
    assert openai.post(URL, content=content, headers=signed(content, webhook_id=webhook_id)).status_code == 204
    assert events() == []


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"webhook-signature": None}, 401, "unsigned"),
        ({"webhook-id": None}, 401, "unsigned"),
        ({"webhook-timestamp": None}, 401, "unsigned"),
        ({"webhook-signature": "v1,AAAA"}, 401, "bad_signature"),
        ({"webhook-id": "wh_another"}, 401, "bad_signature"),
        ({"webhook-timestamp": "soon"}, 400, "malformed"),
        ({"webhook-timestamp": str(int(time.time()) - 3600)}, 400, "stale"),
        ({"webhook-timestamp": str(int(time.time()) + 3600)}, 400, "stale"),
    ],
)
def test_a_call_that_openai_did_not_make(
    change: dict[str, str | None], status: int, code: str, openai: Browser, events: Any, webhook_id: str
) -> None:
    headers = {**signed(body(), webhook_id=webhook_id), **change}
    answer = openai.post(
        URL, content=body(), headers={name: text for name, text in headers.items() if text is not None}
    )
    assert (answer.status_code, answer.json()["detail"]["code"]) == (status, code)
    assert events() == []


def test_a_recorded_call_is_stale(openai: Browser, events: Any, webhook_id: str) -> None:
    headers = signed(body(), webhook_id=webhook_id, at=time.time() - 301)
    answer = openai.post(URL, content=body(), headers=headers)
    assert (answer.status_code, answer.json()["detail"]["code"]) == (400, "stale")
    assert events() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"type":"batch.completed"}', b"\xff"])
def test_a_signed_body_that_is_no_event(content: bytes, openai: Browser, webhook_id: str) -> None:
    answer = openai.post(URL, content=content, headers=signed(content, webhook_id=webhook_id))
    assert (answer.status_code, answer.json()["detail"]["code"]) == (400, "malformed")


def test_a_body_that_is_too_long(openai: Browser, webhook_id: str) -> None:
    content = b" " * 65_537
    headers = signed(content, webhook_id=webhook_id)
    answer = openai.post(URL, content=content, headers=headers)
    assert (answer.status_code, answer.json()["detail"]["code"]) == (413, "too_large")
    # Its length need not be announced.
    answer = openai.post(URL, content=(content[:1000] for _ in range(66)), headers=headers)
    assert answer.status_code == 413
    # One that just fits is looked at.
    content = body() + b" " * (65_536 - len(body()))
    assert openai.post(URL, content=content, headers=signed(content, webhook_id=webhook_id)).status_code == 204


def test_whether_a_connection_exists_is_not_told(
    openai: Browser, connection: Any, second_connection: str, webhook_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"conn_type": "openai_batches", "password": "sk-x", "extra": json.dumps({"webhook_secret": "whsec_%%%"})}
    monkeypatch.setenv("AIRFLOW_CONN_BROKEN_SECRET", json.dumps(fields))
    # A connection of another type is none of ours, whatever it holds.
    other = {"conn_type": "http", "password": "x", "extra": json.dumps({"webhook_secret": SECRET})}
    monkeypatch.setenv("AIRFLOW_CONN_OTHER_TYPE", json.dumps(other))
    good, forged = signed(body(), webhook_id=webhook_id), signed(body(), webhook_id=webhook_id, key=b"guess")
    stale = signed(body(), webhook_id=webhook_id, at=1)
    for headers in (forged, stale, {}):
        answers = {
            re.sub(r"\d", "#", openai.post(f"/webhooks/{conn_id}", content=body(), headers=headers).text)
            for conn_id in (CONN_ID, second_connection, "broken_secret", "other_type", "nothing")
        }
        assert len(answers) == 1
    for conn_id in (second_connection, "broken_secret", "other_type", "nothing"):
        assert openai.post(f"/webhooks/{conn_id}", content=body(), headers=good).status_code == 401


def test_an_empty_key_signs_nothing(openai: Browser, connection: Any, webhook_id: str) -> None:
    connection(extra=json.dumps({"webhook_secret": "whsec_"}))
    answer = openai.post(URL, content=body(), headers=signed(body(), webhook_id=webhook_id, key=b""))
    assert (answer.status_code, answer.json()["detail"]["code"]) == (401, "bad_signature")


def test_only_post(openai: Browser) -> None:
    assert openai.get(URL).status_code == 405


class TestAnswersFirst:
    """OpenAI is answered when the event is written down; waking who waits is done after that."""

    @pytest.fixture
    def waiter(self, airflow_db: None, openai: Browser, buy: Any, emulator: Emulator) -> Iterator[tuple[str, Any]]:
        """A deferred task that waits for a finished batch: the batch, and what says how the task is."""
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import delete, select

        from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger
        from tests.polling import seed

        run = (DagRun.dag_id == seed.DAG_ID, DagRun.run_id == seed.RUN_ID)
        with create_session() as session:
            is_there = session.scalar(select(DagRun.id).where(*run)) is not None
        if not is_there:
            seed.register_dag()
            seed.start_run()
        batch = buy()
        emulator.advance(500)
        seed.add_deferred([OpenAIBatchTrigger(conn_id=CONN_ID, batch_ids=[batch.id]).serialize()])
        waiters = TaskInstance.dag_id == seed.DAG_ID

        def state() -> str:
            with create_session() as session:
                return str(session.scalar(select(TaskInstance.state).where(waiters)))

        yield batch.id, state
        with create_session() as session:
            session.execute(delete(TaskInstance).where(waiters))
            if not is_there:
                session.execute(delete(DagRun).where(*run))

    def deliver(self, openai: Browser, batch_id: str, webhook_id: str) -> int:
        content = body(batch_id=batch_id)
        return openai.post(URL, content=content, headers=signed(content, webhook_id=webhook_id)).status_code

    def test_the_service_is_asked_after_the_answer(
        self, openai: Browser, waiter: tuple[str, Any], emulator: Emulator, webhook_id: str
    ) -> None:
        from airflow_provider_openai_batches.plugin import webhooks
        from airflow_provider_openai_batches.plugin.backlog import Backlog

        batch_id, state = waiter
        answered = threading.Event()

        def wake(piece: Any) -> None:
            answered.wait(60)
            webhooks.wake(*piece)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(webhooks, "_wakings", Backlog(wake, threads=1, most=1))
            assert self.deliver(openai, batch_id, webhook_id) == 204
        assert (state(), emulator.count(*RETRIEVE)) == ("deferred", 0)
        answered.set()
        until(lambda: state() == "scheduled")
        assert emulator.count(*RETRIEVE) == 1

    def test_what_is_too_much_to_do_is_left_to_the_poll(
        self, openai: Browser, waiter: tuple[str, Any], emulator: Emulator, events: Any, webhook_id: str
    ) -> None:
        from airflow_provider_openai_batches.plugin import webhooks
        from airflow_provider_openai_batches.plugin.backlog import Backlog

        batch_id, state = waiter
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(webhooks, "_wakings", Backlog(lambda piece: None, threads=1, most=0))
            assert self.deliver(openai, batch_id, webhook_id) == 204
        assert [each["batch_id"] for each in events()] == [batch_id], "DAGs start all the same"
        assert (state(), emulator.count(*RETRIEVE)) == ("deferred", 0)


def test_a_backlog_works_with_few_threads_and_survives_a_failure() -> None:
    from airflow_provider_openai_batches.plugin.backlog import Backlog

    done: list[int] = []
    under_way: list[int] = []
    at_once: list[int] = []
    go_on = threading.Event()

    def work(number: int) -> None:
        under_way.append(number)
        at_once.append(len(under_way))
        go_on.wait(30)
        under_way.remove(number)
        if number == 3:
            raise RuntimeError("this one cannot be done")
        done.append(number)

    backlog = Backlog(work, threads=2, most=18)
    # Two are taken at once or stand in line with the others; a full line takes no more.
    taken = [backlog.add(number) for number in range(30)]
    assert 18 <= sum(taken) <= 20
    go_on.set()
    until(lambda: len(done) == sum(taken) - 1)
    assert max(at_once) <= 2
    until(lambda: not any(each.name == "openai-batches-backlog" for each in threading.enumerate()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_work_that_ends_its_thread_takes_no_place_of_others() -> None:
    from airflow_provider_openai_batches.plugin.backlog import Backlog

    done: list[int] = []

    def work(number: int) -> None:
        if number % 2:
            raise SystemExit
        done.append(number)

    backlog = Backlog(work, threads=2, most=100)
    assert all(backlog.add(number) for number in range(20))
    until(lambda: sorted(done) == list(range(0, 20, 2)))


class Clock:
    """Stands in for the module `time`."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that look-ups of secrets go by."""
    from airflow_provider_openai_batches.plugin import webhook_secrets

    clock = Clock()
    monkeypatch.setattr(webhook_secrets, "time", clock)
    return clock


class TestLookUps:
    """Anybody can call. What that costs in look-ups of secrets is bounded, and tells the caller nothing."""

    @pytest.fixture
    def asked(self, openai: Browser, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The connections that Airflow's secrets backend is asked for."""
        from tests.plugin.counting_secrets import ASKED

        ASKED.clear()
        monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", "tests.plugin.counting_secrets.CountingSecrets")
        answer = openai.post(URL, content=body(), headers=signed(body(), webhook_id="wh_forged", key=b"guess"))
        assert answer.status_code == 401
        assert ASKED == [CONN_ID], "or this backend is not asked at all"
        ASKED.clear()
        return ASKED

    @pytest.mark.parametrize(
        "change",
        [
            {"webhook-signature": ""},
            {"webhook-id": ""},
            {"webhook-timestamp": ""},
            {"webhook-timestamp": "soon"},
            {"webhook-timestamp": "1"},
            {"webhook-timestamp": str(int(time.time()) + 3600)},
        ],
    )
    def test_an_unsigned_or_stale_call_costs_none(
        self, change: dict[str, str], openai: Browser, asked: list[str], webhook_id: str
    ) -> None:
        headers = signed(body(), webhook_id=webhook_id) | change
        for conn_id in ("unknown_1", "unknown_2"):
            assert openai.post(f"/webhooks/{conn_id}", content=body(), headers=headers).status_code in (400, 401)
        assert asked == []

    def test_that_there_is_none_is_remembered(self, openai: Browser, asked: list[str], webhook_id: str) -> None:
        headers = signed(body(), webhook_id=webhook_id)
        for _ in range(10):
            assert openai.post("/webhooks/unknown", content=body(), headers=headers).status_code == 401
        assert asked == ["unknown"]

    def test_a_flood_of_names_is_bounded_and_learns_nothing(
        self, openai: Browser, asked: list[str], webhook_id: str
    ) -> None:
        forged = signed(body(), webhook_id=webhook_id, key=b"guess")
        names = [f"unknown_{number}" for number in range(60)]
        answers = [openai.post(f"/webhooks/{name}", content=body(), headers=forged) for name in [*names, CONN_ID]]
        assert {(each.status_code, each.text) for each in answers} == {(401, answers[-1].text)}
        assert len(asked) <= 20
        # Who is known is still served.
        assert openai.post(URL, content=body(), headers=signed(body(), webhook_id=webhook_id)).status_code == 204

    def test_no_flood_however_long_turns_a_real_webhook_away(self, clock: Clock) -> None:
        from airflow_provider_openai_batches.plugin import webhook_secrets

        asked: dict[str, list[float]] = defaultdict(list)
        secret = SECRET

        def look_up(conn_id: str) -> str:
            asked[conn_id].append(clock.now)
            return secret if conn_id in (CONN_ID, "seldom") else webhook_secrets.NOBODYS_SECRET

        found = webhook_secrets.WebhookSecrets(look_up)
        assert (found.of(CONN_ID), found.of("seldom")) == (SECRET, SECRET)
        for second in range(3600):
            clock.now += 1
            for call in range(4):
                assert found.of(f"unknown_{second}_{call}") == webhook_secrets.NOBODYS_SECRET
            assert found.of(CONN_ID) == secret
            if second == 1800:
                secret = "whsec_bmV3"
                clock.now += 10
        assert found.of("seldom") == secret, "it was not called for an hour"
        real = asked.pop(CONN_ID)
        assert min(later - sooner for sooner, later in pairwise(real)) >= 10
        assert len(real) > 300, "it is refreshed"
        flood = sorted(at for name, times in asked.items() if name != "seldom" for at in times)
        assert len(flood) > 5_000, "or there was no flood"
        assert min(later - sooner for sooner, later in zip(flood, flood[20:], strict=False)) >= 10
        assert len(found._known) == 2
        assert len(found._others) <= 1_000

    def test_while_look_ups_fail_the_known_secret_is_used_for_five_minutes(
        self, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        from airflow_provider_openai_batches.plugin import webhook_secrets
        from airflow_provider_openai_batches.plugin.errors import PageError

        works = True

        def look_up(conn_id: str) -> str:
            if not works:
                raise ConnectionError("the vault is down")
            return SECRET

        found = webhook_secrets.WebhookSecrets(look_up)
        assert found.of(CONN_ID) == SECRET
        works = False
        for _ in range(29):
            clock.now += 10
            assert found.of(CONN_ID) == SECRET
        clock.now += 10
        for name in (CONN_ID, "unknown"):
            with pytest.raises(PageError) as refusal:
                found.of(name)
            assert (refusal.value.status, "vault" in str(refusal.value)) == (503, False)
        works = True
        clock.now += 10
        assert found.of(CONN_ID) == SECRET
        assert caplog.text.count("cannot be looked up") == 31, "once per look-up"

    def test_a_failure_that_many_meet_does_not_grow(self, clock: Clock) -> None:
        from airflow_provider_openai_batches.plugin import webhook_secrets
        from airflow_provider_openai_batches.plugin.errors import PageError

        def fail(conn_id: str) -> str:
            raise ConnectionError("the vault is down")

        found = webhook_secrets.WebhookSecrets(fail)
        frames = []
        for _ in range(200):
            with pytest.raises(PageError) as refusal:
                found.of(CONN_ID)
            frames.append(len(list(traceback.walk_tb(refusal.value.__traceback__))))
        assert len(set(frames)) == 1

    def test_one_that_ends_its_thread_leaves_nobody_waiting(
        self, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow_provider_openai_batches.plugin import webhook_secrets
        from airflow_provider_openai_batches.plugin.errors import PageError

        def leave(conn_id: str) -> str:
            raise SystemExit

        found = webhook_secrets.WebhookSecrets(leave)
        with pytest.raises(SystemExit):
            found.of(CONN_ID)
        monkeypatch.setattr(webhook_secrets, "_LOOK_UP_WITHIN_S", 3600.0)  # longer than a test may take
        with pytest.raises(PageError):
            found.of(CONN_ID)

    @pytest.mark.parametrize("secret", ["whsec_%%%", "whsec_"])
    def test_a_secret_that_cannot_be_read_is_logged_once_per_look_up(
        self, secret: str, openai: Browser, connection: Any, caplog: pytest.LogCaptureFixture, webhook_id: str
    ) -> None:
        connection(extra=json.dumps({"webhook_secret": secret}))
        for _ in range(5):
            answer = openai.post(URL, content=body(), headers=signed(body(), webhook_id=webhook_id))
            assert answer.status_code == 401
        assert caplog.text.count(f"Webhooks for connection {CONN_ID} are refused") == 1
        assert secret not in caplog.text


def test_a_connection_whose_extra_is_no_object_is_told_of_in_the_log_alone(
    openai: Browser, connection: Any, webhook_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection(extra='["secret-in-a-list"]')
    answer = openai.post(URL, content=body(), headers=signed(body(), webhook_id=webhook_id))
    unknown = openai.post("/webhooks/unknown", content=body(), headers=signed(body(), webhook_id=webhook_id))
    assert (answer.status_code, answer.text) == (401, unknown.text)
    assert f"connection {CONN_ID}: its extra has to be a JSON object" in caplog.text
    assert "secret-in-a-list" not in caplog.text
