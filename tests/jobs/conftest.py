"""Fixtures of the job engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.jobs.world import World

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator import Emulator


@pytest.fixture
def emulator(openai_batches_emulator: Emulator, openai_batches_clock: object) -> Emulator:
    """The emulator, whose time only the world moves."""
    return openai_batches_emulator


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
