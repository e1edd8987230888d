"""What a benchmark ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path


def machine() -> str:
    """Name what it runs on."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cpu = found[1] if found else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({cpu}), {memory:.0f} GiB of memory, {platform.system()}"


def versions(*, rivals: bool = False) -> str:
    """Name the versions of Python and Airflow.

    :param rivals: also those of the packages that ours is compared with
    """
    airflow = importlib.metadata.version("apache-airflow")
    lines = Path(__file__).with_name("rivals.txt").read_text().splitlines() if rivals else []
    others = [line.replace("==", " ") for line in lines if not line.startswith("#")]
    return ", ".join([f"Python {platform.python_version()}", f"Airflow {airflow}", *others])
