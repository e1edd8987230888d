"""Answers that no well-meaning service gives: they must not hold the caller's memory or thread."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from urllib3 import HTTPConnectionPool, PoolManager
from urllib3.connection import HTTPConnection

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import APIConnectionError, InvalidResponseError, ServerError
from tests.api.connecting import connect
from tests.api.scripted_server import Answer, ScriptedServer
from tests.security.hostile import HostileServer, drip

BATCH = b'{"id": "batch_1", "object": "batch", "status": "in_progress"}'


def test_an_endless_answer_is_cut_off() -> None:
    endless = Answer(chunks=(b" " * (1 << 20) for _ in range(1000)))
    with ScriptedServer(endless) as server, connect(server.base_url) as client:
        with pytest.raises(InvalidResponseError, match=r"GET /batches/batch_1: the answer is longer than 67,108,864"):
            client.retrieve_batch("batch_1")
        assert len(server.requests) == 1


def test_a_compressed_bomb_is_cut_off() -> None:
    bomb = Answer(body=gzip.compress(b" " * (80 << 20)), headers={"Content-Encoding": "gzip"})
    too_long = pytest.raises(InvalidResponseError, match="is longer than")
    with ScriptedServer(bomb) as server, connect(server.base_url) as client, too_long:
        client.retrieve_batch("batch_1")


def test_an_answer_that_drips_is_given_up_in_time() -> None:
    over = threading.Event()

    def drip() -> Iterator[bytes]:
        while not over.wait(0.01):
            yield b" "

    with ScriptedServer(Answer(chunks=drip())) as server, connect(server.base_url, attempts=1, timeout_s=0.2) as client:
        with pytest.raises(APIConnectionError, match=r"timed out: .*not complete after 0 seconds") as caught:
            client.retrieve_batch("batch_1")
        over.set()
    assert caught.value.transient


def test_a_refusal_that_drips_is_told_in_time() -> None:
    over = threading.Event()

    def drip() -> Iterator[bytes]:
        while not over.wait(0.01):
            yield b"no "

    refusal = Answer(503, chunks=drip())
    with ScriptedServer(refusal) as server, connect(server.base_url, attempts=1, timeout_s=0.2) as client:
        with pytest.raises(ServerError, match="no no"):
            client.retrieve_batch("batch_1")
        over.set()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=BATCH),
        Answer(chunks=[BATCH[:7], BATCH[7:]]),
        Answer(body=gzip.compress(BATCH), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["with a length", "in chunks", "compressed"],
)
def test_one_connection_serves_call_after_call(answer: Answer) -> None:
    with ScriptedServer(answer, answer) as server, connect(server.base_url) as client:
        assert [client.retrieve_batch("batch_1").status for _ in range(2)] == ["in_progress"] * 2
        assert len({request.port for request in server.requests}) == 1


class Tunnel(HTTPConnection):
    """A connection as SOCKS proxies have them: of a class of its own, which takes what no other takes."""

    used: ClassVar[list[str]] = []

    def __init__(self, *args: Any, _socks_options: dict[str, Any], **options: Any) -> None:
        self._leads_to = _socks_options["leads_to"]
        super().__init__(*args, **options)

    def connect(self) -> None:
        self.used.append(self.host)
        self.sock = socket.create_connection(("127.0.0.1", self._leads_to), timeout=self.timeout)


class TunnelPool(HTTPConnectionPool):
    ConnectionCls = Tunnel


@pytest.fixture
def through_tunnel(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], BatchClient]:
    """Make a client whose proxy leads to a server here: with ``ALL_PROXY=socks5h://...``, but without PySocks."""
    proxy = "socks5h://127.0.0.1:9"
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setattr(Tunnel, "used", [])

    def make(base_url: str) -> BatchClient:
        manager = PoolManager(_socks_options={"leads_to": urlsplit(base_url).port})
        manager.pool_classes_by_scheme = {"http": TunnelPool}
        client = connect("http://far.example/v1", attempts=1, timeout_s=0.5)
        adapter: Any = client._session._session.get_adapter("http://far.example/")
        adapter.proxy_manager[proxy] = manager
        return client

    return make


def test_a_proxy_keeps_its_own_connections(through_tunnel: Callable[[str], BatchClient]) -> None:
    answer = Answer(body=BATCH)
    with ScriptedServer(answer, answer) as server, through_tunnel(server.base_url) as client:
        assert [client.retrieve_batch("batch_1").status for _ in range(2)] == ["in_progress"] * 2
        assert len({request.port for request in server.requests}) == 1
    assert Tunnel.used == ["far.example"]


def test_a_head_that_drips_through_such_a_proxy_is_given_up_in_time(
    through_tunnel: Callable[[str], BatchClient],
) -> None:
    late = pytest.raises(APIConnectionError, match=r"to far\.example timed out")
    with HostileServer(drip(b"HTTP/1.1 200 ", b"y")) as server, through_tunnel(server.base_url) as client, late:
        client.retrieve_batch("batch_1")
