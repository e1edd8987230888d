"""The end of a process that can tell nobody, with all it has started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psutil

from demo.processes import Child, Processes, is_alive

DEATH_TIMEOUT_S = 15


def child_of(processes: Processes, name: str) -> Child:
    """Find a child by its name."""
    [child] = [child for child in processes._children if child.name == name]
    return child


def kill(processes: Processes, name: str) -> tuple[Child, int]:
    """Kill a child with ``kill -9``, and every process it has started. Its log is kept under another name.

    :return: what it was, and how many processes died
    """
    child = child_of(processes, name)
    process = psutil.Process(child.popen.pid)
    # From here on its death is no surprise.
    processes._children.remove(child)
    process.suspend()  # so that it starts nothing while its family is counted
    dead = {process}
    while alive := {each for each in family(child) if is_alive(each)}:
        dead |= alive
        for each in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        child.popen.poll()
    child.popen.wait(DEATH_TIMEOUT_S)
    processes.wait_for(lambda: not any(map(is_alive, dead)), timeout_s=DEATH_TIMEOUT_S, what=f"{name} to be gone")
    _keep_log(child)
    return child, len(dead)


def bury(processes: Processes, child: Child) -> None:
    """Forget a child that has died by itself, and what may be left of its family."""
    processes._children.remove(child)
    for each in family(child):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    _keep_log(child)


def family(child: Child) -> Iterator[psutil.Process]:
    """Yield the processes of a child: it, its descendants, and whoever was left in its session."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == child.popen.pid:
                yield process
                yield from process.children(recursive=True)


def _keep_log(child: Child) -> None:
    child.log.rename(child.log.with_suffix(f".dead-{child.popen.pid}.log"))
