"""The API key, and what else a connection keeps secret, appears nowhere but in the request."""

from __future__ import annotations

import io
import itertools
import logging
import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
import requests
from urllib3 import HTTPSConnectionPool
from urllib3.exceptions import MaxRetryError, SSLError

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    InvalidInputError,
    OpenAIBatchesError,
    QuotaExhaustedError,
)
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.emulator import Emulator
from tests.api.connecting import API_KEY, closed_port, connect
from tests.api.scripted_server import RESET, Answer, ScriptedServer, as_json

HEADER_SECRET = "gateway/secret+1"
QUERY_SECRET = "query secret/&=1"
SECRETS = (API_KEY, HEADER_SECRET, QUERY_SECRET, "query+secret%2F%26%3D1", "query%20secret%2F%26%3D1")
OWN: dict[str, Any] = {"headers": {"X-Gateway-Key": HEADER_SECRET}, "query": {"code": QUERY_SECRET}}


def told(error: BaseException) -> str:
    """Everything an error, its causes and its traceback say."""
    texts = ["".join(traceback.format_exception(error))]
    seen: BaseException | None = error
    while seen is not None:
        texts += [str(seen), repr(seen), repr(getattr(seen, "__notes__", "")), repr(vars(seen))]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "\n".join(texts)


def assert_silent(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All log records of the package and of requests, down to DEBUG."""
    with caplog.at_level(logging.DEBUG):
        yield caplog


def test_no_repr_shows_a_secret() -> None:
    with connect("https://api.openai.com/v1", **OWN) as client:
        for thing in (client, client.settings, client._session, client._session._session.auth):
            assert_silent(repr(thing) + str(thing))
    assert "api.openai.com" in repr(client.settings)


ECHOES = {
    "401 with the key": Answer(401, b'{"error": {"message": "Incorrect API key provided: %s."}}' % API_KEY.encode()),
    "the key as code and param": as_json({"error": {"message": "no", "code": API_KEY, "param": HEADER_SECRET}}, 400),
    "a page with all headers": Answer(500, f"<pre>{API_KEY} {HEADER_SECRET}</pre>".encode()),
    "a page with the query": Answer(404, f"No such path: ?code={QUERY_SECRET}".encode()),
    "200 that is no JSON": Answer(200, API_KEY.encode(), {"Content-Type": f"text/{API_KEY}"}),
    "a redirect with the key": Answer(302, headers={"Location": f"http://127.0.0.1:9/?key={API_KEY}"}),
    "an invalid redirect with the key": Answer(302, headers={"Location": f"ftp://{API_KEY}"}),
    "an unusable redirect with the key": Answer(302, headers={"Location": f"http://{API_KEY}:port/"}),
    "reset": RESET,
    "cut": Answer(200, b"{" * 99, cut_at=9),
}
CALLS: dict[str, Callable[[BatchClient, Path], Any]] = {
    "create": lambda client, _: client.create_batch("file-1", "/v1/responses"),
    "retrieve": lambda client, _: client.retrieve_batch("batch_1"),
    "list": lambda client, _: list(client.list_batches()),
    "cancel": lambda client, _: client.cancel_batch("batch_1"),
    "upload": lambda client, _: client.upload_file(lambda: io.BytesIO(b"{}"), filename="rows.jsonl"),
    "download": lambda client, path: client.download_file("file-1", path / "out"),
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_failing_call_tells_a_secret(
    call: Callable[[BatchClient, Path], Any], echo: Answer, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    with (
        ScriptedServer(endless=itertools.repeat(echo)) as server,
        connect(server.base_url, **OWN) as client,
    ):
        try:
            call(client, tmp_path)
        except OpenAIBatchesError as error:
            assert_silent(told(error))
        else:
            # What is not JSON is a content like any other to a download.
            assert echo.status == 200
    for record in logs.records:
        # At DEBUG urllib3 logs each path with its query; nothing of ours does.
        if not record.name.startswith("urllib3"):
            assert_silent(record.getMessage())
        assert API_KEY not in record.getMessage()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_unreachable_service_makes_a_secret_known(
    call: Callable[[BatchClient, Path], Any], tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    with connect(closed_port(), **OWN) as client, pytest.raises(APIConnectionError) as raised:
        call(client, tmp_path)
    assert_silent(told(raised.value))
    assert API_KEY not in logs.text


def test_a_passing_call_logs_no_secret(
    emulator: Emulator, tmp_path: Path, input_file: bytes, logs: pytest.LogCaptureFixture
) -> None:
    with connect(emulator.base_url) as client:
        file = client.upload_file(lambda: io.BytesIO(input_file), filename="rows.jsonl")
        client.create_batch(file.id, "/v1/chat/completions")
        client.download_file(file.id, tmp_path / "out")
    assert logs.records
    assert_silent(logs.text)


def test_a_wrong_key_is_refused_without_being_shown(emulator: Emulator) -> None:
    wrong = "sk-wrong-9876543210zyxwvuts"
    with connect(emulator.base_url, api_key=wrong) as client, pytest.raises(AuthenticationError) as raised:
        next(client.list_batches())
    assert wrong not in told(raised.value)
    assert "connection" in str(raised.value)


def tls_error(cause: ssl.SSLError) -> requests.exceptions.SSLError:
    """What requests raises for a failed TLS exchange."""
    path = f"/v1/batches?code={quote_plus(QUERY_SECRET)}"
    return requests.exceptions.SSLError(MaxRetryError(HTTPSConnectionPool("localhost"), path, SSLError(cause)))


def test_an_untrusted_certificate_is_permanent_and_told_without_a_secret() -> None:
    cause = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed")
    with connect("https://localhost/v1", **OWN) as client:
        error = client._session.connection_error("POST /batches", tls_error(cause))
    assert "CA certificates" in str(error)
    assert (error.transient, error.maybe_applied) == (False, False)
    assert_silent(told(error))


def test_a_tls_connection_that_breaks_off_is_a_lost_answer() -> None:
    cause = ssl.SSLEOFError(8, "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol")
    with connect("https://localhost/v1", **OWN) as client:
        error = client._session.connection_error("POST /batches", tls_error(cause))
    assert (error.transient, error.maybe_applied) == (True, True)
    assert_silent(told(error))


def test_a_plain_server_on_a_secure_url_is_a_connection_error() -> None:
    with ScriptedServer() as server:
        base_url = server.base_url.replace("http://", "https://")
        with connect(base_url) as client, pytest.raises(APIConnectionError):
            client.retrieve_batch("batch_1")


# --- redacting keeps the meaning --------------------------------------------------------------------------------------


def test_a_short_header_value_does_not_garble_messages() -> None:
    refused = as_json({"error": {"message": "1 thing is wrong", "code": "c1"}}, 400)
    with (
        ScriptedServer(refused) as server,
        connect(server.base_url, headers={"X-Retry": "1", "X-Empty": ""}, query={"v": "1"}) as client,
        pytest.raises(BadRequestError, match="1 thing is wrong") as raised,
    ):
        client.retrieve_batch("batch_1")
    assert raised.value.code == "c1"


@pytest.mark.parametrize("value", ["insufficient_quota", "message", "error", "billing"])
def test_a_header_value_does_not_change_how_an_error_is_read(value: str) -> None:
    refused = as_json({"error": {"message": "no money", "code": "insufficient_quota"}}, 429)
    with (
        ScriptedServer(refused) as server,
        connect(server.base_url, headers={"X-Tenant": value}) as client,
        pytest.raises(QuotaExhaustedError),
    ):
        client.retrieve_batch("batch_1")


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "  ", "\n", None])
def test_a_missing_key_is_refused_before_any_call(key: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"password.*missing"):
        ClientSettings(api_key=key)


@pytest.mark.parametrize("key", ["sk-with space", "sk-two\nlines", "sk-ünicode", "sk-\x00"])
def test_a_key_no_header_can_hold_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(InvalidInputError, match="Copy it again") as raised:
        ClientSettings(api_key=key)
    assert key not in told(raised.value)


def test_the_newline_an_echo_leaves_behind_is_dropped() -> None:
    with (
        ScriptedServer(as_json({"id": "batch_1"})) as server,
        connect(server.base_url, api_key=f"{API_KEY}\n", headers={"X-Key": "value\n"}, project="proj_1\n") as client,
    ):
        client.retrieve_batch("batch_1")
    headers = server.requests[0].headers
    assert headers["Authorization"] == f"Bearer {API_KEY}"
    assert (headers["X-Key"], headers["OpenAI-Project"]) == ("value", "proj_1")


@pytest.mark.parametrize(
    "settings",
    [
        {"headers": {"X-Key": "secret-part\nInjected: 1"}},
        {"headers": {"X-Key": "secret-part\u20ac"}},
        {"headers": {"X-Key": "secret-part\x00"}},
        {"headers": {"X Key": "secret-part"}},
        {"headers": {"": "secret-part"}},
        {"organization": "secret-part\r\nInjected: 1"},
        {"project": "secret-part\u20ac"},
    ],
    ids=repr,
)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="headers") as raised:
        ClientSettings(api_key=API_KEY, **settings)
    assert "secret-part" not in told(raised.value)


@pytest.mark.parametrize(
    ("param", "settings"),
    [
        ("auth", {"auth": "basic"}),
        ("timeout", {"timeout_s": 0}),
        ("timeout", {"timeout_s": -1}),
        ("host", {"base_url": "api.openai.com"}),
        ("host", {"base_url": "http://a b/v1"}),
    ],
)
def test_a_bad_setting_is_refused_by_name(param: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as raised:
        ClientSettings(api_key=API_KEY, **settings)
    assert raised.value.param == param


@pytest.mark.parametrize("host", [f"{'a' * 64}.invalid", "a..b", "\u20ac.invalid"])
def test_a_host_that_is_no_name_is_refused_by_name(host: str) -> None:
    with connect(f"http://{host}/v1") as client, pytest.raises(InvalidInputError, match="host"):
        client.retrieve_batch("batch_1")


def test_a_netrc_file_does_not_replace_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with ScriptedServer(as_json({"id": "batch_1"})) as server, connect(server.base_url) as client:
        client.retrieve_batch("batch_1")
    assert server.requests[0].headers["Authorization"] == f"Bearer {API_KEY}"
