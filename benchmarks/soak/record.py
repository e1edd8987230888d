"""What is noted down while a soak runs."""

from __future__ import annotations

import contextlib
import gc
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """What this process holds at one moment."""

    rss_mb: float
    files: int
    sockets: int
    threads: int
    tasks: int


@dataclass
class Tally:
    """What came of the jobs.

    :param finished: rows of each finished job, by run id
    :param retried: jobs that needed their retry
    :param fired: waiting triggers that had their event
    :param wrong: what should not have been
    """

    finished: dict[str, int]
    retried: int
    fired: int
    wrong: list[str]


def sample(tasks: int = 0) -> Sample:
    """Look at this process, without what is garbage: operators end in cycles, which hold a client until collected.

    :param tasks: how many asyncio tasks there are
    """
    gc.collect()
    held = list[str]()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # The directory itself was one of them.
            held.append(os.readlink(entry))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Sample(
        rss_mb=resident / 1e6,
        files=len(held),
        sockets=sum(name.startswith("socket:") for name in held),
        threads=len(list(Path("/proc/self/task").iterdir())),
        tasks=tasks,
    )
