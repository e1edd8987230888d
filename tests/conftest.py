"""Fixtures for all tests. No Airflow here: the client and the emulator are tested without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.settings import ClientSettings

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator import Emulator

API_KEY = "sk-test-0123456789abcdefghij"


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs the tests that start a whole Airflow, and begins with them: two at a time are too many here."""
    for item in items:
        if item.get_closest_marker("system"):
            item.add_marker(pytest.mark.xdist_group("system"))
    items.sort(key=lambda item: item.get_closest_marker("system") is None)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """A fresh emulator whose time stands still until the test moves it with ``advance``."""
    from airflow_provider_openai_batches.emulator import Emulator  # needs the emulator extra

    with Emulator(speed=0, api_key=API_KEY) as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    """Seconds for which ``client`` would have slept, in order."""
    return []


@pytest.fixture
def client(emulator: Emulator, pauses: list[float]) -> Iterator[BatchClient]:
    """A client of the emulator that notes its pauses instead of sleeping."""
    settings = ClientSettings(api_key=API_KEY, base_url=emulator.base_url)
    with BatchClient(settings, sleep=pauses.append) as batch_client:
        yield batch_client
