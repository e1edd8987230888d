"""What the tests of the poll loop share: conditions instead of sleeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import psutil

from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.polling import BatchPoller, Outage, Watch

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, within: float = 100) -> T:
    """Run a test's coroutine in a loop of its own."""

    async def limited() -> T:
        async with asyncio.timeout(within):
            return await main

    return asyncio.run(limited())


async def until(condition: Callable[[], bool], *, within: float = 60) -> None:
    """Let the loop go on until the condition holds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other threads
            await asyncio.sleep(0.005)


async def sighted(watch: Watch, *statuses: str) -> Batch:
    """Return the next sighting of a batch in one of these statuses (any, if none is given); others are lost."""
    while True:
        news = await watch.next()
        for batch in () if isinstance(news, Outage) else news.values():
            if not statuses or batch.status in statuses:
                return batch


async def wait_for(conn_id: str, *batch_ids: str, status: str = "completed", poll_interval: float = 0.1) -> set[str]:
    """Wait, as a trigger does, until all these batches have this status."""
    done: set[str] = set()
    async with BatchPoller.watch(conn_id, batch_ids, poll_interval=poll_interval) as watch:
        while done != set(batch_ids):
            news = await watch.next()
            if not isinstance(news, Outage):
                done |= {batch_id for batch_id, batch in news.items() if batch.status == status}
    return done


def poll_threads() -> list[str]:
    """Threads of pollers; an emulator's has a similar name."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("openai-batches-") and name != "openai-batches-emulator"]


def poll_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("poll ")]


def sockets_to(port: int) -> int:
    """Connections of this process to a port that the client's side has not closed."""
    return sum(
        bool(link.raddr) and link.raddr.port == port and link.status in ("ESTABLISHED", "CLOSE_WAIT")
        for link in psutil.Process().net_connections("tcp4")
    )
