"""The HTTP face: routes, authentication, scripted faults and the emulator's own controls."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiohttp import web

from airflow_provider_openai_batches.emulator.batch_routes import BatchRoutes
from airflow_provider_openai_batches.emulator.clock import VirtualClock
from airflow_provider_openai_batches.emulator.dialects import Dialect, Intake
from airflow_provider_openai_batches.emulator.faults import FaultError, Faults, parse_rule, parse_rules
from airflow_provider_openai_batches.emulator.file_routes import FileRoutes
from airflow_provider_openai_batches.emulator.http_faults import Handler, disturbed, json_response
from airflow_provider_openai_batches.emulator.model_routes import LARGEST_BODY_BYTES, ModelRoutes
from airflow_provider_openai_batches.emulator.runner import BatchRunner
from airflow_provider_openai_batches.emulator.signed_uploads import STORAGE
from airflow_provider_openai_batches.emulator.store import Store
from airflow_provider_openai_batches.emulator.wire import ApiError, error_body, new_hex_id

_KEPT_CALLS = 100_000
_ABOUT = """openai-batches-emulator: a local server that speaks the OpenAI Batch API.

POST   /v1/files                  GET /v1/files, /v1/files/{id}, /v1/files/{id}/content; DELETE /v1/files/{id}
POST   /v1/batches                GET /v1/batches, /v1/batches/{id}; POST /v1/batches/{id}/cancel
POST   /v1/chat/completions, /v1/responses, /v1/embeddings and the other endpoints of batches: one request at a time
POST   /emulator/advance          {"seconds": n} moves the virtual clock and answers when all that was due has happened
POST   /emulator/faults           add a fault rule, or a list of them; DELETE removes all
GET    /emulator/calls            how often each route was called

Unless it was started with --upstream, no model answers: every answer is made up, and always the same for a request.
"""


class Call(NamedTuple):
    """One HTTP call the emulator has answered; the status is 0 where a fault cut the connection."""

    method: str
    route: str
    status: int


class Calls:
    """The calls to the API so far; those to the emulator's own controls do not count."""

    def __init__(self) -> None:
        self.latest: deque[Call] = deque(maxlen=_KEPT_CALLS)
        self.counts: Counter[str] = Counter()

    def add(self, call: Call) -> None:
        """Count a call."""
        self.latest.append(call)
        self.counts[f"{call.method} {call.route}"] += 1


def create_app(
    store: Store,
    clock: VirtualClock,
    runner: BatchRunner,
    models: ModelRoutes,
    faults: Faults,
    calls: Calls,
    *,
    lock: Lock,
    dialect: Dialect,
) -> web.Application:
    """Assemble the application.

    :param lock: asks every call but ``GET /`` for a key
    :param dialect: how it speaks
    """
    doors = Doors(faults, calls, lock, dialect)
    controls = Controls(clock, faults, calls)
    app = web.Application(
        middlewares=[doors.count, doors.errors, doors.authenticate, doors.disturb, doors.translate],
        client_max_size=LARGEST_BODY_BYTES,
    )
    app.on_response_prepare.append(_request_id)
    app.add_routes([web.get("/", _about)])
    intake = Intake(dialect.pending_looks)
    files = FileRoutes(store, clock, dialect, intake, runner.growing)
    app.add_routes(files.routes(dialect.prefix))
    app.on_cleanup.append(files.close)
    app.add_routes(BatchRoutes(store, clock, runner, dialect, intake).routes(dialect.prefix))
    app.add_routes(models.routes(dialect.prefix, answers=dialect.answers_single))
    app.add_routes(controls.routes("/emulator"))
    return app


class Lock:
    """What key a call must bring; it may be changed, as keys are rotated.

    :param key: None accepts any, and none
    """

    def __init__(self, key: str | None) -> None:
        self.key = key


class Doors:
    """What every request passes on its way in."""

    def __init__(self, faults: Faults, calls: Calls, lock: Lock, dialect: Dialect) -> None:
        self._faults = faults
        self._calls = calls
        self._lock = lock
        self._dialect = dialect

    @web.middleware
    async def count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the call under its route."""
        resource = request.match_info.route.resource
        route = self._dialect.neutral(resource.canonical if resource is not None else request.path)
        status = 0
        try:
            response = await handler(request)
            status = 0 if request.transport is None or request.transport.is_closing() else response.status
            return response
        finally:
            if not route.startswith("/emulator"):
                self._calls.add(Call(request.method, route, status))

    @web.middleware
    async def errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Put refusals into the API's envelope."""
        try:
            return await handler(request)
        except ApiError as error:
            return json_response(error.body, error.status)
        except ConnectionError:
            return web.Response(status=400)  # the client has gone: nobody reads this
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
            message = f"Invalid URL ({request.method} {request.path})"
            return json_response(error_body(message, code="unknown_url"), 404)

    @web.middleware
    async def authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a call without the right key."""
        if request.path.startswith(STORAGE):
            return await handler(request)  # the place itself is the credential
        if self._lock.key is not None and request.path != "/":
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            key = token if scheme.lower() == "bearer" else request.headers.get("api-key", "")
            if key != self._lock.key:
                shown = f"{key[:3]}***" if key else "''"
                raise ApiError(401, f"Incorrect API key provided: {shown}.", code="invalid_api_key")
        is_api = request.path.startswith(self._dialect.prefix)
        if self._dialect.wants_version and is_api and "api-version" not in request.query:
            raise ApiError(404, "Resource not found", code="404")
        return await handler(request)

    @web.middleware
    async def translate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a refusal sound as this service's do."""
        try:
            return await handler(request)
        except ApiError as error:
            if self._dialect.error is not None:
                error.body = self._dialect.error(error.status, error.body)
            raise

    @web.middleware
    async def disturb(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a scripted fault have its way."""
        if request.path.startswith("/emulator"):
            return await handler(request)
        effect = self._faults.for_call(request.method, self._dialect.neutral(request.path))
        return await handler(request) if effect is None else await disturbed(request, handler, effect)


class Controls:
    """The emulator's own calls, for tests in another process."""

    def __init__(self, clock: VirtualClock, faults: Faults, calls: Calls) -> None:
        self._clock = clock
        self._faults = faults
        self._calls = calls

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """The routes, below ``prefix``."""
        return [
            web.post(f"{prefix}/advance", self._advance),
            web.post(f"{prefix}/faults", self._add_faults),
            web.delete(f"{prefix}/faults", self._clear_faults),
            web.get(f"{prefix}/calls", self._count_calls),
        ]

    async def _advance(self, request: web.Request) -> web.Response:
        given = await _decoded(request)
        seconds = given.get("seconds") if isinstance(given, Mapping) else None
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < float("inf"):
            raise ApiError(400, 'Send {"seconds": n}, with n from 0.', param="seconds")
        await self._clock.advance(seconds)
        return json_response({"now": self._clock.now()})

    async def _add_faults(self, request: web.Request) -> web.Response:
        raw = await _decoded(request)
        try:
            rules = parse_rules(raw) if isinstance(raw, list) else [parse_rule(raw)]
        except FaultError as error:
            raise ApiError(400, str(error)) from error
        self._faults.add(rules)
        return json_response({"added": len(rules)})

    async def _clear_faults(self, _request: web.Request) -> web.Response:
        self._faults.clear()
        return json_response({"cleared": True})

    async def _count_calls(self, _request: web.Request) -> web.Response:
        return json_response(dict(self._calls.counts))


async def _about(_request: web.Request) -> web.Response:
    return web.Response(text=_ABOUT)


async def _request_id(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-request-id"] = new_hex_id("req_")


async def _decoded(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise ApiError(400, "We could not parse the JSON body of your request.") from error
