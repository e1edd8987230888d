"""What answers behind the connection's host may be hostile: that costs little memory, little time and no secret."""

from __future__ import annotations

import gzip
import itertools
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.api import download as download_module
from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import (
    APIConnectionError,
    APIStatusError,
    BatchFailedError,
    InvalidInputError,
    InvalidResponseError,
    OpenAIBatchesError,
)
from airflow_provider_openai_batches.api.models import Batch
from tests.api.connecting import API_KEY, connect
from tests.api.scripted_server import Answer, ScriptedServer, as_json
from tests.security.hostile import MIB, HostileServer, MemoryWatch, Script, drip, flood, head

LITTLE = 110 * MIB
"""A JSON answer may have 64 MiB, and is in memory once more while it is put together."""


def retrieve(client: BatchClient, _: Path) -> Any:
    return client.retrieve_batch("batch_1")


def download(client: BatchClient, directory: Path) -> Any:
    return client.download_file("file-1", directory / "out")


def peek(client: BatchClient, _: Path) -> Any:
    return client.read_beginning("file-1", 1000)


Call = Callable[[BatchClient, Path], Any]


def bomb() -> bytes:
    """300 MiB, packed to 300 kB."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(b"x" * MIB) for _ in range(300)) + packer.flush()


# --- memory -----------------------------------------------------------------------------------------------------------

AWAY = "Location: http://127.0.0.1:9/"
FLOODS: dict[str, tuple[Script, Call]] = {
    "json": (flood(head("200 OK", "Content-Type: application/json"), 300), retrieve),
    "refusal": (flood(head("500 Internal Server Error"), 300), retrieve),
    "redirect of a call": (flood(head("302 Found", AWAY), 300), retrieve),
    "redirect of a download": (flood(head("302 Found", AWAY), 300), download),
    "status line": (flood(b"HTTP/1.1 200 ", 300), retrieve),
    "header": (flood(b"HTTP/1.1 200 OK\r\nX: ", 300), retrieve),
    "line that says how long a chunk is": (flood(head("200 OK", "Transfer-Encoding: chunked"), 300), download),
    "result file of one line": (flood(head(), 300), download),
    "beginning of a file": (flood(head(), 300), peek),
    "packed json": (lambda: [head("200 OK", "Content-Encoding: gzip"), bomb()], retrieve),
    "json packed twice": (lambda: [head("200 OK", "Content-Encoding: gzip, gzip"), gzip.compress(bomb())], retrieve),
    "packed refusal": (lambda: [head("400 Bad Request", "Content-Encoding: gzip"), bomb()], retrieve),
    "packed result file": (lambda: [head("200 OK", "Content-Encoding: gzip"), bomb()], download),
    "packed beginning": (lambda: [head("200 OK", "Content-Encoding: gzip"), bomb()], peek),
    "packed fifty times": (lambda: [head("200 OK", f"Content-Encoding: {'gzip, ' * 49}gzip"), bomb()], retrieve),
    "nested json": (lambda: [head(), b'{"a":' * 10_000_000], retrieve),
}


@pytest.mark.parametrize("name", FLOODS)
def test_300_megabytes_where_few_belong_cost_little_memory(name: str, tmp_path: Path) -> None:
    script, call = FLOODS[name]
    with HostileServer(script) as server, connect(server.base_url, attempts=1) as client, MemoryWatch() as memory:
        try:
            call(client, tmp_path)
        except OpenAIBatchesError:
            pass
        else:
            assert call is peek or "result file" in name, "nothing else has an answer here"
    assert server.sent
    assert memory.grown < LITTLE


def test_a_line_that_no_answer_can_have_is_refused_before_anybody_reads_it(tmp_path: Path) -> None:
    """Whatever reads a result file takes a line at a time into memory."""
    with (
        HostileServer(flood(head(), 2_000)) as server,
        connect(server.base_url) as client,
        pytest.raises(
            InvalidResponseError, match=r"file-1 has a line of more than 536,870,912 bytes.*stays at the serv"
        ),
    ):
        client.download_file("file-1", tmp_path / "out")
    assert server.sent < 700 * MIB
    assert len(server.heads) == 1, "asking again would not help"
    assert list(tmp_path.iterdir()) == []


def test_what_is_too_long_to_be_read_by_lines_can_be_fetched_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paid for."""
    monkeypatch.setattr(download_module, "LONGEST_LINE_BYTES", 5 * MIB)
    with HostileServer(flood(head(), 20)) as server, connect(server.base_url) as client:
        with pytest.raises(InvalidResponseError, match="fetch the file as it is"):
            download(client, tmp_path)
        assert client.download_file("file-1", tmp_path / "out", by_lines=False) == 20 * MIB


def test_long_lines_of_long_files_are_fine(tmp_path: Path) -> None:
    line = b"x" * (MIB - 1) + b"\n"
    with HostileServer(flood(head(), 300, line)) as server, connect(server.base_url) as client:
        assert client.download_file("file-1", tmp_path / "out") == 300 * MIB


# --- time -------------------------------------------------------------------------------------------------------------

DRIPS: dict[str, Script] = {
    "status line": drip(b"HTTP/1.1 200 ", b"y"),
    "headers": drip(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    "many headers": drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "continue": lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "json": drip(head(), b" "),
    "refusal": drip(head("403 Forbidden"), b" "),
}


@pytest.mark.parametrize("script", DRIPS.values(), ids=DRIPS)
def test_an_answer_that_drips_ends_with_the_timeout(script: Script, tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        HostileServer(script) as server,
        connect(server.base_url, attempts=1, timeout_s=1.0) as client,
        pytest.raises((APIConnectionError, APIStatusError)),
    ):
        client.retrieve_batch("batch_1")
    assert time.monotonic() - began < 8


def test_the_timeout_is_for_the_head_and_not_for_a_content_that_takes_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_openai_batches.api.session.TRANSFER_TIMEOUT_S", 1.0)

    def slowly() -> Iterator[bytes]:
        yield head("200 OK", "Content-Length: 6")
        for _ in range(6):
            time.sleep(0.3)
            yield b"x"

    with HostileServer(slowly) as server, connect(server.base_url, timeout_s=1.0) as client:
        assert client.download_file("file-1", tmp_path / "out") == 6


def test_endless_headers_end(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        yield from (b"X-%d: y\r\n" % number for number in itertools.count())

    with (
        HostileServer(pieces) as server,
        connect(server.base_url, attempts=1) as client,
        pytest.raises(APIConnectionError, match="headers"),
    ):
        client.retrieve_batch("batch_1")


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length",
    ["9" * 5_000, "99999999999", "5\r\nContent-Length: 7", "6\r\nTransfer-Encoding: chunked", "0x3", "+3", "-3"],
    ids=lambda text: repr(text[:40]),
)
def test_a_wrong_content_length_is_no_defect_of_ours(length: str, tmp_path: Path) -> None:
    with (
        HostileServer(lambda: [head("200 OK", f"Content-Length: {length}"), b"abc"]) as server,
        connect(server.base_url, attempts=2) as client,
    ):
        try:
            size = client.download_file("file-1", tmp_path / "out")
        except OpenAIBatchesError:
            assert list(tmp_path.iterdir()) == []
        else:
            assert (tmp_path / "out").read_bytes() == b"abc"[:size]
            assert not length.isdecimal() or len(length) > 18, "a length that can be checked was not"


# --- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "unix:///x"])
def test_a_redirect_leads_to_http_or_nowhere(target: str, tmp_path: Path) -> None:
    with (
        ScriptedServer(Answer(302, headers={"Location": target})) as server,
        connect(server.base_url, attempts=1) as client,
        pytest.raises((InvalidInputError, APIConnectionError)),
    ):
        client.download_file("file-1", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_to_another_host_gets_no_cookie_either(tmp_path: Path) -> None:
    with ScriptedServer(Answer(200, b"{}\n")) as other:
        elsewhere = f"http://localhost:{other.host.rpartition(':')[2]}/blob"
        away = Answer(302, headers={"Location": elsewhere, "Set-Cookie": "gateway=secret-session"})
        with ScriptedServer(away) as server, connect(server.base_url) as client:
            client.download_file("file-1", tmp_path / "out")
    assert not {"Cookie", "Authorization"} & set(other.requests[0].headers)


# --- texts ------------------------------------------------------------------------------------------------------------

FORGED = "x\n2026-01-01 CRITICAL all is lost\r\x1b[31mred\x1b]8;;http://127.0.0.1\x07\u202eback\u2028end"


def refused_with(answer: Answer) -> APIStatusError:
    with (
        ScriptedServer(answer) as server,
        connect(server.base_url) as client,
        pytest.raises(APIStatusError) as raised,
    ):
        client.retrieve_batch("batch_1")
    return raised.value


@pytest.mark.parametrize(
    "error",
    [{"message": FORGED}, {"message": "m", "code": FORGED}, {"message": "m", "param": FORGED}, FORGED],
    ids=["message", "code", "param", "text"],
)
def test_a_refusal_is_one_line_that_commands_no_terminal(error: Any) -> None:
    refused = refused_with(as_json({"error": error}, 400))
    assert str(refused).isprintable()
    assert "all is lost" in str(refused)


def test_a_header_cannot_forge_a_line_of_a_log() -> None:
    folded = Answer(400, headers={"x-request-id": "a\r\n 2026-01-01 CRITICAL all is lost \x1b[31m"})
    refused = refused_with(folded)
    assert str(refused).isprintable()
    assert refused.request_id is not None
    assert refused.request_id.isprintable()


def test_errors_of_a_batch_are_one_line_each_and_short() -> None:
    entries = [{"code": FORGED, "message": f"{FORGED}{'x' * 100_000}", "param": FORGED, "line": 1}, FORGED]
    batch = Batch.from_api({"id": FORGED, "status": "failed", "errors": {"data": entries}, "model": FORGED})
    said = str(BatchFailedError(batch))
    lines = said.split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert len(said) < 10_000
    assert (batch.id + (batch.model or "")).isprintable()


def test_a_status_that_nobody_knows_forges_nothing() -> None:
    assert Batch.from_api({"id": "b", "status": FORGED}).status.isprintable()


@pytest.mark.parametrize("filler", ["x", "<", "<p>", " "], ids=repr)
@pytest.mark.parametrize("at", [*range(270, 300, 7), *range(1_960, 2_000, 7)])
def test_no_half_of_a_key_is_left_where_a_message_is_cut(filler: str, at: int) -> None:
    echo = (filler * at)[:at] + API_KEY + "x" * 500
    for answer in (Answer(500, echo.encode()), as_json({"error": {"message": echo}}, 400)):
        assert API_KEY[:5] not in str(refused_with(answer))


def test_an_error_page_of_brackets_is_read_quickly() -> None:
    began = time.monotonic()
    refused_with(Answer(400, b"<" * 65_536))
    assert time.monotonic() - began < 2


def test_a_key_is_not_shown_by_who_names_it_without_its_scheme() -> None:
    answer = as_json({"error": {"message": "token gateway-token-1234 is wrong"}}, 401)
    with (
        ScriptedServer(answer) as server,
        connect(server.base_url, headers={"X-Gateway": "Bearer gateway-token-1234"}) as client,
        pytest.raises(APIStatusError, match=r"token \*\*\* is wrong"),
    ):
        client.retrieve_batch("batch_1")


def test_an_echo_in_the_request_id_shows_no_key() -> None:
    assert API_KEY not in str(refused_with(Answer(400, headers={"x-request-id": f"req-{API_KEY}"})))


def test_requests_reads_no_body_of_a_redirect_behind_our_back() -> None:
    """A change in requests that reads it by another way would show here first."""
    with (
        HostileServer(flood(head("302 Found", AWAY), 300)) as server,
        connect(server.base_url, attempts=1) as client,
        pytest.raises(InvalidResponseError, match="was redirected"),
    ):
        client.retrieve_batch("batch_1")
    assert server.sent < 32 * MIB
