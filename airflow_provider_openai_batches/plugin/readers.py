"""Reads from a storage that may hang: the thread that waits is the API server's, the one that hangs is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

WITHIN_S = 5.0
MOST = 8
"""Threads that may hang at the same time, in one API server process."""

_lock = threading.Lock()
_running: dict[Hashable, tuple[float, Future[Any]]] = {}


def read_in_time(key: Hashable, read: Callable[[], T]) -> T:
    """Read, and wait for it for five seconds at most; whoever asks for the same meanwhile shares that reading.

    A reading that is overdue holds its thread until the storage answers, and nobody waits for it any more.

    :param key: what is read
    :raises TimeoutError: it takes longer; or at once: it did so before and still hangs, or too many others do
    """
    with _lock:
        now = time.monotonic()
        began, reading = _running.get(key) or (now, None)
        if reading is None:
            if len(_running) >= MOST:
                raise TimeoutError("too many readings hang")
            reading = Future()
            _running[key] = now, reading
            threading.Thread(target=_run, args=(key, read, reading), name="job-ledger", daemon=True).start()
    result: T = reading.result(timeout=max(began + WITHIN_S - now, 0))
    return result


def _run(key: Hashable, read: Callable[[], Any], reading: Future[Any]) -> None:
    result, error = None, None
    try:
        result = read()
    except BaseException as raised:  # noqa: BLE001 - raised where it is waited for
        error = raised
    # Before anybody has the answer: who then asks again gets a new one, and this one is not counted as one that hangs.
    with _lock:
        del _running[key]
    if error is None:
        reading.set_result(result)
    else:
        reading.set_exception(error)
