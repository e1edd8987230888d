"""One connection's batches, for many browsers at once.

An API server has few threads. A page that refreshes itself in fifty browsers must neither call OpenAI fifty times, nor
take those threads along when OpenAI hangs: answers are shared for two seconds, calls are tried once and within ten
seconds, and at most a few wait for one connection at a time.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from airflow.configuration import conf
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.secrets.environment_variables import CONN_ENV_PREFIX, EnvironmentVariablesBackend

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import InvalidInputError, NotFoundError, OpenAIBatchesError
from airflow_provider_openai_batches.api.listing import PAGE_SIZE
from airflow_provider_openai_batches.api.models import Batch, File
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.hooks.connection import (
    client_settings,
    connection_extra,
    connection_prices,
)
from airflow_provider_openai_batches.hooks.openai_batches import DEFAULT_CONN_ID
from airflow_provider_openai_batches.jobs.pricing import Price
from airflow_provider_openai_batches.links import dashboard_url
from airflow_provider_openai_batches.plugin import database
from airflow_provider_openai_batches.plugin.cursors import Cursors
from airflow_provider_openai_batches.plugin.errors import PageError

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECTION_TYPES = ("openai_batches", "openai")
_CALL_WITHIN_S = 10.0
_ANSWERS_FRESH_S = 2.0
_SETTINGS_FRESH_S = 10.0
_CALLERS_AT_ONCE = 8
_PATIENCE_S = 2.0
_MOST_KEPT = 64


class Shared(Generic[T]):
    """Answers that are good for a moment. Who asks while another fetches the same waits for it, failure included.

    :param fresh_s: seconds for which an answer, or a failure, is good
    """

    def __init__(self, fresh_s: float) -> None:
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._answers: OrderedDict[Hashable, _Answer[T]] = OrderedDict()

    def get(self, key: Hashable, fetch: Callable[[], T]) -> T:
        """Return the answer for a key, from ``fetch`` if there is no fresh one."""
        with self._lock:
            answer = self._answers.setdefault(key, _Answer())
            self._answers.move_to_end(key)
            if len(self._answers) > _MOST_KEPT:
                self._answers.popitem(last=False)
        with answer.lock:
            if time.monotonic() >= answer.good_until:
                answer.error = None
                try:
                    answer.value = fetch()
                except (OpenAIBatchesError, PageError, AirflowNotFoundException) as error:
                    answer.error = error
                answer.good_until = time.monotonic() + self._fresh_s
            if answer.error is not None:
                raise answer.error.with_traceback(None)
            return answer.value

    def forget(self) -> None:
        """Fetch everything anew from now on."""
        with self._lock:
            self._answers.clear()


class _Answer(Generic[T]):
    value: T
    error: Exception | None = None
    good_until = 0.0

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Account:
    """A connection as the page uses it.

    :param conn_id: of one of our types
    :raises PageError: it is of another, or cannot be used
    """

    def __init__(self, conn_id: str) -> None:
        self._settings, self.prices = _read(conn_id)
        # An identity has no key that all API servers know; they share this one.
        self.cursors = Cursors(self._settings.api_key or conf.get("api", "secret_key"))
        self._pages: Shared[list[Batch]] = Shared(_ANSWERS_FRESH_S)
        self._batches: Shared[Batch] = Shared(_ANSWERS_FRESH_S)
        self._files: Shared[Sequence[File | OpenAIBatchesError]] = Shared(_ANSWERS_FRESH_S)
        self._callers = _callers_of(conn_id)

    def page(self, after: str | None) -> list[Batch]:
        """Return up to 100 batches, newest first.

        :param after: the batch before the first one; default: begin with the newest
        """

        def fetch() -> list[Batch]:
            with BatchClient(self._settings, attempts=1) as client:
                return list(client.list_batches(limit=PAGE_SIZE, after=after))

        with self._turn():
            return self._pages.get(after, fetch)

    def batch(self, batch_id: str) -> Batch:
        """Return one batch."""

        def fetch() -> Batch:
            with BatchClient(self._settings, attempts=1) as client:
                return client.retrieve_batch(batch_id)

        with self._turn():
            return self._batches.get(batch_id, fetch)

    def files(self, file_ids: tuple[str, ...]) -> Sequence[File | OpenAIBatchesError]:
        """Return files of one batch, or why one cannot be seen: a key may do without access to files.

        :param file_ids: shared with whoever asks for the same ones
        """

        def fetch() -> Sequence[File | OpenAIBatchesError]:
            found: list[File | OpenAIBatchesError] = []
            with BatchClient(self._settings, attempts=1) as client:
                for file_id in file_ids:
                    try:
                        found.append(client.retrieve_file(file_id))
                    except NotFoundError as error:
                        found.append(error.with_traceback(None))  # It was deleted; the others may be there.
                    except OpenAIBatchesError as error:
                        # The others would fare no better, and somebody waits.
                        found += [error.with_traceback(None)] * (len(file_ids) - len(found))
                        break
            return found

        with self._turn():
            return self._files.get(file_ids, fetch)

    @contextmanager
    def client(self) -> Iterator[BatchClient]:
        """Give a client for calls whose answers are nobody else's."""
        with self._turn(), BatchClient(self._settings, attempts=1) as client:
            yield client

    def changed(self) -> None:
        """Look anew from now on, after a write."""
        self._pages.forget()
        self._batches.forget()
        self._files.forget()

    def dashboard_url(self, batch_id: str) -> str | None:
        """Return where OpenAI shows a batch; None for another service."""
        return dashboard_url(self._settings.base_url, batch_id)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._callers.acquire(timeout=_PATIENCE_S):
            raise PageError(503, "busy", "The service answers slowly and others are waiting for it. Try again shortly.")
        try:
            yield
        finally:
            self._callers.release()


_callers: WeakValueDictionary[str, threading.BoundedSemaphore] = WeakValueDictionary()
_callers_lock = threading.Lock()


def _callers_of(conn_id: str) -> threading.BoundedSemaphore:
    """Return what bounds a connection's callers. It outlives an account that is replaced while some still wait in it.

    Kept as long as an account holds it, and so no more of them than accounts that are kept or in use.
    """
    with _callers_lock:
        return _callers.setdefault(conn_id, threading.BoundedSemaphore(_CALLERS_AT_ONCE))


_accounts: Shared[Account] = Shared(_SETTINGS_FRESH_S)


def account(conn_id: str) -> Account:
    """Return a connection's account. The caller's permission to read it has been checked.

    :raises AirflowNotFoundException: there is no such connection
    """
    return _accounts.get(conn_id, lambda: Account(conn_id))


def forget_all() -> None:
    """Read every connection anew from now on."""
    _accounts.forget()


def connections() -> Mapping[str, str]:
    """Return the types of all connections of ours that can be found, by id.

    A secrets backend cannot be asked for its connections; it is asked for the default one.
    """
    found = database.connections_of(CONNECTION_TYPES)
    backend = EnvironmentVariablesBackend()
    for name in os.environ:
        if name.startswith(CONN_ENV_PREFIX):
            conn_id = name.removeprefix(CONN_ENV_PREFIX).lower()
            try:
                connection = backend.get_connection(conn_id)
            except Exception:  # noqa: BLE001 - whatever is in there, it is no connection of ours
                log.debug("%s holds no connection.", name)
                continue
            if connection is not None and connection.conn_type in CONNECTION_TYPES:
                found[conn_id] = connection.conn_type
    if DEFAULT_CONN_ID not in found:
        try:
            conn_type = database.connection(DEFAULT_CONN_ID).conn_type
        except (AirflowNotFoundException, ValueError):
            return found
        if conn_type in CONNECTION_TYPES:
            found[DEFAULT_CONN_ID] = conn_type
    return found


def _read(conn_id: str) -> tuple[ClientSettings, Mapping[str, Price]]:
    try:
        conn = database.connection(conn_id)
        # Another type's password is not for sending to its host as an API key.
        if conn.conn_type not in CONNECTION_TYPES:
            kinds = " or ".join(CONNECTION_TYPES)
            raise PageError(404, "no_connection", f"There is no connection {conn_id} of type {kinds}.")
        settings = client_settings(conn, connection_extra(conn))
    except ValueError as error:
        raise PageError(502, "bad_connection", f"The connection cannot be used: {error}") from error
    settings = dataclasses.replace(settings, timeout_s=min(settings.timeout_s, _CALL_WITHIN_S))
    try:
        return settings, connection_prices(conn)
    except InvalidInputError as error:
        log.warning("Costs are not shown: %s", error)
        return settings, {}
