"""Webhook secrets of connections, looked up seldom: anybody can call the endpoint, with any connection's name.

A secrets backend may be slow, and may cost money per look-up. So an answer is good for ten seconds, also the answer
that there is none, and there are twenty look-ups in ten seconds at most. Whoever calls beyond that meets what was
known, or a secret that nobody has: refused like a forgery, the real OpenAI calls again.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_openai_batches.hooks.openai_batches import connection_extra
from airflow_provider_openai_batches.plugin import database
from airflow_provider_openai_batches.plugin.account import CONNECTION_TYPES

log = logging.getLogger(__name__)

NOBODYS_SECRET = secrets.token_hex()
"""What no sender knows. Calls for connections without a secret are checked with it, and fail like any forgery."""

_FRESH_S = 10.0
_LOOK_UPS = 20
_STALE_S = 300.0
"""While there are too many calls, a changed secret may be in use so much longer."""

_MOST_KEPT = 1_000
"""More than can be looked up while one of them is of use, so that no flood drives out another's."""

_LOOK_UP_WITHIN_S = 30.0


class WebhookSecrets:
    """The secrets by connection. One that is not there takes the same way and time as one that is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, Future[str]]] = OrderedDict()
        self._look_ups: deque[float] = deque(maxlen=_LOOK_UPS)

    def of(self, conn_id: str) -> str:
        """Return a connection's secret; one that nobody has if it has none, is not there, or was not looked up."""
        mine: Future[str] | None = None
        with self._lock:
            now = time.monotonic()
            since, answer = self._kept.get(conn_id, (-math.inf, None))
            if now - since >= _FRESH_S and self._may_look_up(now):
                answer = mine = Future()
                since = now
                self._kept[conn_id] = now, mine
                self._kept.move_to_end(conn_id)
                if len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
        if mine is not None:
            try:
                mine.set_result(_look_up(conn_id))
            except BaseException as error:
                mine.set_exception(error)
                raise
        if answer is None or now - since >= _STALE_S:
            return NOBODYS_SECRET
        return answer.result(timeout=_LOOK_UP_WITHIN_S)

    def forget(self) -> None:
        """Look every secret up anew from now on."""
        with self._lock:
            self._kept.clear()
            self._look_ups.clear()

    def _may_look_up(self, now: float) -> bool:
        if len(self._look_ups) == _LOOK_UPS and now - self._look_ups[0] < _FRESH_S:
            return False
        self._look_ups.append(now)
        return True


def _look_up(conn_id: str) -> str:
    try:
        connection = database.connection(conn_id)
        if connection.conn_type not in CONNECTION_TYPES:
            return NOBODYS_SECRET
        secret = connection_extra(connection).get("webhook_secret")
    except AirflowNotFoundException:
        return NOBODYS_SECRET
    except ValueError as error:
        log.error("Webhooks for a connection are refused: %s", error)
        return NOBODYS_SECRET
    return str(secret) if secret else NOBODYS_SECRET
