"""The emulator as its users run it: a process of its own."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from openai import OpenAI

COMMAND = [sys.executable, "-m", "airflow_provider_openai_batches.emulator"]


class EmulatorProcess:
    """A running ``openai-batches-emulator``; ``stderr`` is shown by pytest if a test fails."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen([*COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.first_line = self._process.stdout.readline()
        self.base_url = self.first_line.rpartition(" ")[2].strip()

    def client(self) -> OpenAI:
        """OpenAI's SDK, pointed at the process."""
        return OpenAI(base_url=self.base_url, api_key="any", max_retries=0)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, timeout_s: float = 5) -> tuple[int, str]:
        """Send a signal; return the exit code and what else was printed."""
        self._process.send_signal(number)
        rest, _ = self._process.communicate(timeout=timeout_s)
        return self._process.returncode, rest

    @property
    def peak_rss_mb(self) -> float:
        """The most memory it has ever held, in MB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1000


@contextlib.contextmanager
def emulator_process(*options: str) -> Iterator[EmulatorProcess]:
    """Run the emulator while the context is open."""
    process = EmulatorProcess(*options)
    try:
        yield process
    finally:
        if process._process.poll() is None:
            # Not a kill, which would leave the data directory behind.
            process.stop()
