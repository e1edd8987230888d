"""Whose Batch API the run talks to: a fresh emulator, with a model or without, or OpenAI if the shell has a key."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.settings import DEFAULT_BASE_URL, ClientSettings
from demo.processes import HOST, Child, DemoError, Processes, claim_port, local_environment

LISTENING = re.compile(r"listening on (http://\S+)")
READY_TIMEOUT_S = 60
CONNECTION_VARIABLE = "AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT"
EXAMPLE_PRICES = {"gpt-4o-mini": {"input": 0.075, "cached_input": 0.0375, "output": 0.30}}
"""In USD per million tokens: so that costs are shown. The emulator's answers cost nothing."""


@dataclass(frozen=True)
class OpenAIServer:
    """A server with the Batch API.

    :param url: base URL, ends in /v1
    :param costs_money: it is not ours
    :param made_up: nobody thinks about the answers
    """

    url: str
    api_key: str = field(repr=False)
    costs_money: bool
    made_up: bool = False

    def client(self) -> BatchClient:
        """Return a client that does not insist: for looking at batches beside Airflow."""
        return BatchClient(ClientSettings(api_key=self.api_key, base_url=self.url, timeout_s=10), attempts=1)

    def as_airflow_connection(self) -> dict[str, str]:
        """Return the environment variable that makes this server Airflow's connection `openai_batches_default`."""
        connection: dict[str, object] = {"conn_type": "openai_batches", "host": self.url, "password": self.api_key}
        if not self.costs_money:
            connection["extra"] = {"prices": EXAMPLE_PRICES}
        return {CONNECTION_VARIABLE: json.dumps(connection)}


def openai_from_environment() -> OpenAIServer | None:
    """Return OpenAI if OPENAI_API_KEY is set, at OPENAI_BASE_URL if that is, too."""
    if not (api_key := os.environ.get("OPENAI_API_KEY")):
        return None
    return OpenAIServer(os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL, api_key, costs_money=True)


def start_local_model(processes: Processes, python: Path) -> str:
    """Start the small model and wait until it listens.

    :param python: of the venv that demo/local_model.txt is installed in
    :return: the base URL of its OpenAI-compatible server
    :raises DemoError: it is not installed, or did not start
    """
    if not python.exists():
        raise DemoError(f"there is no {python}: `make demo-local` installs the model and starts this")
    script = Path(__file__).with_name("local_model.py")
    child = processes.start("local-model", [str(python), str(script)], env=local_environment({}, without=("OPENAI_",)))
    return _address(processes, child, "the model to be loaded") + "/v1"


def start_emulator(
    processes: Processes,
    data_dir: Path,
    *,
    port: int | None = None,
    batch_seconds: float = 10.0,
    upstream: str | None = None,
) -> OpenAIServer:
    """Start this project's emulator and wait until it listens.

    :param data_dir: where it keeps files and batches
    :param port: on 127.0.0.1; None: any free one
    :param batch_seconds: how long a batch takes, if nobody has to be asked
    :param upstream: base URL of a server with a model that answers the requests; None: answers are made up
    :raises DemoError: the port is taken, or the emulator did not start
    """
    port = claim_port(port, "EMULATOR_PORT")
    module = "airflow_provider_openai_batches.emulator"
    options = {"--host": HOST, "--port": port, "--data-dir": data_dir, "--speed": 1, "--batch-seconds": batch_seconds}
    if upstream is not None:
        options |= {"--upstream": upstream, "--upstream-concurrency": 2}
    argv = [sys.executable, "-m", module, *(str(word) for option in options.items() for word in option)]
    child = processes.start("emulator", argv, env=local_environment({}, without=("OPENAI_",)))
    url = _address(processes, child, "the emulator to listen")
    return OpenAIServer(url, "sk-emulator-needs-no-key", costs_money=False, made_up=upstream is None)


def _address(processes: Processes, child: Child, what: str) -> str:
    """Wait until a server says where it listens."""
    said = processes.wait_for(
        lambda: LISTENING.search(child.log.read_text(errors="replace")), timeout_s=READY_TIMEOUT_S, what=what
    )
    return said[1]
