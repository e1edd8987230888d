"""Only what OpenAI signed, just now, is taken for OpenAI's."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.api.webhooks import (
    WebhookError,
    WebhookEvent,
    WebhookMalformedError,
    WebhookSecretError,
    WebhookSignatureError,
    WebhookStaleError,
    WebhookUnsignedError,
    verify,
)
from airflow_provider_openai_batches.emulator import Emulator

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
PLAIN_SECRET = "plain-secret-no-prefix"
NOW = 1750287078
BODY = (
    b'{"id":"evt_abc123","object":"event","created_at":1750287078,'
    b'"type":"batch.completed","data":{"id":"batch_abc123"}}'
)
SIGNATURE = "v1,qUTLbqcf2OAI8mOWxRwPTev2JrZzYmQMsz1q31mVrn8="
HEADERS = {
    "webhook-id": "wh_685342e6c53c8190a1be43f081506c52",
    "webhook-timestamp": str(NOW),
    "webhook-signature": SIGNATURE,
}
EVENT = WebhookEvent(
    webhook_id="wh_685342e6c53c8190a1be43f081506c52",
    id="evt_abc123",
    type="batch.completed",
    created_at=NOW,
    object_id="batch_abc123",
)


def signed(body: bytes, *, key: bytes = b"0123456789abcdef0123456789abcdef", **changed: str) -> dict[str, str]:
    """Headers with a good signature for whatever they say."""
    headers = {"webhook-id": "wh_1", "webhook-timestamp": str(NOW)} | {
        name.replace("_", "-"): value for name, value in changed.items()
    }
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return {**headers, "webhook-signature": f"v1,{signature}"}


def test_openai_signature_is_accepted() -> None:
    event = verify(SECRET, HEADERS, BODY, now=NOW)
    assert event == EVENT
    assert (event.batch_id, event.status) == ("batch_abc123", "completed")


def test_vector_of_openais_own_sdk_is_accepted() -> None:
    event = verify(
        "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c=",
        {
            "webhook-id": "wh_685c059ae39c8190af8c71ed1022a24d",
            "webhook-timestamp": "1750861210",
            "webhook-signature": "v1,gUAg4R2hWouRZqRQG4uJypNS8YK885G838+EHb4nKBY=",
        },
        b'{"id": "evt_685c059ae3a481909bdc86819b066fb6", "object": "event", "created_at": 1750861210, '
        b'"type": "response.completed", "data": {"id": "resp_123"}}',
        now=1750861210,
    )
    # Signed, but not about a batch.
    assert (event.type, event.object_id, event.batch_id, event.status) == ("response.completed", "resp_123", None, None)


@pytest.mark.parametrize(
    ("secret", "signature"),
    [
        pytest.param(PLAIN_SECRET, "v1,0Mdug+GfeNxg4ofTfygqNf04qty8sTp6qMm1PQ0BHgg=", id="secret without prefix"),
        pytest.param(f" {SECRET}\n", SIGNATURE, id="secret pasted with its line end"),
        pytest.param(SECRET.rstrip("="), SIGNATURE, id="secret without padding"),
        pytest.param(SECRET, f"v1,AAAA {SIGNATURE}", id="second of two signatures"),
        pytest.param(SECRET, f"{SIGNATURE} v1,AAAA", id="first of two signatures"),
        pytest.param(SECRET, f"v1a,AAAA  v2,BBBB \t{SIGNATURE}", id="signatures of other versions"),
    ],
)
def test_other_forms_of_the_same_are_accepted(secret: str, signature: str) -> None:
    assert verify(secret, HEADERS | {"webhook-signature": signature}, BODY, now=NOW) == EVENT


def test_header_names_may_be_spelled_in_any_way() -> None:
    headers = {name.title(): f" {value} " for name, value in HEADERS.items()}
    assert verify(SECRET, headers, BODY, now=NOW) == EVENT


@pytest.mark.parametrize("late_s", [300, -300])
def test_five_minutes_off_is_accepted(late_s: int) -> None:
    assert verify(SECRET, HEADERS, BODY, now=NOW + late_s) == EVENT


@pytest.mark.parametrize(
    ("late_s", "says"), [(301, "301 seconds ago"), (300.4, "300 seconds ago"), (-301, "301 seconds ahead")]
)
def test_more_than_five_minutes_off_is_refused(late_s: float, says: str) -> None:
    with pytest.raises(WebhookStaleError, match=says):
        verify(SECRET, HEADERS, BODY, now=NOW + late_s)


@pytest.mark.parametrize("missing", sorted(HEADERS))
@pytest.mark.parametrize("value", [None, "", "  "])
def test_call_without_a_header_is_refused_by_its_name(missing: str, value: str | None) -> None:
    headers = {name: text for name, text in (HEADERS | {missing: value}).items() if text is not None}
    with pytest.raises(WebhookUnsignedError, match=missing):
        verify(SECRET, headers, BODY, now=NOW)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({}, BODY + b" ", id="changed body"),
        pytest.param({"webhook-id": "wh_other"}, BODY, id="changed id"),
        pytest.param({"webhook-timestamp": str(NOW + 1)}, BODY, id="changed time"),
        pytest.param({"webhook-signature": SIGNATURE[:-1]}, BODY, id="shortened"),
        pytest.param({"webhook-signature": SIGNATURE.lower()}, BODY, id="other case"),
        pytest.param({"webhook-signature": "v1,"}, BODY, id="empty"),
        pytest.param({"webhook-signature": "v1"}, BODY, id="no comma"),
        pytest.param({"webhook-signature": "v1,höß\udcff"}, BODY, id="not ASCII"),
        pytest.param({"webhook-signature": SIGNATURE.replace("v1,", "v1,v1,")}, BODY, id="prefix twice"),
        pytest.param({"webhook-signature": SIGNATURE.replace("v1,", "v2,")}, BODY, id="other version"),
    ],
)
def test_what_was_not_signed_like_this_is_refused(headers: Mapping[str, str], body: bytes) -> None:
    with pytest.raises(WebhookSignatureError):
        verify(SECRET, HEADERS | headers, body, now=NOW)


def test_other_secret_is_refused() -> None:
    with pytest.raises(WebhookSignatureError, match="webhook_secret"):
        verify(PLAIN_SECRET, HEADERS, BODY, now=NOW)


@pytest.mark.parametrize("timestamp", ["soon", "1.75e9", "-1750287078", "1_750_287_078", "१७५०२८७०७८", "9" * 13, "nan"])
def test_signed_time_that_is_no_unix_time_is_refused(timestamp: str) -> None:
    with pytest.raises(WebhookMalformedError, match="unix seconds"):
        verify(SECRET, signed(BODY, webhook_timestamp=timestamp), BODY, now=NOW)


@pytest.mark.parametrize("webhook_id", ["wh_" + "x" * 198, "wh_\x00", "wh_\u202e", "wh_1\nforged log line"])
def test_signed_id_that_no_sender_uses_is_refused(webhook_id: str) -> None:
    with pytest.raises(WebhookMalformedError, match="webhook-id"):
        verify(SECRET, signed(BODY, webhook_id=webhook_id), BODY, now=NOW)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b'{"type": "batch.completed"}',
        b'{"type": "batch.completed", "data": "batch_1"}',
        b'{"type": "batch.completed", "data": {"id": 7}}',
        b'{"type": "batch.completed", "data": {"id": ""}}',
        b'{"type": null, "data": {"id": "batch_1"}}',
        b'{"data": {"id": "batch_1"}}',
        b'{"type": "batch.completed", "data": {"id": "batch_1", "x": ' + b"[" * 100_000,
    ],
)
def test_signed_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookMalformedError, match="wh_1"):
        verify(SECRET, signed(body), body, now=NOW)


@pytest.mark.parametrize(
    ("kind", "batch_id", "status"),
    [
        ("batch.completed", "batch_1", "completed"),
        ("batch.failed", "batch_1", "failed"),
        ("batch.expired", "batch_1", "expired"),
        ("batch.cancelled", "batch_1", "cancelled"),
        ("batch.in_progress", "batch_1", None),
        ("batch.renamed", "batch_1", None),
        ("batchcompleted", None, None),
        ("completed", None, None),
        ("fine_tuning.job.succeeded", None, None),
    ],
)
def test_only_the_end_of_a_batch_has_a_status(kind: str, batch_id: str | None, status: str | None) -> None:
    body = b'{"type": "%s", "data": {"id": "batch_1"}, "created_at": "soon", "new": {}}' % kind.encode()
    event = verify(SECRET, signed(body), body, now=NOW)
    assert (event.batch_id, event.status, event.id, event.created_at) == (batch_id, status, "", None)


@pytest.mark.parametrize(
    "secret", ["", "  ", "whsec_", "whsec_=", "whsec_not base64", "whsec_A", "whsec_ü", "whsec_----abcd"]
)
def test_nobody_can_sign_for_a_connection_without_a_usable_secret(secret: str) -> None:
    for key in (b"", secret.encode()):
        with pytest.raises(WebhookSecretError) as refusal:
            verify(secret, signed(BODY, key=key), BODY, now=NOW)
        assert "webhook_secret" in str(refusal.value)


@pytest.mark.parametrize(
    "change", [*({name: ""} for name in HEADERS), {"webhook-timestamp": "soon"}, {"webhook-timestamp": str(NOW - 301)}]
)
def test_the_secret_is_not_looked_up_for_what_anybody_can_send(change: dict[str, str]) -> None:
    def look_up() -> str:
        raise AssertionError("it was looked up")

    with pytest.raises((WebhookUnsignedError, WebhookMalformedError, WebhookStaleError)):
        verify(look_up, HEADERS | change, BODY, now=NOW)
    assert verify(lambda: SECRET, HEADERS, BODY, now=NOW) == verify(SECRET, HEADERS, BODY, now=NOW)


def test_no_refusal_shows_the_secret_or_an_accepted_signature() -> None:
    shown = []
    for secret, headers, body, now in (
        (SECRET, HEADERS, BODY + b" ", NOW),
        (SECRET, HEADERS, BODY, NOW + 999),
        (SECRET, signed(b"{}"), b"{}", NOW),
        (SECRET, {}, BODY, NOW),
        (PLAIN_SECRET, HEADERS, BODY, NOW),
        ("whsec_" + PLAIN_SECRET, HEADERS, BODY, NOW),
    ):
        with pytest.raises(WebhookError) as refusal:
            verify(secret, headers, body, now=now)
        error: BaseException | None = refusal.value
        while error is not None:
            shown.append(repr(error) + str(error))
            error = error.__cause__
    assert not [text for text in shown if SECRET[6:20] in text or PLAIN_SECRET in text or SIGNATURE[3:] in text]


def test_each_refusal_has_a_code_of_its_own() -> None:
    codes = [each.code for each in WebhookError.__subclasses__()]
    assert sorted(map(str, codes)) == ["bad_signature", "malformed", "no_secret", "stale", "unsigned"]
    assert issubclass(WebhookError, OpenAIBatchesError)


words = st.text(max_size=30)


@given(
    headers=st.dictionaries(st.sampled_from([*HEADERS, "Webhook-Id", "host"]), words | st.just(str(NOW))),
    body=st.binary(max_size=50) | st.just(BODY),
)
def test_whatever_comes_without_a_good_signature_is_refused_as_a_webhook_error(
    headers: dict[str, str], body: bytes
) -> None:
    with pytest.raises(WebhookError):
        verify(SECRET, headers, body, now=NOW)


@given(
    before=st.lists(st.text(st.characters(exclude_categories=["Z", "C"]), max_size=10)),
    after=st.lists(st.text(st.characters(exclude_categories=["Z", "C"]), max_size=10)),
    space=st.sampled_from([" ", "  ", "\t"]),
    key=st.binary(min_size=1),
    body_id=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
)
def test_good_signature_is_found_among_any_others(
    before: list[str], after: list[str], space: str, key: bytes, body_id: str
) -> None:
    body = b'{"type": "batch.failed", "data": {"id": %s}}' % json.dumps(body_id).encode()
    headers = signed(body, key=key)
    headers["webhook-signature"] = space.join([*before, headers["webhook-signature"], *after])
    event = verify("whsec_" + base64.b64encode(key).decode(), headers, body, now=NOW)
    assert (event.object_id, event.status) == (body_id, "failed")


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]], threading.Event]]:
    received: list[tuple[dict[str, str], bytes]] = []
    arrived = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((dict(self.headers.items()), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", received, arrived
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("secret", [SECRET, PLAIN_SECRET])
def test_what_the_emulator_sends_is_accepted(
    receiver: tuple[str, list[tuple[dict[str, str], bytes]], threading.Event], input_file: bytes, secret: str
) -> None:
    url, received, arrived = receiver
    with (
        Emulator(speed=0, webhook_url=url, webhook_secret=secret) as emulator,
        BatchClient(ClientSettings(api_key="sk-any", base_url=emulator.base_url)) as client,
    ):
        file = client.upload_file(lambda: io.BytesIO(input_file), filename="a.jsonl")
        batch = client.create_batch(file.id, "/v1/chat/completions")
        emulator.advance(125)
        assert arrived.wait(20)
    headers, body = received[0]
    event = verify(secret, headers, body, now=time.time())
    assert (event.batch_id, event.status, event.webhook_id) == (batch.id, "completed", headers["webhook-id"])
