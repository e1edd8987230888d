"""Starting DAGs when batches end: a trigger for Airflow's ``AssetWatcher``."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias
from weakref import WeakSet

import msgspec
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.models import TERMINAL_STATUSES, Batch
from airflow_provider_openai_batches.hooks.openai_batches import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from airflow_provider_openai_batches.survey import Cursor, Survey

_Wanted: TypeAlias = str | Collection[str] | None

_DELIVERED_WITHIN_S = 3.0
"""The triggerer hands events on every second. What is noted as told before that is lost if the triggerer dies."""


class OpenAIBatchFinishedTrigger(BaseEventTrigger):
    """Fires once for each batch that reaches a terminal state, whoever made it::

        ended = Asset("labels_ended", watchers=[AssetWatcher(name="ended", trigger=OpenAIBatchFinishedTrigger())])

        @dag(schedule=[ended])

    It begins with the batches that are not over when it first runs. From Airflow 3.3 on it notes in the asset's state
    store what it has told, so that a triggerer that restarts goes on where it stopped: also with what ended meanwhile,
    and without telling anything twice. (A triggerer that is killed within seconds of an event may repeat that one.)
    Before, it begins anew with each start of a triggerer. One asset per trigger: assets whose triggers are equal share
    one, which then cannot note anything.

    The event's ``extra["payload"]`` holds ``conn_id``, ``batch_id``, ``status``, ``endpoint``, ``model``, ``metadata``,
    ``request_counts``, ``created_at`` and ``ended_at``.

    Only batches for which every filter holds count.

    :param conn_id: Airflow connection
    :param statuses: of ``completed``, ``failed``, ``expired`` and ``cancelled``; default: all
    :param endpoint: such as ``/v1/responses``; default: any
    :param metadata: what the batch's metadata must have, by key: a value, a list of values, or None for any value;
        also as pairs of key and value
    :param dag_id: the DAG that made the batch; default: any, and those made outside Airflow
    :param poll_interval: seconds between looks; triggers with the same one share their looks (Airflow 3.3)
    """

    _readers: ClassVar[WeakSet[OpenAIBatchFinishedTrigger]] = WeakSet()
    """Those of this process that know their cursor."""

    def __init__(
        self,
        *,
        conn_id: str = DEFAULT_CONN_ID,
        statuses: Collection[str] | None = None,
        endpoint: str | None = None,
        metadata: Mapping[str, _Wanted] | Iterable[tuple[str, _Wanted]] | None = None,
        dag_id: str | None = None,
        poll_interval: float = 60,
    ) -> None:
        super().__init__()
        known = ", ".join(sorted(TERMINAL_STATUSES))
        if isinstance(statuses, str) or not TERMINAL_STATUSES.issuperset(statuses or ()):
            raise InvalidInputError("statuses", f"expected a list of these: {known}; got {statuses!r}.")
        if poll_interval <= 0:
            raise InvalidInputError("poll_interval", f"expected a positive number of seconds, got {poll_interval!r}.")
        self.conn_id = conn_id
        self.statuses = sorted(map(str, statuses or TERMINAL_STATUSES))
        self.endpoint = endpoint
        self.metadata = {key: _values(wanted) for key, wanted in sorted(dict(metadata or ()).items())}
        self.dag_id = dag_id
        self.poll_interval = float(poll_interval)
        self._cursor: Cursor | None = None
        self._saved: Cursor | None = None
        self._store: Any = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer rebuilds this trigger from; no secret is among it.

        Nor is a mapping: Airflow 3.2 hands a watcher `{"Encoding.VAR": {...}, "Encoding.TYPE": "dict"}` in its place.
        """
        return (
            f"{type(self).__module__}.{type(self).__name__}",
            {
                "conn_id": self.conn_id,
                "statuses": self.statuses,
                "endpoint": self.endpoint,
                "metadata": [list(pair) for pair in self.metadata.items()],
                "dag_id": self.dag_id,
                "poll_interval": self.poll_interval,
            },
        )

    def shared_stream_key(self) -> tuple[str, str, float]:
        """Return what triggers have in common that share one poll loop."""
        return self.serialize()[0], self.conn_id, self.poll_interval

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncGenerator[Survey]:
        """Look for batches again and again, as far back as any of the triggers that share this needs."""
        # Parsing a DAG file imports this module, and needs no HTTP.
        from airflow_provider_openai_batches.survey import surveys

        one = cls(**kwargs)

        def readers() -> list[Cursor | None]:
            return [each._cursor for each in cls._readers if each.shared_stream_key() == one.shared_stream_key()]

        async with aclosing(surveys(one.conn_id, one.poll_interval, readers)) as stream:
            async for survey in stream:
                yield survey

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Survey]) -> AsyncGenerator[TriggerEvent]:
        """Yield an event for each batch that has ended since the cursor."""
        from airflow_provider_openai_batches.survey import Cursor

        self._cursor = self._saved = await self._load()
        self._readers.add(self)
        try:
            async for survey in shared_stream:
                told: list[Batch] = []
                if self._cursor is None:
                    # What is over already is not told.
                    self._cursor = Cursor().after(survey, self.matches)[0] if survey.is_first else None
                elif self._cursor.is_served_by(survey):
                    self._cursor, ended = self._cursor.after(survey, self.matches)
                    told = [batch for batch in ended if batch.status in self.statuses]
                for batch in told:
                    yield TriggerEvent(self._payload(batch))
                if told:
                    await asyncio.sleep(_DELIVERED_WITHIN_S)
                if self._cursor is not None and self._cursor != self._saved:
                    await self._save(self._cursor)
        finally:
            self._readers.discard(self)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Do the same in a loop of this trigger's own, where Airflow does not share them."""
        async with (
            aclosing(self.open_shared_stream(self.serialize()[1])) as stream,
            aclosing(self.filter_shared_stream(stream)) as events,
        ):
            async for event in events:
                yield event

    def matches(self, batch: Batch) -> bool:
        """Whether all filters but that of the statuses hold for a batch; that does not change in its life."""
        return (
            (self.endpoint is None or batch.endpoint == self.endpoint)
            and (self.dag_id is None or batch.metadata.get("airflow_dag_id") == self.dag_id)
            and all(
                key in batch.metadata and (values is None or batch.metadata[key] in values)
                for key, values in self.metadata.items()
            )
        )

    def _payload(self, batch: Batch) -> dict[str, Any]:
        shown = batch.to_dict()
        names = ("status", "endpoint", "model", "metadata", "request_counts", "created_at")
        return {
            "conn_id": self.conn_id,
            "batch_id": batch.id,
            **{name: shown[name] for name in names},
            "ended_at": shown.get(f"{batch.status}_at"),
        }

    @property
    def _key(self) -> str:
        """Under which the cursor is kept: another filter begins anew, another interval does not."""
        wanted = {**self.serialize()[1], "metadata": self.metadata}
        del wanted["poll_interval"]
        return f"openai_batches.{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]}"

    async def _load(self) -> Cursor | None:
        """Return the cursor of the triggerer that ran this before; None if there is none."""
        from airflow_provider_openai_batches.survey import Cursor

        self._store = getattr(self, "asset_state_store", None)  # Airflow 3.3 gives one.
        while self._store is not None:
            try:
                kept = await self._store.aget(self._key)
            except ValueError:
                self._store = None
                self.log.warning(
                    "Several assets have a watcher like this one, so that what it tells cannot be noted, and a restart "
                    "begins anew. Give each asset a watcher that differs in a filter or the interval."
                )
            except Exception:
                # Beginning anew would leave out what ended meanwhile.
                self.log.exception("What was told before cannot be read, trying again.")
                await asyncio.sleep(self.poll_interval)
            else:
                try:
                    return None if kept is None else Cursor.from_json(kept)
                except msgspec.ValidationError as error:  # Not every version makes it a ValueError.
                    self.log.warning("What was told before is not understood, beginning anew: %s", error)
                    return None
        return None

    async def _save(self, cursor: Cursor) -> None:
        try:
            if self._store is not None:
                await self._store.aset(self._key, cursor.to_json())
        except Exception:
            # The next look tries again; only what was told until then would be repeated by a restart.
            self.log.warning("What was told could not be noted.", exc_info=True)
        else:
            self._saved = cursor


def _values(value: _Wanted) -> list[str] | None:
    """Return the values that are allowed; None for any."""
    return [value] if isinstance(value, str) else None if value is None else sorted(value)
