"""The Batches API: https://platform.openai.com/docs/api-reference/batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from airflow_provider_openai_batches.api.models import ENDPOINTS
from airflow_provider_openai_batches.emulator.clock import VirtualClock
from airflow_provider_openai_batches.emulator.file_routes import life_in_range
from airflow_provider_openai_batches.emulator.http_faults import json_response
from airflow_provider_openai_batches.emulator.pages import integer_query, page
from airflow_provider_openai_batches.emulator.runner import COMPLETION_WINDOW_S, BatchRunner
from airflow_provider_openai_batches.emulator.store import Store, StoredBatch
from airflow_provider_openai_batches.emulator.wire import ApiError, new_hex_id

_WINDOW = "24h"
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

    def __init__(self, store: Store, clock: VirtualClock, runner: BatchRunner) -> None:
        self._store = store
        self._clock = clock
        self._runner = runner

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
        file_id, endpoint, life = _checked(given)
        file = self._store.file(file_id, now=self._clock.now())
        if file is not None and file.purpose != "batch":
            text = f"Invalid file purpose: '{file.purpose}'. The input file of a batch must have purpose 'batch'."
            raise ApiError(400, text, param="input_file_id", code="invalid_value")
        now, elapsed = self._clock.now(), self._clock.elapsed()
        batch = StoredBatch(
            id=new_hex_id("batch_"),
            endpoint=endpoint,
            input_file_id=file_id,
            completion_window=_WINDOW,
            created_at=now,
            expires_at=now + int(COMPLETION_WINDOW_S),
            metadata=given.get("metadata"),
            output_expires_after=life,
            born=elapsed,
            since=elapsed,
        )
        self._runner.start(batch)
        return json_response(batch.to_api())

    async def _list(self, request: web.Request) -> web.Response:
        await self._clock.look()
        limit = integer_query(request, "limit", default=20, most=100)

        def batches(after: str | None, count: int) -> list[dict[str, Any]]:
            return [self._runner.shown(batch) for batch in self._store.batches(after=after, limit=count)]

        return json_response(page(request, limit, batches))

    async def _retrieve(self, request: web.Request) -> web.Response:
        await self._clock.look()
        return json_response(self._runner.shown(self._batch(request)))

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._runner.cancel(self._batch(request))
        return json_response(self._runner.shown(batch))

    def _batch(self, request: web.Request) -> StoredBatch:
        batch_id = request.match_info["batch_id"]
        batch = self._store.batch(batch_id)
        if batch is None:
            raise ApiError(404, f"No batch found with id '{batch_id}'.")
        return batch


def _checked(given: Mapping[str, Any]) -> tuple[str, str, int | None]:
    """What is checked before a batch exists: input file id, endpoint and the life of its result files."""
    for name in ("input_file_id", "endpoint", "completion_window"):
        if given.get(name) is None:
            text = f"Missing required parameter: '{name}'."
            raise ApiError(400, text, param=name, code="missing_required_parameter")
        _expect(isinstance(given[name], str), name, "a string", given[name])
    if given["endpoint"] not in ENDPOINTS:
        known = ", ".join(f"'{endpoint}'" for endpoint in sorted(ENDPOINTS))
        text = f"Invalid value: '{given['endpoint']}'. Supported values are: {known}."
        raise ApiError(400, text, param="endpoint", code="invalid_value")
    if given["completion_window"] != _WINDOW:
        text = f"Invalid value: '{given['completion_window']}'. Supported values are: '{_WINDOW}'."
        raise ApiError(400, text, param="completion_window", code="invalid_value")
    _check_metadata(given.get("metadata"))
    life = given.get("output_expires_after")
    if life is None:
        return given["input_file_id"], given["endpoint"], None
    _expect(isinstance(life, Mapping), "output_expires_after", "an object", life)
    seconds = life_in_range(life.get("anchor"), life.get("seconds"), "output_expires_after")
    return given["input_file_id"], given["endpoint"], seconds


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
