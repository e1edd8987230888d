"""`python -m demo` as somebody at a terminal starts it, on ports known to the test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

from demo.processes import claim_port

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DemoRun:
    """A running command.

    :param output: what it says
    :param ports: of Airflow and of the emulator
    """

    popen: subprocess.Popen[bytes]
    workspace: Path
    output: Path
    ports: tuple[int, int]

    @classmethod
    def start(
        cls,
        stack: contextlib.ExitStack,
        directory: Path,
        command: str,
        extra: Mapping[str, str] = MappingProxyType({}),
    ) -> DemoRun:
        """Start a command, which ends with the stack.

        :param directory: for its workspace and its output
        :param extra: further variables
        """
        ports = claim_port(None, ""), claim_port(None, "")
        workspace = directory / "workspace"
        output = directory / "output.txt"
        popen = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "demo", command, "--workspace", workspace],
                cwd=REPOSITORY,
                env=environment() | {"AIRFLOW_PORT": str(ports[0]), "EMULATOR_PORT": str(ports[1]), **extra},
                stdin=subprocess.DEVNULL,
                stdout=stack.enter_context(output.open("wb")),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        stack.callback(popen.terminate)
        return cls(popen, workspace, output, ports)

    def family(self) -> list[psutil.Process]:
        """All that it has started."""
        return psutil.Process(self.popen.pid).children(recursive=True)

    def says(self, words: str) -> Callable[[], bool]:
        """A condition: these words are in its output."""
        return lambda: words in self.output.read_text()


def environment() -> dict[str, str]:
    """Our environment without what Airflow, OpenAI and make may have in it."""
    theirs = ("AIRFLOW", "EMULATOR_PORT", "OPENAI_", "PYTHON", "MAKE")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
