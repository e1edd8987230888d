"""The page's server: a FastAPI app that Airflow's API server mounts. Built at the first request."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_provider_openai_batches.plugin import batches, job, webhooks
from airflow_provider_openai_batches.plugin.errors import answer_errors

_STATIC = Path(__file__).with_name("static")
# A machine's own table of types may call a script plain text, which browsers then do not run.
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    # Nothing here is a document. What is opened as one, such as an icon, runs no script.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}


def build_app() -> FastAPI:
    """Make the app. It has no documentation pages of its own: they would be open to everybody."""
    app = FastAPI(
        title="OpenAI Batches",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # An empty id would lead to the list.
    )
    answer_errors(app)
    app.include_router(batches.router)
    app.include_router(job.router)
    app.include_router(webhooks.router)
    app.mount("/static", _StaticFiles(directory=_STATIC, check_dir=False), name="static")
    app.add_middleware(_Headers)
    return app


class _StaticFiles(StaticFiles):
    """The page's script and icons, and nothing else that may lie beside them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        kind = _TYPES.get(os.path.splitext(path)[1].lower())
        if kind is None:
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        if response.status_code == 200:
            response.headers["Content-Type"] = kind
        # Asked for anew each time, so that an upgrade is seen at once; unchanged files are not sent again.
        response.headers["Cache-Control"] = "no-cache"
        return response


class _Headers:
    """Adds the security headers to every answer; what is not a file is kept by no cache."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)
