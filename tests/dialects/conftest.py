"""The emulator as each of the services with a dialect of their own, and an Airflow connection to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_openai_batches.emulator.dialects import DIALECTS
from airflow_provider_openai_batches.testing.connection import EmulatorConnection

# First of all imports of Airflow: it gives this process a home of its own.
from tests.airflow.conftest import airflow_db, airflow_home, no_pauses, request_lines, run_dag, run_trigger
from tests.conftest import API_KEY

if TYPE_CHECKING:
    from airflow_provider_openai_batches.api.client import BatchClient
    from airflow_provider_openai_batches.emulator import Emulator
    from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook

__all__ = ["airflow_db", "airflow_home", "no_pauses", "run_dag", "run_trigger"]

SERVICES = [name for name in DIALECTS if name != "openai"]
CHAT = "/v1/chat/completions"
NewEmulator = Callable[..., "Emulator"]


@pytest.fixture
def new_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[NewEmulator]:
    """Start an emulator that speaks a dialect; an hour passes whenever a client looks at a batch."""
    from contextlib import ExitStack

    from airflow_provider_openai_batches.emulator import Emulator

    with ExitStack() as stack:

        def start(dialect: str, **options: Any) -> Emulator:
            usual = {"speed": 0, "seconds_per_look": 3_600, "api_key": API_KEY, "keep_requests": True}
            emulator = stack.enter_context(Emulator(dialect=dialect, **{**usual, **options}))
            EmulatorConnection(emulator, monkeypatch)()
            return emulator

        yield start


@pytest.fixture(params=SERVICES)
def emulator(request: pytest.FixtureRequest, new_emulator: NewEmulator) -> Emulator:
    """Each of the services."""
    return new_emulator(request.param)


@pytest.fixture
def hook(emulator: Emulator, no_pauses: None) -> OpenAIBatchesHook:
    from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook

    return OpenAIBatchesHook()


@pytest.fixture
def client(hook: OpenAIBatchesHook) -> BatchClient:
    return hook.get_conn()


def new_batch(hook: OpenAIBatchesHook, rows: int = 3, **options: Any) -> str:
    """Create a batch through `openai_batches_default`."""
    return hook.create_batch(hook.upload_file(request_lines(rows)).id, CHAT, **options).id
