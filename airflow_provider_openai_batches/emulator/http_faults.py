"""Carry out the scripted faults of HTTP calls."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from airflow_provider_openai_batches.emulator.faults import CallEffect
from airflow_provider_openai_batches.emulator.wire import ApiError, dump, error_body, merge_patch

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# aiohttp before 3.14 has no typed keys, and from 3.14 on it warns about others.
_EFFECT: Any = web.RequestKey("effect", CallEffect) if hasattr(web, "RequestKey") else "effect"
_NO_EFFECT = CallEffect()
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def effect_on(request: web.Request) -> CallEffect:
    """The effect on a request, for handlers that carry parts of it out themselves."""
    effect: CallEffect = request.get(_EFFECT, _NO_EFFECT)
    return effect


async def disturbed(request: web.Request, handler: Handler, effect: CallEffect) -> web.StreamResponse:
    """Handle a request under an effect."""
    request[_EFFECT] = effect
    if not request.content_type.startswith("multipart/"):
        # Whole, so that it is applied even if the client does not wait, and a reset does not meet it half sent.
        await request.read()
    await asyncio.sleep(effect.delay)
    if effect.drop == "before":
        return _reset(request)
    if effect.redirect is not None:
        return web.Response(status=302, headers={"Location": effect.redirect.rstrip("/") + request.path_qs})
    if effect.status is not None:
        return _canned(effect)
    if effect.drop == "after" and request.method == "GET":
        return _reset(request)  # a GET applies nothing, and some stream their answer themselves
    try:
        response = await handler(request)
    except ApiError as error:
        response = json_response(error.body, error.status)
    if effect.drop == "after":
        return _reset(request)
    if isinstance(response, web.Response) and not response.prepared:
        return await _altered(request, response, effect)
    return response


def json_response(body: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=dump(body), status=status, content_type="application/json")


def _canned(effect: CallEffect) -> web.Response:
    status = effect.status or 200
    body = effect.body
    if body is None and status >= 400:
        body = error_body("Scripted fault of the emulator.", kind="server_error" if status >= 500 else "requests")
    if isinstance(body, str):
        response = web.Response(text=body, status=status, content_type="text/html")
    else:
        response = json_response(body, status)
    response.headers.update(effect.headers or {})
    return response


def _reset(request: web.Request) -> web.Response:
    """Close the connection with a RST: the client must not mistake it for an orderly end."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        request.transport.abort()
    return web.Response()  # goes nowhere


async def _altered(request: web.Request, response: web.Response, effect: CallEffect) -> web.StreamResponse:
    body = response.body if isinstance(response.body, bytes) else b""
    if (effect.patch or effect.set or effect.fill or effect.azure) and response.status < 300:
        body = dump(_patched(json.loads(body), effect))
        response.body = body
    if effect.gzip:
        response.body = gzip.compress(body)
        response.headers["Content-Encoding"] = "gzip"
    if effect.truncate is not None and effect.truncate < len(body):
        return await _cut(request, response, body, effect.truncate)
    return response


def _patched(shown: Any, effect: CallEffect) -> Any:
    if isinstance(shown, dict) and isinstance(shown.get("data"), list):
        return {**shown, "data": [_patched(item, effect) for item in shown["data"]]}
    if not isinstance(shown, dict):
        return shown
    if effect.azure:
        shown = {name: _as_azure(name, value) for name, value in shown.items()}
    missing = {name: value for name, value in (effect.fill or {}).items() if shown.get(name) is None}
    return {**merge_patch(shown | missing, effect.patch or {}), **(effect.set or {})}


def _as_azure(name: str, value: Any) -> Any:
    if name == "status" and isinstance(value, str):
        return value.capitalize()
    if name.endswith("_at") and isinstance(value, int):
        return datetime.datetime.fromtimestamp(value, datetime.UTC).isoformat(timespec="microseconds")
    return value


async def _cut(request: web.Request, response: web.Response, body: bytes, length: int) -> web.StreamResponse:
    cut = web.StreamResponse(status=response.status, headers={"Content-Type": "application/json"})
    cut.content_length = len(body)
    await cut.prepare(request)
    await cut.write(body[:length])
    if request.transport is not None:
        request.transport.close()
    return cut
