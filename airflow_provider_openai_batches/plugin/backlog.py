"""Work that an answered request leaves behind, done by a few threads beside those of the API server."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Backlog(Generic[T]):
    """Pieces of work, oldest first. What is in it is lost when the process ends.

    :param work: does one piece; what it raises is logged
    :param threads: at most so many work at the same time; there are none while there is nothing to do
    :param most: pieces that wait; more are refused
    """

    def __init__(self, work: Callable[[T], None], *, threads: int, most: int) -> None:
        self._work = work
        self._most_threads, self._most = threads, most
        self._lock = threading.Lock()
        self._waiting: deque[T] = deque()
        self._threads = 0

    def add(self, piece: T) -> bool:
        """Leave a piece of work; return False if there is too much of it already."""
        with self._lock:
            if len(self._waiting) >= self._most:
                return False
            self._waiting.append(piece)
            self._see_to_it()
        return True

    def _see_to_it(self) -> None:
        if self._waiting and self._threads < self._most_threads:
            # A daemon: a server that ends does not wait for it.
            threading.Thread(target=self._run, name="openai-batches-backlog", daemon=True).start()
            self._threads += 1

    def _run(self) -> None:
        try:
            while (piece := self._next()) is not None:
                try:
                    self._work(piece[0])
                except Exception:
                    log.exception("Could not do what a request left behind: %s", piece[0])
        finally:
            with self._lock:
                self._threads -= 1
                # What was added since, or is left by work that ended its thread (SystemExit).
                self._see_to_it()

    def _next(self) -> tuple[T] | None:
        with self._lock:
            return (self._waiting.popleft(),) if self._waiting else None
