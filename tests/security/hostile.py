"""A server that speaks as much HTTP as it likes, and a watch on what that costs this process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import psutil

MIB = 1 << 20

Script = Callable[[], Iterable[bytes]]


class HostileServer:
    """Sends the pieces of a script to each caller, until the caller hangs up.

    :param script: gives the pieces of one answer
    """

    def __init__(self, script: Script) -> None:
        self.heads: list[bytes] = []
        """What came before the body of each request."""
        self.sent = 0
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._listen, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self._threads)

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._answer, args=(caller,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _answer(self, caller: socket.socket) -> None:
        caller.settimeout(5)
        with caller, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                received = caller.recv(65_536)
                if not received:
                    return
                head += received
            self.heads.append(head)
            for piece in self._script():
                if self._closed.is_set():
                    return
                caller.sendall(piece)
                self.sent += len(piece)


def head(status: str = "200 OK", *headers: str) -> bytes:
    """The beginning of an answer."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1")


def flood(beginning: bytes, mebibytes: int, block: bytes = b"x" * MIB) -> Script:
    """A beginning, and then as many blocks, of one MiB each unless given."""

    def pieces() -> Iterator[bytes]:
        yield beginning
        for _ in range(mebibytes):
            yield block

    return pieces


def drip(beginning: bytes, piece: bytes, every_s: float = 0.05) -> Script:
    """A beginning, and then one piece after the other for as long as anybody listens."""

    def pieces() -> Iterator[bytes]:
        yield beginning
        while True:
            time.sleep(every_s)
            yield piece

    return pieces


class MemoryWatch:
    """How much this process grew in the meantime, at most, in bytes."""

    grown = 0

    def __enter__(self) -> Self:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.grown = max(self.grown, self._process.memory_info().rss - self._before)
            if self._over.wait(0.005):
                return
