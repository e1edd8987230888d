"""A local HTTP server that plays a script: for answers, and lack of answers, that no emulator should give."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from requests.structures import CaseInsensitiveDict


@dataclasses.dataclass(frozen=True)
class Request:
    """What the client sent."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes
    port: int
    """The client's, which tells connections apart."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    :param cut_at: send only so many bytes of the body, under the full ``Content-Length``, then close
    :param chunks: send the body in these chunks as they come, without a ``Content-Length``
    :param reset: instead of all that, reset the connection
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cut_at: int | None = None
    chunks: Iterable[bytes] = ()
    reset: bool = False


RESET = Answer(reset=True)
Step = Answer | Callable[[Request], Answer]


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """Answer with JSON; header names are written with underscores."""
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **names})


class ScriptedServer:
    """Plays one step per request, in order, and remembers the requests. A request after the last step gets a 418.

    :param steps: answers, or functions from the request to its answer; may be endless
    """

    def __init__(self, *steps: Step, endless: Iterable[Step] = ()) -> None:
        self.requests: list[Request] = []
        self._steps = self._play(steps, endless)
        self._one_step = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.base_url = f"http://{self.host}/v1"

    @staticmethod
    def _play(steps: Iterable[Step], endless: Iterable[Step]) -> Iterator[Step]:
        yield from steps
        yield from endless

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def calls(self, method: str = "", path: str = "") -> list[Request]:
        """Requests with this method and a path that contains this."""
        return [request for request in self.requests if method in request.method and path in request.path]

    def answer(self, request: Request) -> Answer:
        with self._one_step:
            self.requests.append(request)
            step = next(self._steps, Answer(418, b'{"error": {"message": "the script is over"}}'))
        return step if isinstance(step, Answer) else step(request)


def _handler(script: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *args: object) -> None:
            pass

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = CaseInsensitiveDict(self.headers.items())
            query = dict(parse_qsl(parts.query))
            request = Request(self.command, parts.path, query, headers, body, port=self.client_address[1])
            self._send(script.answer(request))

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815

        def _send(self, answer: Answer) -> None:
            if answer.reset:
                # Lingering for zero seconds turns the close into a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.chunks:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # Whoever has read enough hangs up.
                    for chunk in answer.chunks:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")
                return
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: answer.cut_at])
            if answer.cut_at is not None:
                self.close_connection = True

    return Handler
