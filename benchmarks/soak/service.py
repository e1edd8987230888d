"""The service of a soak: an emulator in a process of its own, which tells in the end what it sold."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.settings import ClientSettings

KEY = "sk-benchmark-0123456789"
SPEED = 60
"""Virtual seconds of the service per second: a batch takes two seconds."""


@dataclass(frozen=True)
class Service:
    """That process.

    :param base_url: of its API
    """

    base_url: str
    _process: subprocess.Popen[str]

    def client(self) -> BatchClient:
        """A client that outlasts the faults."""
        return BatchClient(ClientSettings(api_key=KEY, base_url=self.base_url), attempts=8)

    def sold(self) -> dict[str, Any]:
        """Ask what was sold.

        :return: ``bought``, the custom_ids of all billed requests by run id; and ``cut_uploads``, a number
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("sold\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


@contextlib.contextmanager
def serving() -> Iterator[Service]:
    """Start the service; it ends with the context."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.soak.service"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield Service(process.stdout.readline().strip(), process)
    finally:
        process.terminate()
        process.communicate()


def main() -> None:
    """Be that process: it prints its URL, and for each line it reads, what was sold and how many uploads were cut."""
    from airflow_provider_openai_batches.emulator import Emulator

    with Emulator(speed=SPEED, keep_requests=True) as emulator:
        print(emulator.base_url, flush=True)
        for _ in sys.stdin:
            bought: dict[str, list[str]] = {}
            for request in emulator.requests():
                if request.billed and "airflow_run_id" in request.metadata:
                    bought.setdefault(request.metadata["airflow_run_id"], []).append(request.custom_id)
            cut = sum(call.route == "/v1/files" and not call.status for call in emulator.calls if call.method == "POST")
            print(json.dumps({"bought": bought, "cut_uploads": cut}), flush=True)


if __name__ == "__main__":
    main()
