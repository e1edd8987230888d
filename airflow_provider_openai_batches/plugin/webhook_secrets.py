"""Webhook secrets of connections, looked up seldom: anybody can call the endpoint, with any connection's name.

A secrets backend may be slow, and may cost money per look-up. So an answer is good for ten seconds, also the answer
that there is none, and there are twenty look-ups in ten seconds at most for names that nobody has a secret for.
Whoever calls beyond that meets a secret that nobody has: refused like a forgery, the real OpenAI calls again.

A connection that has had a secret is looked up apart from those twenty: no flood of names, however long, can turn its
webhooks away. While its look-up fails, the secret that was known is used for five minutes.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_openai_batches.api.webhooks import WebhookSecretError, check_secret
from airflow_provider_openai_batches.hooks.connection import connection_extra
from airflow_provider_openai_batches.plugin import database
from airflow_provider_openai_batches.plugin.account import CONNECTION_TYPES
from airflow_provider_openai_batches.plugin.errors import PageError

log = logging.getLogger(__name__)

NOBODYS_SECRET = secrets.token_hex()
"""What no sender knows. Calls for connections without a secret are checked with it, and fail like any forgery."""

_FRESH_S = 10.0
_LOOK_UPS = 20
_STALE_S = 300.0
"""While look-ups fail, a changed secret may be in use so much longer."""

_MOST_KEPT = 1_000
"""Of either kind. Names without a secret cannot drive out connections that have one."""

_LOOK_UP_WITHIN_S = 30.0


def _look_up(conn_id: str) -> str:
    """Return a connection's secret; one that nobody has if it has none that could be used."""
    try:
        connection = database.connection(conn_id)
        if connection.conn_type not in CONNECTION_TYPES:
            return NOBODYS_SECRET
        secret = connection_extra(connection).get("webhook_secret")
        if not secret:
            return NOBODYS_SECRET
        check_secret(str(secret))
    except AirflowNotFoundException:
        return NOBODYS_SECRET
    except WebhookSecretError as error:
        log.error("Webhooks for connection %s are refused: %s", conn_id, error)
        return NOBODYS_SECRET
    except ValueError as error:
        log.error("Webhooks for a connection are refused: %s", error)
        return NOBODYS_SECRET
    return str(secret)


class WebhookSecrets:
    """The secrets of all connections. One that is not there takes the same way and time as one that is.

    :param look_up: finds a connection's secret, or returns :data:`NOBODYS_SECRET`; what it raises is logged
    """

    def __init__(self, look_up: Callable[[str], str] = _look_up) -> None:
        self._look_up = look_up
        self._lock = threading.Lock()
        # Apart, so that who has had a secret is not forgotten for all those who have none.
        self._known: OrderedDict[str, _LookUp] = OrderedDict()
        self._others: OrderedDict[str, _LookUp] = OrderedDict()
        self._look_ups: deque[float] = deque(maxlen=_LOOK_UPS)

    def of(self, conn_id: str) -> str:
        """Return a connection's secret; one that nobody has if it has none, is not there, or was not looked up.

        :raises PageError: it could not be looked up, and none is known
        """
        mine = False
        with self._lock:
            now = time.monotonic()
            look_up = self._known.get(conn_id) or self._others.get(conn_id)
            if look_up is None or now - look_up.begun >= _FRESH_S:
                mine = conn_id in self._known or self._may_look_up(now)
                if mine:
                    look_up = _LookUp(now, None if look_up is None else look_up.best())
                    self._keep(self._known if conn_id in self._known else self._others, conn_id, look_up)
        if look_up is None:
            return NOBODYS_SECRET
        if mine:
            self._do(look_up, conn_id)
        found = look_up.wait()
        if found is None or (found.secret != NOBODYS_SECRET and now - found.at >= _STALE_S):
            # A new error for each who asks: one that is raised again and again keeps all their frames.
            raise PageError(503, "no_secret_now", "The connection's webhook_secret cannot be looked up now. Try again.")
        return found.secret

    def forget(self) -> None:
        """Look every secret up anew from now on."""
        with self._lock:
            self._known.clear()
            self._others.clear()
            self._look_ups.clear()

    def _do(self, look_up: _LookUp, conn_id: str) -> None:
        found = None
        try:
            found = _Found(self._look_up(conn_id), look_up.begun)
            if found.secret != NOBODYS_SECRET:
                with self._lock:
                    newest = self._others.pop(conn_id, look_up)
                    if conn_id not in self._known:
                        self._keep(self._known, conn_id, newest)
        except Exception:
            log.exception("The webhook_secret of connection %s cannot be looked up.", conn_id)
        finally:
            look_up.done.set_result(found)

    def _may_look_up(self, now: float) -> bool:
        if len(self._look_ups) == _LOOK_UPS and now - self._look_ups[0] < _FRESH_S:
            return False
        self._look_ups.append(now)
        return True

    @staticmethod
    def _keep(kept: OrderedDict[str, _LookUp], conn_id: str, look_up: _LookUp) -> None:
        kept[conn_id] = look_up
        kept.move_to_end(conn_id)
        if len(kept) > _MOST_KEPT:
            kept.popitem(last=False)


class _Found(NamedTuple):
    """What a look-up has brought, and when it began."""

    secret: str
    at: float


class _LookUp:
    """One look-up of a secret, which all who ask meanwhile wait for.

    :param begun: when
    :param before: what was known by then
    """

    def __init__(self, begun: float, before: _Found | None) -> None:
        self.begun, self._before = begun, before
        self.done: Future[_Found | None] = Future()

    def best(self) -> _Found | None:
        """Return what is known by now."""
        return (self.done.result() if self.done.done() else None) or self._before

    def wait(self) -> _Found | None:
        """Return what it brings; what was known before if it fails, or takes too long."""
        try:
            return self.done.result(timeout=_LOOK_UP_WITHIN_S) or self._before
        except TimeoutError:
            return self._before
