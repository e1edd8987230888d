"""Fixtures for all tests. No Airflow here: the client and the emulator are tested without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.testing import plugin
from airflow_provider_openai_batches.testing.connection import API_KEY

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator import Emulator
    from tests.stores import Bucket

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """Use the kit from a checkout, too, whose installation may be older than its entry point."""
    if not config.pluginmanager.has_plugin("openai_batches"):
        config.pluginmanager.register(plugin, "openai_batches")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process runs all tests that start a whole Airflow, and begins with them: two at a time are too many."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "a whole Airflow" if nodeid.startswith(("tests/system/", "tests/browser/")) else nodeid

    return Scheduling(config, log)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """A fresh emulator whose time stands still until the test moves it with ``advance``."""
    from airflow_provider_openai_batches.emulator import Emulator  # needs the emulator extra

    with Emulator(speed=0, api_key=API_KEY) as server:
        yield server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    yield from _bucket("s3", tmp_path_factory)


@pytest.fixture(scope="session")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    yield from _bucket("gs", tmp_path_factory)


@pytest.fixture(scope="session")
def abfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    yield from _bucket("abfs", tmp_path_factory)


@pytest.fixture(params=["s3", "gs", "abfs"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """A bucket of each kind, one for all tests: Airflow keeps the way to it for as long as the process lasts."""
    found: Bucket = request.getfixturevalue(request.param)
    return found


def _bucket(scheme: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    from tests.stores import local_bucket  # needs Airflow

    with local_bucket(scheme, tmp_path_factory.mktemp("stores")) as bucket:
        bucket.lead_airflow()
        yield bucket


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
