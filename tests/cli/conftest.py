"""The command line, run in this process against an emulator, or as a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.cli.__main__ import main
from tests.conftest import API_KEY

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator import Emulator

COMMAND = [sys.executable, "-m", "airflow_provider_openai_batches.cli"]
CHAT = "/v1/chat/completions"


@dataclass
class Ended:
    """What a command left behind."""

    code: int
    content: bytes
    err: str

    @property
    def out(self) -> str:
        return self.content.decode()

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.content.splitlines()]

    @property
    def problem(self) -> str:
        """The one line that says what went wrong."""
        [line] = self.err.splitlines()
        assert line.startswith("openai-batches: ")
        return line


Run = Callable[..., Ended]


@pytest.fixture
def environment(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key and the URL of the emulator, as OpenAI's SDK would read them."""
    use(emulator, monkeypatch)


def use(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    # What is repeated, and after how long, is held by the tests of the client.
    monkeypatch.setitem(BatchClient.__init__.__kwdefaults__, "sleep", lambda seconds: None)


@pytest.fixture
def cli(environment: None, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command in this process."""

    def run(*argv: str) -> Ended:
        capfdbinary.readouterr()
        try:
            code = main(argv)
        except SystemExit as stopped:
            code = int(str(stopped.code))
        out, err = capfdbinary.readouterr()
        return Ended(code, out, err.decode())

    return run


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An emulator whose batches take a second, in the environment."""
    from airflow_provider_openai_batches.emulator import Emulator

    with Emulator(speed=200, api_key=API_KEY) as server:
        use(server, monkeypatch)
        yield server


def client_of(emulator: Emulator) -> BatchClient:
    return BatchClient(ClientSettings(api_key=API_KEY, base_url=emulator.base_url), sleep=lambda seconds: None)


def submit(emulator: Emulator, rows: int = 3, **metadata: str) -> Batch:
    """Create a batch of some requests."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
    line = {"method": "POST", "url": CHAT, "body": body}
    content = b"".join(json.dumps({"custom_id": f"row-{n}", **line}).encode() + b"\n" for n in range(rows))
    with client_of(emulator) as client:
        file = client.upload_file(lambda: io.BytesIO(content), filename="requests.jsonl")
        return client.create_batch(file.id, CHAT, metadata=metadata)


def finished(emulator: Emulator, rows: int = 3, **metadata: str) -> Batch:
    """Create a batch and let it end."""
    batch = submit(emulator, rows, **metadata)
    emulator.advance(200)
    with client_of(emulator) as client:
        return client.retrieve_batch(batch.id)


def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command as a process."""
    env = {**os.environ, **options.pop("env", {})}
    env.pop("PYTHONUNBUFFERED", None)  # A user's output is buffered.
    return subprocess.Popen([*COMMAND, *argv], env=env, **options)
