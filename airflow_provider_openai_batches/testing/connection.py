"""Airflow connections to the emulator, in the environment."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from airflow_provider_openai_batches.emulator import Emulator

DEFAULT_CONN_ID = "openai_batches_default"
API_KEY = "sk-emulator-0123456789abcdefghij"
"""What the emulator of a test takes for a key."""
_LOOPBACK = "127.0.0.1"


class EmulatorConnection:
    """Writes connections to an emulator into the environment, from where Airflow reads them.

    Called again with the same id it replaces that connection; all go when the test ends.

    :param emulator: where they point
    :param environment: puts the environment back
    """

    def __init__(self, emulator: Emulator, environment: pytest.MonkeyPatch) -> None:
        self._emulator = emulator
        self._environment = environment
        # A proxy is for the world outside: it would be asked for the emulator, too.
        known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        environment.setenv("no_proxy", f"{known},{_LOOPBACK}" if known else _LOOPBACK)

    def __call__(self, conn_id: str = DEFAULT_CONN_ID, **fields: Any) -> str:
        """Point a connection at the emulator.

        :param conn_id: which one
        :param fields: of the connection, such as ``extra={"prices": ...}`` or ``conn_type="openai"``, where they differ
            from the usual
        :return: its id
        """
        key = self._emulator.api_key or API_KEY
        usual: dict[str, Any] = {"conn_type": "openai_batches", "host": self._emulator.base_url, "password": key}
        if self._emulator.dialect != "openai":
            usual["extra"] = {"dialect": self._emulator.dialect.removesuffix("-classic")}
        self._environment.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(usual | fields))
        return conn_id
