"""A watched asset hears of each batch that ends, once, across restarts; what it watches is read in few calls."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from airflow.sdk import Asset

from airflow_provider_openai_batches import survey
from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.triggers import openai_batch_finished
from airflow_provider_openai_batches.triggers.openai_batch_finished import OpenAIBatchFinishedTrigger
from tests.polling.conftest import Connect
from tests.polling.waiting import poll_threads, run, until
from tests.polling.world import Trouble, World, error

HOUR_S = 3_600
NOW = int(time.time()) - 200 * HOUR_S
YEAR_S = 365 * 24 * HOUR_S
INTERVAL_S = 0.02


@pytest.fixture(autouse=True)
def events_arrive_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_batch_finished, "_DELIVERED_WITHIN_S", 0.0)


class Store:
    """Stands in for Airflow's asset_state_store, which is in the metadata database. It survives triggerers."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.failing = 0

    def has_told(self, batch_id: str) -> bool:
        return any(batch_id in json.loads(kept)["done"] for kept in self.kept.values())

    async def aget(self, key: str, default: Any = None) -> Any:
        self._fail()
        return json.loads(self.kept[key]) if key in self.kept else default

    async def aset(self, key: str, value: Any) -> None:
        self._fail()
        self.kept[key] = json.dumps(value)

    def _fail(self) -> None:
        if self.failing:
            self.failing -= 1
            raise RuntimeError("the metadata database is away")


class Watched:
    """What a trigger told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    @property
    def ids(self) -> list[str]:
        return [event["batch_id"] for event in self.events]


@asynccontextmanager
async def watching(conn_id: str, store: Any = None, **filters: Any) -> AsyncIterator[Watched]:
    """Run a trigger of an asset as a triggerer does, from what it serializes to, until the triggerer stops."""
    made = OpenAIBatchFinishedTrigger(conn_id=conn_id, **{"poll_interval": INTERVAL_S} | filters)
    trigger = type(made)(**json.loads(json.dumps(made.serialize()[1])))
    if store is not None:
        trigger.asset_state_store = store
    watched = Watched()

    async def collect() -> None:
        async for event in trigger.run():
            watched.events.append(event.payload)

    task = asyncio.create_task(collect())
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def looks(world: World, count: int = 2) -> None:
    """Wait until the service was looked at anew, from beginning to end."""
    seen = world.pages
    await until(lambda: world.pages >= seen + count + 1)


def test_each_batch_that_ends_is_told_once(world: World, conn_id: str) -> None:
    async def main() -> None:
        async with watching(conn_id) as watched:
            await looks(world)
            one, other = world.add(2, endpoint="/v1/responses", created_at=NOW, metadata={"team": "search"}, model="m")
            await looks(world)
            world.change([other], "completed", completed_at=NOW + 60, request_counts={"total": 2, "completed": 2})
            await until(lambda: watched.ids == [other])
            world.change([one], "failed", failed_at=NOW + 90)
            await until(lambda: watched.ids == [other, one])
            await looks(world)
            assert watched.ids == [other, one]
        assert watched.events[0] == {
            "conn_id": conn_id,
            "batch_id": other,
            "status": "completed",
            "endpoint": "/v1/responses",
            "model": "m",
            "metadata": {"team": "search"},
            "request_counts": {"total": 2, "completed": 2, "failed": 0},
            "created_at": NOW,
            "ended_at": NOW + 60,
        }

    run(main())


def test_one_that_begins_tells_only_what_ends_from_then_on(world: World, conn_id: str) -> None:
    world.add(3, "completed", created_at=NOW)
    [going_on] = world.add(created_at=NOW)

    async def main() -> None:
        async with watching(conn_id) as watched:
            await looks(world)
            world.change([going_on], "cancelled")
            await until(lambda: watched.ids == [going_on])

    run(main())


def test_a_restart_repeats_nothing_and_leaves_out_nothing(world: World, conn_id: str) -> None:
    store = Store()

    async def main() -> None:
        before, during, after = world.add(3, created_at=NOW)
        async with watching(conn_id, store) as watched:
            await until(lambda: bool(store.kept))
            world.change([before], "completed")
            await until(lambda: watched.ids == [before] and store.has_told(before))
        world.change([during], "expired")
        short_lived = world.add(150, "failed", created_at=NOW + HOUR_S)
        async with watching(conn_id, store) as watched:
            await until(lambda: len(watched.ids) == 151)
            world.change([after], "completed")
            await until(lambda: len(watched.ids) == 152)
        assert sorted(watched.ids) == sorted([during, after, *short_lived])

    run(main())


def test_a_late_end_is_told_after_a_weekend_without_a_triggerer_and_thousands_of_younger_batches(
    world: World, conn_id: str
) -> None:
    store = Store()
    [slow] = world.add(created_at=NOW)

    async def main() -> None:
        async with watching(conn_id, store):
            await until(lambda: bool(store.kept))
        younger = world.add(1_000, "completed", created_at=NOW + HOUR_S, metadata={"of": "others"})
        world.add(2_000, "completed", created_at=NOW + 72 * HOUR_S, metadata={"of": "others"})
        world.change([slow], "expired")
        async with watching(conn_id, store) as watched:
            await until(lambda: len(watched.ids) == 3_001)
        assert watched.ids[0] == slow
        assert younger[0] in watched.ids

    run(main())


def test_a_batch_the_listing_turns_up_40_minutes_late_is_told_once(world: World, conn_id: str) -> None:
    store = Store()

    async def main() -> None:
        [newest] = world.add(status="completed", created_at=NOW)
        async with watching(conn_id, store):
            await until(lambda: bool(store.kept))
        # The server that made these has a clock that is behind.
        over, going_on = world.add(2, created_at=NOW - 2_400)
        world.change([over], "failed")
        async with watching(conn_id, store) as watched:
            await until(lambda: watched.ids == [over] and store.has_told(over))
            world.change([going_on], "completed")
            await until(lambda: watched.ids == [over, going_on] and store.has_told(going_on))
        async with watching(conn_id, store) as watched:
            await looks(world)
            assert watched.ids == []
        assert store.has_told(newest)

    run(main())


def test_a_batch_that_is_years_ahead_makes_nobody_deaf(world: World, conn_id: str) -> None:
    """As of an emulator that lived faster than we do, and was started anew."""
    store = Store()
    [going_on] = world.add(created_at=int(time.time()) - 24 * HOUR_S)
    [over] = world.add(status="completed", created_at=NOW + 5 * YEAR_S)

    async def main() -> None:
        async with watching(conn_id, store) as watched:
            await until(lambda: bool(store.kept))
            [ahead] = world.add(created_at=NOW + 4 * YEAR_S)
            await looks(world)
            [short_lived] = world.add(status="failed", created_at=int(time.time()))
            await until(lambda: watched.ids == [short_lived])
            world.change([ahead, going_on], "completed")
            await until(lambda: sorted(watched.ids) == sorted([short_lived, ahead, going_on]))
            await until(lambda: store.has_told(ahead))
        async with watching(conn_id, store) as watched:
            [later] = world.add(status="expired", created_at=int(time.time()))
            await until(lambda: watched.ids == [later])
            await looks(world)
            assert watched.ids == [later]
        assert store.has_told(over)

    run(main())


def test_a_service_whose_clock_went_back_is_one_warning(
    world: World, conn_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    world.add(status="completed", created_at=NOW)

    async def main() -> None:
        async with watching(conn_id, store):
            await until(lambda: bool(store.kept))
            assert "clock" not in caplog.text
            # It forgot what it had.
            world.forget()
            world.add(status="completed", created_at=NOW - 50 * HOUR_S)
            await looks(world, 4)

    run(main())
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    made, told = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC" for at in (NOW - 50 * HOUR_S, NOW - HOUR_S))
    assert warning.startswith(f"The newest batch that the service lists is of {made}, long before others")
    assert warning.endswith(f"created before {told}.")


def test_a_look_costs_few_calls_however_many_batches_there_were(world: World, conn_id: str) -> None:
    async def main() -> None:
        store = Store()
        world.add(900, "completed", created_at=NOW - 100 * HOUR_S)
        world.add(50, created_at=NOW - HOUR_S)
        world.add(250, "completed", created_at=NOW + HOUR_S)
        async with watching(conn_id, store):
            await until(lambda: bool(store.kept))
            # Two days are four pages; of batches that are older there are more.
            assert len(world.requests) == 4
            await until(lambda: len(world.requests) > 40)
        # Three pages of what may be new, three to the 50 older ones that are not over.
        later = world.requests[4:]
        looks = sum("after" not in request.query for request in later) / 2
        assert len(later) <= 6 * (looks + 1)

    run(main())


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({}, {"chat", "responses", "search", "failed", "made by a DAG"}),
        ({"statuses": ["failed", "expired"]}, {"failed"}),
        ({"endpoint": "/v1/responses"}, {"responses"}),
        ({"metadata": {"team": "search"}}, {"search", "failed"}),
        ({"metadata": {"team": ["search", "ads"]}}, {"search", "failed", "chat"}),
        ({"metadata": {"team": None}}, {"search", "failed", "chat"}),
        ({"metadata": {"team": "search", "tier": "2"}}, {"failed"}),
        ({"dag_id": "nightly"}, {"made by a DAG"}),
        ({"dag_id": "weekly"}, set()),
        ({"statuses": ["completed"], "metadata": {"team": "search"}}, {"search"}),
    ],
)
def test_filters(world: World, conn_id: str, filters: dict[str, Any], told: set[str]) -> None:
    async def main() -> None:
        store = Store()
        async with watching(conn_id, store, **filters) as watched:
            await until(lambda: bool(store.kept))
            chat = {"endpoint": "/v1/chat/completions"}
            made = {
                "chat": world.add(metadata={"team": "ads"}, **chat),
                "responses": world.add(endpoint="/v1/responses"),
                "search": world.add(metadata={"team": "search"}, **chat),
                "failed": world.add(metadata={"team": "search", "tier": "2"}, **chat),
                "made by a DAG": world.add(metadata={"airflow_dag_id": "nightly"}, **chat),
            }
            names = {batch_id: name for name, [batch_id] in made.items()}
            for name, batch_ids in made.items():
                world.change(batch_ids, "failed" if name == "failed" else "completed")
            await until(lambda: {names[each] for each in watched.ids} >= told)
            await looks(world)
            assert {names[each] for each in watched.ids} == told

    run(main())


def test_another_filter_begins_anew_and_another_interval_does_not(world: World, conn_id: str) -> None:
    store = Store()
    [going_on] = world.add(created_at=NOW)

    async def main() -> None:
        async with watching(conn_id, store):
            await until(lambda: bool(store.kept))
        world.change([going_on], "completed")
        async with watching(conn_id, store, endpoint="/v1/responses"):
            await until(lambda: len(store.kept) == 2)
        async with watching(conn_id, store, poll_interval=0.03) as watched:
            await until(lambda: watched.ids == [going_on])
        assert len(store.kept) == 2

    run(main())


def test_without_a_store_each_start_begins_anew(world: World, conn_id: str) -> None:
    missed, seen = world.add(2, created_at=NOW)

    async def main() -> None:
        async with watching(conn_id):
            await looks(world)
        world.change([missed], "completed")
        async with watching(conn_id) as watched:
            await looks(world)
            world.change([seen], "completed")
            await until(lambda: watched.ids == [seen])

    run(main())


def test_a_store_that_is_away_loses_no_event(world: World, conn_id: str) -> None:
    store = Store()
    [batch_id] = world.add(created_at=NOW)

    async def main() -> None:
        async with watching(conn_id, store):
            await until(lambda: bool(store.kept))
        world.change([batch_id], "completed")
        store.failing = 2
        async with watching(conn_id, store) as watched:
            await until(lambda: watched.ids == [batch_id])
            store.failing = 1
            [later] = world.add(status="failed", created_at=NOW + 1)
            await until(lambda: watched.ids == [batch_id, later] and store.has_told(later))

    run(main())


def test_what_is_kept_there_and_no_cursor_begins_anew(world: World, conn_id: str) -> None:
    store = Store()
    [batch_id] = world.add(created_at=NOW)

    async def main() -> None:
        async with watching(conn_id, store):
            await until(lambda: bool(store.kept))
        [key] = store.kept
        store.kept[key] = '"nonsense"'
        async with watching(conn_id, store) as watched:
            await until(lambda: store.kept[key] != '"nonsense"')
            world.change([batch_id], "completed")
            await until(lambda: watched.ids == [batch_id])

    run(main())


def test_equal_watchers_of_two_assets_still_tell_and_say_what_to_change(world: World, conn_id: str) -> None:
    context = pytest.importorskip("airflow.sdk.execution_time.context")
    if not hasattr(context, "AssetStateStoreAccessors"):
        pytest.skip("Airflow 3.3 has it")
    both = context.AssetStateStoreAccessors(inlets=[Asset("one"), Asset("other")])

    async def main() -> None:
        async with watching(conn_id, both) as watched:
            await looks(world)
            [batch_id] = world.add(status="failed")
            await until(lambda: watched.ids == [batch_id])
            await looks(world)

    with structlog.testing.capture_logs() as logged:
        run(main())
    said = " ".join(entry["event"] for entry in logged)
    assert said.count("Give each asset a watcher that differs") == 1
    assert "could not be noted" not in said


def down(_: Any) -> Any:
    return error(503)


@pytest.mark.parametrize("trouble", [down, lambda _: error(401), lambda _: error(404)])
def test_an_outage_is_waited_out(world: World, conn_id: str, trouble: Trouble) -> None:
    async def main() -> None:
        [batch_id] = world.add(created_at=NOW)
        async with watching(conn_id) as watched:
            await looks(world)
            world.trouble = trouble
            await looks(world)
            world.change([batch_id], "completed")
            world.trouble = None
            await until(lambda: watched.ids == [batch_id])

    run(main())


def test_a_new_key_in_the_connection_is_used(world: World, conn_id: str, connect: Connect) -> None:
    async def main() -> None:
        [batch_id] = world.add(created_at=NOW)
        async with watching(conn_id) as watched:
            await looks(world)
            world.key = "sk-rotated-0123456789"
            world.change([batch_id], "completed")
            await looks(world)
            connect(world.base_url, password=world.key)
            await until(lambda: watched.ids == [batch_id])

    run(main())


def test_a_connection_that_moves_while_its_old_key_stays_good_is_followed(
    world: World, conn_id: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "_CONNECTION_GOOD_FOR_S", 0.0)

    async def main(other: World) -> None:
        async with watching(conn_id) as watched:
            await looks(world)
            connect(other.base_url)
            [batch_id] = other.add(created_at=NOW)
            await looks(other)
            other.change([batch_id], "completed")
            await until(lambda: watched.ids == [batch_id])

    with World() as other:
        run(main(other))


def test_a_connection_that_cannot_be_read_any_more_leaves_the_watch_the_client_it_gave(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "_CONNECTION_GOOD_FOR_S", 0.0)

    async def main() -> None:
        [batch_id] = world.add(created_at=NOW)
        async with watching(conn_id) as watched:
            await looks(world)
            monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", "{not json")
            world.change([batch_id], "completed")
            await until(lambda: watched.ids == [batch_id])

    run(main())


def test_a_connection_that_comes_later_is_waited_for(world: World, connect: Connect) -> None:
    async def main() -> None:
        async with watching("comes_later") as watched:
            await asyncio.sleep(3 * INTERVAL_S)
            connect(world.base_url, conn_id="comes_later")
            await looks(world)
            [batch_id] = world.add(status="failed")
            await until(lambda: watched.ids == [batch_id])

    run(main())


def test_triggers_of_one_connection_share_their_looks(world: World, conn_id: str) -> None:
    streams = pytest.importorskip("airflow.triggers.shared_stream", reason="Airflow 3.3 has it")
    [old] = world.add(created_at=NOW)
    world.add(120, "completed", created_at=NOW + 100 * HOUR_S)

    async def main() -> None:
        manager = streams.SharedStreamManager()
        watched: dict[int, list[str]] = {}

        async def follow(number: int, store: Store, **filters: Any) -> None:
            trigger = OpenAIBatchFinishedTrigger(conn_id=conn_id, poll_interval=0.1, **filters)
            trigger.asset_state_store = store  # type: ignore[assignment]
            shared = manager.subscribe(trigger_id=number, trigger=trigger, key=trigger.shared_stream_key())
            async for event in trigger.filter_shared_stream(shared):
                watched.setdefault(number, []).append(event.payload["batch_id"])

        experienced = Store()
        async with watching(conn_id, experienced, statuses=["expired"]):
            await until(lambda: bool(experienced.kept))
        # It was away for long: what it needs is older than what one who begins would look at.
        [kept] = experienced.kept
        experienced.kept[kept] = json.dumps({"since": NOW, "open": old, "done": {}})
        stores = [experienced, *(Store() for _ in range(20))]
        calls = len(world.requests)
        tasks = [asyncio.create_task(follow(0, experienced, statuses=["expired"]))]
        tasks += [asyncio.create_task(follow(number, stores[number])) for number in range(1, 21)]
        await until(lambda: all(store.kept for store in stores))
        assert len(world.requests) - calls <= 8
        await until(lambda: len(poll_threads()) == 1)
        world.change([old], "expired")
        [new] = world.add(status="completed", created_at=NOW + 101 * HOUR_S)
        await until(lambda: all(new in watched.get(number, []) for number in range(1, 21)))
        assert watched == {0: [old], **{number: [old, new] for number in range(1, 21)}}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        key = OpenAIBatchFinishedTrigger(conn_id=conn_id, poll_interval=0.1).shared_stream_key()
        for number in range(21):
            await manager.unsubscribe(number, key)
        await until(lambda: poll_threads() == [])

    run(main())


def test_a_stopped_trigger_leaves_no_thread_and_no_connection(world: World, conn_id: str) -> None:
    async def main() -> None:
        async with watching(conn_id):
            await looks(world)
        await until(lambda: poll_threads() == [])

    run(main())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"statuses": "completed"}, "statuses: expected a list of these: cancelled, completed, expired, failed"),
        ({"statuses": ["in_progress"]}, "statuses: expected a list"),
        ({"poll_interval": 0}, "poll_interval: expected a positive number"),
    ],
)
def test_what_cannot_work_is_refused_when_the_dag_is_parsed(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        OpenAIBatchFinishedTrigger(**wrong)


def test_its_arguments_are_the_same_whatever_order_they_are_written_in_and_hold_no_key() -> None:
    one = OpenAIBatchFinishedTrigger(statuses=["failed", "completed"], metadata={"b": ["2", "1"], "a": None})
    other = OpenAIBatchFinishedTrigger(metadata={"a": None, "b": {"1", "2"}}, statuses=("completed", "failed"))
    assert one.serialize() == other.serialize()
    assert type(one)(**one.serialize()[1]).serialize() == one.serialize()
    assert set(one.serialize()[1]) == {"conn_id", "statuses", "endpoint", "metadata", "dag_id", "poll_interval"}


def test_a_dag_file_that_names_it_loads_no_http() -> None:
    code = "import airflow.triggers.base, airflow.sdk, airflow.providers.common.compat.sdk as c, sys; c.BaseHook\n"
    code += "before = set(sys.modules)\n"
    code += "from airflow_provider_openai_batches.triggers import openai_batch_finished as module\n"
    code += "module.OpenAIBatchFinishedTrigger()\n"
    code += "print({'requests', 'tenacity', 'requests_toolbelt'} & (set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip().splitlines()[-1] == "set()"
