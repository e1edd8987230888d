"""Fixtures of the job engine's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from tests.conftest import API_KEY
from tests.jobs.world import World

_LONGER_THAN_ANY_BATCH_S = 3 * 86_400


@pytest.fixture(scope="session")
def _running_emulator() -> Iterator[Emulator]:
    with Emulator(speed=0, api_key=API_KEY) as server:
        yield server


@pytest.fixture
def emulator(_running_emulator: Emulator) -> Emulator:
    """One emulator for all tests, in which everything before this test is over."""
    _running_emulator.clear_faults()
    _running_emulator.advance(_LONGER_THAN_ANY_BATCH_S)
    return _running_emulator


@pytest.fixture
def new_world(emulator: Emulator, tmp_path: Path) -> Callable[..., World]:
    """Makes jobs of the emulator, each in a directory of its own unless told otherwise."""
    made: list[World] = []

    def make(**options: object) -> World:
        location = options.pop("location", None) or tmp_path / f"job-{len(made)}"
        made.append(World(emulator.base_url, location, **options))  # type: ignore[arg-type]
        return made[-1]

    return make


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    """A job of 25 rows in shards of 10."""
    return new_world()
