"""A service of its own for each life, always in the same place.

The place is part of an answer cache's keys, and so decides which answers share a folder: elsewhere, the same life would
have other boundaries.
"""

from __future__ import annotations

import os
import socket
from functools import cache

from airflow_provider_openai_batches.emulator import Emulator
from tests.conftest import API_KEY

_FIRST_PORT, _PORTS = 20_000, 10_000
"""Ports that systems give to nobody who does not ask for them: between two lives ours is free."""


def new_service(dialect: str) -> Emulator:
    """Make an emulator that keeps what it is asked.

    :param dialect: which service it stands in for
    """
    return Emulator(speed=0, api_key=API_KEY, keep_requests=True, dialect=dialect, port=_port())


@cache
def _port() -> int:
    """Find a port for this process."""
    for number in range(_PORTS):
        port = _FIRST_PORT + (os.getpid() + number) % _PORTS
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise OSError("no port is free")
