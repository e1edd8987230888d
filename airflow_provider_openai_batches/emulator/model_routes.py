"""The models' own endpoints: one request, answered at once, as a batch would have answered it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from aiohttp import web

from airflow_provider_openai_batches.api.models import ENDPOINTS
from airflow_provider_openai_batches.emulator.answers import Answer, answer
from airflow_provider_openai_batches.emulator.clock import VirtualClock
from airflow_provider_openai_batches.emulator.http_faults import json_response
from airflow_provider_openai_batches.emulator.receipts import keep_direct_request
from airflow_provider_openai_batches.emulator.store import Store
from airflow_provider_openai_batches.emulator.validation import UNKNOWN_MODEL_PREFIX
from airflow_provider_openai_batches.emulator.wire import ApiError

LARGEST_BODY_BYTES = 64 << 20


class Upstream(Protocol):
    """Somebody who really answers requests."""

    async def ask(self, url: str, body: Mapping[str, Any]) -> tuple[Answer, float]:
        """Ask once: the answer, and how many seconds the upstream wants to be left alone."""
        ...


class ModelRoutes:
    """Answers the requests that come one by one.

    :param upstream: answers them; None makes answers up, the same as for a batch
    """

    def __init__(self, store: Store, clock: VirtualClock, upstream: Upstream | None) -> None:
        self._store = store
        self._clock = clock
        self._upstream = upstream

    def routes(self, prefix: str, *, answers: bool) -> list[web.RouteDef]:
        """The routes, below ``prefix``, which stands for the endpoints' ``/v1``.

        :param answers: whether the models are there for single requests at all
        """
        return [
            web.post(prefix + endpoint.removeprefix("/v1"), partial(self._answer, endpoint) if answers else _refuse)
            for endpoint in sorted(ENDPOINTS)
        ]

    async def _answer(self, endpoint: str, request: web.Request) -> web.Response:
        body = _checked(await _decoded(request))
        wait_s = 0.0
        if self._upstream is None:
            reply = answer(endpoint, body, created=self._clock.now())
        else:
            reply, wait_s = await self._upstream.ask(endpoint, body)
        billed = 200 <= reply.status < 300
        if self._store.keeps_requests:
            client_id = request.headers.get("X-Client-Request-Id", "")
            keep_direct_request(self._store, endpoint, body, client_id, billed=billed)
        response = json_response(reply.body, reply.status)
        if wait_s:
            response.headers["Retry-After"] = f"{wait_s:g}"
        return response


async def _refuse(request: web.Request) -> web.Response:
    """Answer as Azure does for a deployment of another kind: github.com/openai/openai-python, issue 2173."""
    body = _checked(await _decoded(request))
    text = f"The chatCompletion operation does not work with the specified model, {body['model']}."
    raise ApiError(400, text, code="OperationNotSupported")


async def _decoded(request: web.Request) -> Any:
    try:
        return await request.json()
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "We could not parse the JSON body of your request.") from error


def _checked(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise ApiError(400, "The body of your request must be a JSON object.")
    if body.get("stream"):
        raise ApiError(400, "The emulator does not stream.", param="stream", code="unsupported_value")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "you must provide a model parameter", param="model")
    if model.startswith(UNKNOWN_MODEL_PREFIX):
        text = f"The model '{model}' does not exist or you do not have access to it."
        raise ApiError(404, text, code="model_not_found")
    return body
