"""Runs of a job in processes that are killed.

They are forked from one process that has imported all they need, and nothing else: an import costs more than the run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from airflow_provider_openai_batches.jobs.directory import open_directory
from tests.jobs.world import World

open_directory("/")  # imports Airflow, on its first use

processes = multiprocessing.get_context("forkserver")
"""There is one fork server for all tests, and it takes the preload that was set last: use this one."""

processes.set_forkserver_preload([__name__])


def killed(world: World, options: dict[str, Any], kill_at: int) -> bool:
    """Run a world's job in a process of its own, and kill that before or after one of its operations.

    :param options: what the world was made of
    :param kill_at: number of the operation's boundary, from 1
    :return: whether it was killed before the job ended
    """
    process = processes.Process(target=_run, args=(world.base_url, world.location, options, kill_at))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _run(base_url: str, location: Path, options: dict[str, Any], kill_at: int) -> None:
    done = 0

    def watch(operation: str) -> None:
        nonlocal done
        done += 1
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    world = World(base_url, location, **options)
    world.watch = watch
    world.run()
