from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from airflow_provider_openai_batches.emulator import Emulator


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An emulator whose clock stands still until a test moves it."""
    with Emulator(speed=0) as running:
        yield running


@pytest.fixture
def client(emulator: Emulator) -> Iterator[OpenAI]:
    """OpenAI's own SDK, without its retries: what the emulator does once must show."""
    with OpenAI(base_url=emulator.base_url, api_key="any", max_retries=0) as sdk:
        yield sdk
