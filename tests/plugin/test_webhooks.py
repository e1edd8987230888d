"""The webhook endpoint, called as OpenAI calls it and as nobody should."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.plugin.conftest import CONN_ID, Browser

Browse = Callable[[str | None], Browser]

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
URL = f"/webhooks/{CONN_ID}"


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
