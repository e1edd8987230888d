"""The pytest plugin. It is loaded in every test run of every project with this package, so it imports nothing yet."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator import Emulator
    from airflow_provider_openai_batches.testing.clock import BatchClock
    from airflow_provider_openai_batches.testing.connection import EmulatorConnection

_HOUR_S = 3_600
_MARKER = "openai_batches_emulator"
_CLOCK = "openai_batches_clock"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", f"{_MARKER}(**options): options of the Emulator of the fixture of this name")


@pytest.fixture
def openai_batches_emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """A local server that speaks the OpenAI Batch API, on a free port, fresh for this test.

    Each look of a client at its batches comes an hour after the last, so that a batch is over when it is first looked
    at. ``@pytest.mark.openai_batches_emulator(...)`` on a test, class or module changes options of
    :class:`airflow_provider_openai_batches.emulator.Emulator`.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        needed = 'pip install "airflow-provider-openai-batches[testing]"'
        pytest.fail(f"the fixture openai_batches_emulator needs aiohttp: {needed}", pytrace=False)
    from airflow_provider_openai_batches.emulator import Emulator
    from airflow_provider_openai_batches.testing.connection import API_KEY

    options: dict[str, Any] = {"speed": 0, "seconds_per_look": _HOUR_S, "api_key": API_KEY, "keep_requests": True}
    for marker in reversed(list(request.node.iter_markers(_MARKER))):  # the test's own wins over its module's
        options |= _checked(marker, Emulator)
    if _CLOCK in request.fixturenames:
        options["speed"] = 0  # Its time stands still.
    with Emulator(**options) as emulator:
        yield emulator


def _checked(marker: pytest.Mark, emulator: type[Emulator]) -> dict[str, Any]:
    known = list(inspect.signature(emulator).parameters)
    wrong = [repr(value) for value in marker.args] + [name for name in marker.kwargs if name not in known]
    if wrong:
        pytest.fail(
            f"the marker {_MARKER} does not take {', '.join(wrong)}; its options are, by name: {', '.join(known)}",
            pytrace=False,
        )
    return dict(marker.kwargs)


@pytest.fixture
def openai_batches_clock(openai_batches_emulator: Emulator) -> BatchClock:
    """The emulator's time in the hands of the test: with this fixture it stands still until ``advance``."""
    from airflow_provider_openai_batches.testing.clock import BatchClock

    return BatchClock(openai_batches_emulator)


@pytest.fixture
def openai_batches_connection(openai_batches_emulator: Emulator) -> Iterator[EmulatorConnection]:
    """The Airflow connection ``openai_batches_default`` points to the emulator; call it for other ids or fields."""
    from airflow_provider_openai_batches.testing.connection import EmulatorConnection

    # One of its own: a test may undo what it patched with the fixture.
    with pytest.MonkeyPatch.context() as environment:
        connect = EmulatorConnection(openai_batches_emulator, environment)
        connect()
        yield connect
