"""The "OpenAI Batches" page in Airflow's UI, its tab on tasks, and the webhook endpoint.

Every Airflow process loads its plugins, and one of them serves the page: nothing here imports FastAPI, HTTP or the hook
before the first request comes.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_openai_batches.links import PAGE_ROUTE, base_path

URL_PREFIX = "/openai-batches"
PAGE = "OpenAI Batches"
TASK_TAB = "OpenAI Batch Job"


class LazyApp:
    """An ASGI app that is built when it is first called."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection, as ASGI has it."""
        if self._app is None:
            from starlette.concurrency import run_in_threadpool

            # The imports take a while, and the API server's loop has others to serve.
            self._app = await run_in_threadpool(_build)
        await self._app(scope, receive, send)


def _build() -> Any:
    from airflow_provider_openai_batches.plugin.app import build_app

    return build_app()


def _static(name: str) -> str:
    # Airflow 3.1 and 3.2 take it as it is, so that a relative path would be one to their own script.
    return f"{base_path()}{URL_PREFIX}/static/{name}"


class OpenAIBatchesPlugin(AirflowPlugin):
    """What Airflow's plugin manager reads."""

    name = "openai_batches"
    fastapi_apps = [{"name": "openai-batches", "app": LazyApp(), "url_prefix": URL_PREFIX}]
    # A module is evaluated once per URL, and sets the global that has the app's name.
    react_apps = [
        {
            "name": PAGE,
            "bundle_url": _static("main.js"),
            "destination": "nav",
            "url_route": PAGE_ROUTE,
            "category": "browse",
            "icon": _static("icon.svg"),
            "icon_dark_mode": _static("icon_dark.svg"),
        },
        {
            "name": TASK_TAB,
            "bundle_url": _static("main.js?tab"),
            "destination": "task_instance",
            "url_route": "openai-batch-job",
            "icon": _static("icon.svg"),
            "icon_dark_mode": _static("icon_dark.svg"),
        },
    ]
