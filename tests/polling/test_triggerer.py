"""The same promises in a real ``airflow triggerer``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from airflow.triggers.base import BaseTrigger

from tests.polling.triggerer import Triggerer, until, waiting_for
from tests.polling.world import World

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(300)]

CONN_ID, WATCHED = "in_triggerer", "watched"
KEY = "sk-in-triggerer-0123456789"


@pytest.fixture(scope="module")
def service() -> Iterator[World]:
    with World() as world:
        world.key = KEY
        yield world


@pytest.fixture(scope="module")
def watched_service() -> Iterator[World]:
    with World() as world:
        world.key = KEY
        yield world


@pytest.fixture(scope="module")
def triggerer(service: World, watched_service: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triggerer]:
    """A running triggerer with a connection to each service."""
    connection = {"conn_type": "openai_batches", "host": service.base_url, "password": KEY}
    home = tmp_path_factory.mktemp("triggerer") / "airflow"
    watched = {**connection, "host": watched_service.base_url}
    with Triggerer(home, {CONN_ID: json.dumps(connection), WATCHED: json.dumps(watched)}) as triggerer:
        triggerer.start()
        yield triggerer


WATCHER = """
from airflow.sdk import DAG, Asset, AssetWatcher
from airflow_provider_openai_batches.triggers.openai_batch_finished import OpenAIBatchFinishedTrigger

trigger = OpenAIBatchFinishedTrigger(
    conn_id="watched", metadata={"team": ["search", "ads"], "tier": None}, poll_interval=0.2
)
with DAG("look", schedule=[Asset("ended", watchers=[AssetWatcher(name="openai", trigger=trigger)])]):
    pass
"""


def test_a_watcher_tells_of_what_its_filters_let_through(watched_service: World, triggerer: Triggerer) -> None:
    """An Airflow writes a watcher's arguments down in a way of its own, by version."""
    tier, others = {"tier": "2"}, {"metadata": {"team": "mail", "tier": "2"}}
    [other] = watched_service.add(**others)
    [mine] = watched_service.add(metadata={"team": "ads", **tier})
    watchers = triggerer.parse("watcher.py", WATCHER)
    until(lambda: len(watched_service.requests) >= 2, within=60)

    watched_service.change([other, mine], "completed")
    until(lambda: [each["batch_id"] for each in triggerer.told()] == [mine], within=30)
    assert len(watchers) == 1
    assert triggerer.parse("watcher.py", WATCHER) == watchers
    [later] = watched_service.add(status="failed", metadata={"team": "search", **tier})
    until(lambda: [each["batch_id"] for each in triggerer.told()] == [mine, later], within=30)


def test_hundreds_of_deferred_tasks_share_one_poll_loop(service: World, triggerer: Triggerer) -> None:
    waiters, interval = 300, 1.0
    batches = service.add(waiters)
    triggerer.seed(waiting_for(batch_id, conn_id=CONN_ID, poll_interval=interval) for batch_id in batches)
    until(lambda: len(triggerer.task_logs("is in_progress")) == waiters, within=60)

    calls, began = len(service.requests), time.monotonic()
    until(lambda: len(service.requests) >= calls + 9, within=60)
    polls = 1 + (time.monotonic() - began) / (0.9 * interval)
    assert len(service.requests) - calls <= 3 * polls
    assert triggerer.sockets_to(service.port) == 1
    assert triggerer.runner.memory_info().rss < 400 << 20

    service.change(batches, "completed")
    until(lambda: triggerer.states() == {"scheduled": waiters}, within=30)
    event = triggerer.event(0)
    assert event is not None
    assert event["status"] == "reached"
    assert KEY not in json.dumps([event, triggerer.log, triggerer.task_logs()])


def test_a_killed_task_cancels_its_batch_and_a_restart_of_the_triggerer_none(
    service: World, triggerer: Triggerer
) -> None:
    if not hasattr(BaseTrigger, "on_kill"):
        pytest.skip("this Airflow tells no trigger that a user ended its task (before 3.3)")
    batches = killed, _, waiting = service.add(3)
    first = triggerer.seed(
        waiting_for(batch_id, conn_id=CONN_ID, poll_interval=0.2, cancel_on_kill=True) for batch_id in batches
    )
    until(lambda: all(triggerer.task_logs(f"{batch_id} is in_progress") for batch_id in batches), within=60)
    triggerer.mark(first + 1, "scheduled")  # what a clear comes to
    triggerer.mark(first, "failed")
    until(lambda: len(triggerer.task_logs("invoking on_kill")) == 2, within=30)
    until(lambda: service.cancelled == [killed], within=30)

    triggerer.stop()
    calls = len(service.requests)
    triggerer.start()
    until(lambda: len(service.requests) > calls, within=60)
    service.change([waiting], "completed")
    until(lambda: triggerer.event(first + 2) is not None, within=30)
    assert service.cancelled == [killed]
