"""A webhook endpoint hears of every batch that ends, in a form OpenAI's own SDK accepts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai import OpenAI

from airflow_provider_openai_batches.emulator import Emulator

from .batches import request, submit, wait_until

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


class Receiver:
    """An endpoint that refuses the first delivery and takes the rest."""

    def __init__(self) -> None:
        self.received: list[tuple[bytes, dict[str, str]]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((body, dict(self.headers.items())))
                self.send_response(500 if len(received) == 1 else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    endpoint = Receiver()
    thread = threading.Thread(target=endpoint.server.serve_forever, daemon=True)
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()


def test_ended_batches_are_told_signed_and_again_if_refused(receiver: Receiver) -> None:
    with Emulator(speed=0, webhook_url=receiver.url, webhook_secret=SECRET) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any", webhook_secret=SECRET)
        done = submit(client, [request(0)])
        emulator.advance(125)
        wait_until(lambda: len(receiver.received) == 2)
        failed = submit(client, [{"custom_id": "a"}])
        emulator.advance(3)
        wait_until(lambda: len(receiver.received) == 3)
    events: list[Any] = [client.webhooks.unwrap(body, headers) for body, headers in receiver.received]
    assert [(event.type, event.data.id) for event in events] == [
        ("batch.completed", done.id),
        ("batch.completed", done.id),
        ("batch.failed", failed.id),
    ]
    ids = [headers["webhook-id"] for _, headers in receiver.received]
    assert ids[0] == ids[1] != ids[2]
