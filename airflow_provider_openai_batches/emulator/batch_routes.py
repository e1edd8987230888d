"""The Batches API: https://platform.openai.com/docs/api-reference/batch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from airflow_provider_openai_batches.emulator.clock import VirtualClock
from airflow_provider_openai_batches.emulator.dialects import Dialect, Intake
from airflow_provider_openai_batches.emulator.file_routes import life_in_range
from airflow_provider_openai_batches.emulator.http_faults import json_response
from airflow_provider_openai_batches.emulator.pages import integer_query, page
from airflow_provider_openai_batches.emulator.runner import COMPLETION_WINDOW_S, BatchRunner
from airflow_provider_openai_batches.emulator.store import Store, StoredBatch
from airflow_provider_openai_batches.emulator.wire import ApiError, new_hex_id

_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_JSON_NAMES = {
    dict: "an object",
    list: "an array",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


class BatchRoutes:
    """Create, look up, list and cancel batches."""

    def __init__(
        self, store: Store, clock: VirtualClock, runner: BatchRunner, dialect: Dialect, intake: Intake
    ) -> None:
        self._store = store
        self._clock = clock
        self._runner = runner
        self._dialect = dialect
        self._intake = intake
        self._last_seen: dict[str, dict[str, Any]] = {}

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """The routes, below ``prefix``."""
        return [
            web.post(f"{prefix}/batches", self._create),
            web.get(f"{prefix}/batches", self._list, allow_head=False),
            web.get(f"{prefix}/batches/{{batch_id}}", self._retrieve, allow_head=False),
            web.post(f"{prefix}/batches/{{batch_id}}/cancel", self._cancel),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        try:
            given = await request.json()
        except (ValueError, RecursionError) as error:
            raise ApiError(400, "We could not parse the JSON body of your request.") from error
        if not isinstance(given, Mapping):
            raise ApiError(400, "The body of your request must be a JSON object.")
        file_id, endpoint, life = _checked(given, self._dialect)
        file = self._store.file(file_id, now=self._clock.now())
        self._intake.check(file_id)
        purpose = self._dialect.purpose
        if file is not None and file.purpose != purpose:
            text = f"Invalid file purpose: '{file.purpose}'. The input file of a batch must have purpose '{purpose}'."
            raise ApiError(400, text, param="input_file_id", code="invalid_value")
        now, elapsed = self._clock.now(), self._clock.elapsed()
        batch = StoredBatch(
            id=new_hex_id("batch_"),
            endpoint=endpoint,
            input_file_id=file_id,
            completion_window=given["completion_window"],
            created_at=now,
            expires_at=now + int(min(self._dialect.window_s(given["completion_window"]), COMPLETION_WINDOW_S)),
            metadata=self._dialect.kept(given.get("metadata")),
            output_expires_after=life,
            born=elapsed,
            since=elapsed,
        )
        self._runner.start(batch)
        return json_response(self._dialect.new_batch(self._shown(batch)), self._dialect.created)

    async def _list(self, request: web.Request) -> web.Response:
        await self._clock.look()
        limit = integer_query(request, "limit", default=20, most=100)

        def batches(after: str | None, count: int) -> list[dict[str, Any]]:
            found = self._store.batches(after=after, limit=count if count < sys.maxsize else -1)
            if self._dialect.stale_lists:
                return [self._last_seen.get(batch.id) or self._shown(batch) for batch in found]
            return [self._shown(batch) for batch in found]

        return json_response(self._dialect.page(page(request, limit, batches, self._dialect)))

    async def _retrieve(self, request: web.Request) -> web.Response:
        await self._clock.look()
        return json_response(self._shown(self._batch(request)))

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._runner.cancel(self._batch(request))
        return json_response(self._shown(batch))

    def _shown(self, batch: StoredBatch) -> dict[str, Any]:
        shown = self._dialect.batch(self._dialect.outward(self._runner.shown(batch)))
        if self._dialect.stale_lists:
            self._last_seen[batch.id] = shown
        return shown

    def _batch(self, request: web.Request) -> StoredBatch:
        batch_id = self._dialect.inward(request.match_info["batch_id"])
        batch = self._store.batch(batch_id)
        if batch is None:
            raise ApiError(404, f"No batch found with id '{batch_id}'.")
        return batch


def _checked(given: Mapping[str, Any], dialect: Dialect) -> tuple[str, str, int | None]:
    """What is checked before a batch exists: input file id, endpoint and the life of its result files."""
    for name in ("input_file_id", "endpoint", "completion_window"):
        if given.get(name) is None:
            text = f"Missing required parameter: '{name}'."
            raise ApiError(400, text, param=name, code="missing_required_parameter")
        _expect(isinstance(given[name], str), name, "a string", given[name])
    if given["endpoint"] not in dialect.endpoints:
        known = ", ".join(f"'{endpoint}'" for endpoint in sorted(dialect.endpoints))
        text = f"Invalid value: '{given['endpoint']}'. Supported values are: {known}."
        raise ApiError(400, text, param="endpoint", code="invalid_value")
    try:
        dialect.window_s(given["completion_window"])
    except ValueError:
        known = " to ".join(f"'{hours}h'" for hours in dict.fromkeys(dialect.windows_h))
        text = f"Invalid value: '{given['completion_window']}'. Supported values are: {known}."
        raise ApiError(400, text, param="completion_window", code="invalid_value") from None
    _check_metadata(given.get("metadata"))
    life = given.get("output_expires_after")
    file_id = dialect.inward(given["input_file_id"])
    if life is None:
        return file_id, given["endpoint"], None
    _expect(isinstance(life, Mapping), "output_expires_after", "an object", life)
    if not dialect.expiry:
        text = "Unknown parameter: 'output_expires_after'."
        raise ApiError(400, text, param="output_expires_after", code="unknown_parameter")
    shortest_s = dialect.shortest_life_s
    seconds = life_in_range(life.get("anchor"), life.get("seconds"), "output_expires_after", shortest_s)
    return file_id, given["endpoint"], seconds


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    _expect(isinstance(metadata, Mapping), "metadata", "an object", metadata)
    if len(metadata) > _MAX_PAIRS:
        text = f"Invalid 'metadata': too many properties. Expected at most {_MAX_PAIRS}, but got {len(metadata)}."
        raise ApiError(400, text, param="metadata", code="object_above_max_properties")
    for key, value in metadata.items():
        _expect(isinstance(value, str), f"metadata.{key}", "a string", value)
        for what, text_of, most in (("key", key, _MAX_KEY), ("value", value, _MAX_VALUE)):
            if len(text_of) > most:
                text = f"Invalid 'metadata.{key}': {what} too long. Expected at most {most} characters."
                raise ApiError(400, text, param=f"metadata.{key}", code="string_above_max_length")


def _expect(holds: bool, param: str, wanted: str, got: Any) -> None:
    if not holds:
        text = (
            f"Invalid type for '{param}': expected {wanted}, but got {_JSON_NAMES.get(type(got), 'a string')} instead."
        )
        raise ApiError(400, text, param=param, code="invalid_type")
