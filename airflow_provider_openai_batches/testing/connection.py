"""Airflow connections to the emulator, in the environment."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

DEFAULT_CONN_ID = "openai_batches_default"
_LOOPBACK = "127.0.0.1"


class EmulatorConnection:
    """Writes connections to an emulator into the environment, from where Airflow reads them.

    Called again with the same id it replaces that connection; all go when the test ends.

    :param base_url: of the emulator
    :param environment: puts the environment back
    """

    def __init__(self, base_url: str, environment: pytest.MonkeyPatch) -> None:
        self._base_url = base_url
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
        usual = {"conn_type": "openai_batches", "host": self._base_url, "password": "sk-emulator-needs-no-key"}
        self._environment.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(usual | fields))
        return conn_id
