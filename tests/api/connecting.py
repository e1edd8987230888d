"""Clients for tests: of any server, and never sleeping."""

from __future__ import annotations

import socket
from typing import Any

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.settings import ClientSettings
from tests.conftest import API_KEY

__all__ = ["API_KEY", "closed_port", "connect"]


def connect(base_url: str, pauses: list[float] | None = None, *, attempts: int = 5, **settings: Any) -> BatchClient:
    """A client that notes its pauses in ``pauses`` instead of sleeping."""
    noted = [] if pauses is None else pauses
    return BatchClient(
        ClientSettings(**{"api_key": API_KEY, "base_url": base_url, **settings}), attempts=attempts, sleep=noted.append
    )


def closed_port() -> str:
    """The base URL of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"
