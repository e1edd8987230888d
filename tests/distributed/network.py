"""The way from Airflow to the service, which can be cut: a TCP proxy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from demo.processes import HOST

Result = TypeVar("Result")

CHUNK_BYTES = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Network:
    """Passes bytes on to a port, until it is cut: then it takes them and passes none, in either direction.

    Nobody is told: as with a pulled cable, connections stay open, new ones can be begun, and no answer comes. When the
    cut is over, whatever is left of those connections is reset.

    :param target_port: of 127.0.0.1
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network")
        self._open: set[asyncio.StreamWriter] = set()
        self._cut_at: float | None = None
        self.stranded = 0
        """Connections that were open, or were begun, while it was cut."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._in_loop(asyncio.start_server(self._accept, HOST, 0))
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._in_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def cut_for_s(self) -> float:
        """Seconds since it was cut; 0 if it is not."""
        return 0.0 if self._cut_at is None else time.monotonic() - self._cut_at

    def cut(self) -> None:
        """Let nothing pass from here on."""

        async def cut() -> None:
            self._cut_at = time.monotonic()
            # Two writers per connection: one to each side.
            self.stranded = len(self._open) // 2

        self._in_loop(cut())

    def mend(self) -> None:
        """Let new connections pass again, and reset the others."""

        async def mend() -> None:
            self._cut_at = None
            self._reset_all()

        self._in_loop(mend())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut_at is not None:
            self.stranded += 1
        self._open.add(writer)
        try:
            there, back = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            self._reset(writer)
            return
        self._open.add(back)
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(CHUNK_BYTES):
                if self._cut_at is None:
                    sink.write(chunk)
                    await sink.drain()
        if self._cut_at is None:
            self._open.discard(sink)
            sink.close()

    async def _close(self) -> None:
        self._server.close()
        self._reset_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _reset_all(self) -> None:
        for writer in list(self._open):
            self._reset(writer)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        self._open.discard(writer)
        connection: socket.socket | None = writer.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.transport.abort()

    def _in_loop(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)
