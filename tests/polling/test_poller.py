"""The shared poll loop: one for all, and nobody's trouble but one's own."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_openai_batches import polling
from airflow_provider_openai_batches.api.error_answers import status_error
from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.polling import BatchPoller, Outage, Track, backoff_s
from tests.api.scripted_server import RESET, Answer
from tests.polling.conftest import Connect
from tests.polling.waiting import poll_tasks, poll_threads, run, sighted, sockets_to, until, wait_for
from tests.polling.world import PAGE_SIZE, World, error

NEVER = 3600.0


# --- one loop for all -----------------------------------------------------------------------------------------------


def test_one_walk_through_the_listing_serves_all_waiters(world: World, conn_id: str) -> None:
    batches = world.add(250)
    interval = 0.2

    async def main() -> None:
        began = asyncio.get_running_loop().time()
        waits = [asyncio.create_task(wait_for(conn_id, batch_id, poll_interval=interval)) for batch_id in batches]
        await until(lambda: world.pages >= 9)
        world.change(batches, "completed")
        assert await asyncio.gather(*waits) == [{batch_id} for batch_id in batches]
        polls = 2 + (asyncio.get_running_loop().time() - began) / (0.9 * interval)
        assert world.pages == len(world.requests)
        assert len(world.requests) <= 3 * polls

    run(main())


def test_a_thousand_triggers_that_join_within_a_second_do_not_start_a_thousand_polls(
    world: World, conn_id: str
) -> None:
    batches = world.add(1_000)
    interval = 1.0

    async def main() -> None:
        began = asyncio.get_running_loop().time()
        waits = []
        for batch_id in batches:
            waits.append(asyncio.create_task(wait_for(conn_id, batch_id, poll_interval=interval)))
            await asyncio.sleep(0.0005)
        await until(lambda: len(poll_tasks()) == len(poll_threads()) == 1)
        # The first poll serves those that were there, the second everybody.
        await until(lambda: world.pages >= 10)
        assert len(world.requests) <= 11 * (2 + (asyncio.get_running_loop().time() - began) / (0.9 * interval))
        world.change(batches, "completed")
        await asyncio.gather(*waits)

    run(main())


def test_a_completion_is_noticed_within_one_interval(world: World, conn_id: str) -> None:
    slow, quick = world.add(2)
    world.add(150)

    async def main() -> None:
        wait = asyncio.create_task(wait_for(conn_id, quick, poll_interval=0.2))
        bystander = asyncio.create_task(wait_for(conn_id, slow, poll_interval=NEVER))
        await until(lambda: len(world.requests) >= 3)
        world.change([quick], "completed")
        calls = len(world.requests)
        await wait
        assert len(world.requests) - calls <= 2 * 2, "two calls a look, and one look may have been under way"
        bystander.cancel()

    run(main())


def test_a_late_waiter_is_told_at_once_what_is_known(world: World, conn_id: str) -> None:
    [batch_id] = world.add()

    async def main() -> None:
        async with BatchPoller.watch(conn_id, [batch_id], poll_interval=NEVER) as first:
            await sighted(first)
            calls = len(world.requests)
            async with BatchPoller.watch(conn_id, [batch_id], poll_interval=NEVER) as late:
                assert (await sighted(late)).id == batch_id
            assert len(world.requests) == calls

    run(main())


def test_a_batch_that_is_over_is_not_asked_for_again(world: World, conn_id: str) -> None:
    over, running = world.add(2)
    world.change([over], "completed")

    async def main() -> None:
        async with BatchPoller.watch(conn_id, [over, running], poll_interval=0.05) as watch:
            await sighted(watch, "completed")
            await until(lambda: world.count(f"/v1/batches/{running}") >= 3)
        assert world.pages == 1
        assert world.count(f"/v1/batches/{over}") == 0

    run(main())


def test_only_changes_are_news(world: World, conn_id: str) -> None:
    [batch_id] = world.add()

    async def main() -> None:
        async with BatchPoller.watch(conn_id, [batch_id], poll_interval=0.05) as watch:
            await sighted(watch)
            following = asyncio.create_task(watch.next())
            await until(lambda: len(world.requests) >= 4)
            assert not following.done()
            world.change([batch_id], "finalizing")
            news = await following
            assert isinstance(news, dict)
            assert [batch.status for batch in news.values()] == ["finalizing"]

    run(main())


# --- trouble --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [error(404), error(500), error(403)], ids=["404", "500", "403"])
def test_one_batchs_trouble_never_touches_another(world: World, conn_id: str, answer: Answer) -> None:
    broken = world.add(5)
    sound = world.add(5)
    world.add(1_200)
    world.trouble = lambda request: answer if request.path.rpartition("/")[2] in broken else None

    async def main() -> None:
        waits = {batch_id: asyncio.create_task(wait_for(conn_id, batch_id)) for batch_id in (*broken, *sound)}
        for batch_id in sound:
            world.change([batch_id], "completed")
            await asyncio.wait_for(waits[batch_id], 2)
        assert not any(waits[batch_id].done() for batch_id in broken)
        world.trouble = None
        world.change(broken, "completed")
        await asyncio.gather(*waits.values())

    run(main())


def test_a_fresh_batch_that_reads_do_not_show_yet_is_waited_for(world: World, conn_id: str) -> None:
    [batch_id] = world.add()
    world.trouble = lambda request: error(404) if len(world.requests) < 5 else None

    async def main() -> None:
        async with BatchPoller.watch(conn_id, [batch_id], poll_interval=0.05) as watch:
            assert (await sighted(watch)).id == batch_id

    run(main())


def test_a_key_that_is_rotated_during_the_wait_is_read_again(world: World, connect: Connect) -> None:
    world.key = "sk-first-0123456789"
    conn_id = connect(world.base_url, password="sk-first-0123456789")
    [batch_id] = world.add()

    async def main() -> None:
        wait = asyncio.create_task(wait_for(conn_id, batch_id, poll_interval=0.05))
        await until(lambda: len(world.requests) >= 2)
        world.key = "sk-second-0123456789"
        refused = len(world.requests) + 2
        await until(lambda: len(world.requests) >= refused)
        assert not wait.done()
        connect(world.base_url, password="sk-second-0123456789")
        world.change([batch_id], "completed")
        await wait

    run(main())


def test_a_connection_that_cannot_be_read_any_more_leaves_the_client_it_gave(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [batch_id] = world.add()

    async def main() -> None:
        wait = asyncio.create_task(wait_for(conn_id, batch_id, poll_interval=0.05))
        await until(lambda: len(world.requests) >= 2)
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", "{not json")
        world.trouble = lambda request: error(401)
        calls = len(world.requests)
        await until(lambda: len(world.requests) >= calls + 2)
        world.trouble = None
        world.change([batch_id], "completed")
        await wait

    run(main())


def test_a_connection_that_moves_to_another_host_is_followed(world: World, conn_id: str, connect: Connect) -> None:
    [batch_id] = world.add()

    async def main(other: World) -> None:
        wait = asyncio.create_task(wait_for(conn_id, batch_id, poll_interval=0.05))
        await until(lambda: len(world.requests) >= 2)
        world.trouble = lambda request: RESET
        connect(other.base_url)
        await wait

    with World() as other:
        assert other.add() == [batch_id]
        other.change([batch_id], "completed")
        run(main(other))


def test_a_connection_that_moves_while_its_old_key_stays_good_is_followed_for_new_batches(
    world: World, conn_id: str, connect: Connect
) -> None:
    [old] = world.add()

    async def main(other: World) -> None:
        earlier = asyncio.create_task(wait_for(conn_id, old, poll_interval=0.05))
        await until(lambda: len(world.requests) >= 2)
        connect(other.base_url)
        [_, new] = other.add(2, "completed")
        await wait_for(conn_id, new, poll_interval=0.05)
        earlier.cancel()

    with World() as other:
        run(main(other), within=20)


def test_an_outage_is_waited_out_with_one_warning(world: World, conn_id: str, caplog: pytest.LogCaptureFixture) -> None:
    batches = world.add(20)

    def said() -> list[str]:
        texts = [record.message for record in caplog.records if record.name == polling.__name__]
        return [text.split(conn_id)[1].split(":")[0] for text in texts]

    async def main() -> None:
        waits = [asyncio.create_task(wait_for(conn_id, batch_id, poll_interval=0.05)) for batch_id in batches]
        await until(lambda: len(world.requests) >= 2)
        for outages, answer in enumerate([error(503), RESET], start=1):
            world.trouble = lambda request, answer=answer: answer
            calls = len(world.requests)
            await until(lambda calls=calls: len(world.requests) >= calls + 12)
            world.trouble = None
            await until(lambda outages=outages: len(said()) >= 2 * outages)
        world.change(batches, "completed")
        await asyncio.gather(*waits)

    with caplog.at_level(logging.INFO, polling.__name__):
        run(main())
    assert said() == [" fails, trying again until it works", " works again."] * 2


def test_a_batch_in_trouble_among_sound_ones_is_logged_once(
    world: World, conn_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = world.add(2)
    world.trouble = lambda request: error(500) if request.path.endswith(broken) else None
    world.add(250)

    async def main() -> None:
        waits = [
            asyncio.create_task(wait_for(conn_id, broken, poll_interval=0.05)),
            asyncio.create_task(wait_for(conn_id, sound, poll_interval=0.07)),
        ]
        await until(lambda: world.count(f"/v1/batches/{broken}") >= 5)
        world.trouble = None
        world.change([broken, sound], "completed")
        await asyncio.gather(*waits)

    with caplog.at_level(logging.INFO, polling.__name__):
        run(main())
    assert sum(broken in record.message for record in caplog.records) <= 1


def test_retry_after_is_obeyed_by_all_waiters_and_by_newcomers(world: World, conn_id: str) -> None:
    first, second, third = world.add(3)
    told: list[float] = []
    calls_after: list[float] = []

    async def main() -> None:
        clock = asyncio.get_running_loop().time

        def trouble(request: object) -> Answer | None:
            if not told and len(world.requests) > 3:
                told.append(clock())
                return error(429, retry_after="1")
            if told:
                calls_after.append(clock())
            return None

        world.trouble = trouble
        waits = [
            asyncio.create_task(wait_for(conn_id, first, poll_interval=0.05)),
            asyncio.create_task(wait_for(conn_id, second, poll_interval=0.08)),
        ]
        await until(lambda: bool(told))
        waits.append(asyncio.create_task(wait_for(conn_id, third, poll_interval=0.05)))
        world.change([first, second, third], "completed")
        await asyncio.gather(*waits)
        assert calls_after[0] - told[0] >= 1.0

    run(main())


def test_hours_of_outage_do_not_use_up_the_patience_with_a_refusal() -> None:
    track = Track()
    down, refused, gone = (status_error("GET /batches", status, {}, b"") for status in (503, 401, 404))
    for hour in range(10):
        assert not isinstance(track.judge(down, hour * 3600.0, 0.0), OpenAIBatchesError)
    assert track.judge(refused, 36_000.0, 0.0) is None
    assert track.judge(refused, 36_599.0, 0.0) is None
    assert track.judge(refused, 36_600.0, 0.0) is refused
    track.recovered()
    assert track.judge(gone, 90_000.0, 0.0) is None
    assert track.judge(gone, 90_119.0, 0.0) is None
    assert track.judge(gone, 90_120.0, 0.0) is gone


def test_waiters_hear_of_an_outage_after_five_minutes_and_once() -> None:
    track = Track()
    down = status_error("GET /batches", 503, {}, b"")
    told = [track.judge(down, float(minute * 60), 1_000.0) for minute in range(600)]
    assert [(minute, news) for minute, news in enumerate(told) if news] == [(5, Outage(down, since=1_000.0))]
    track.recovered()
    assert track.judge(down, 40_000.0, 1_000.0) is None
    assert track.judge(down, 40_300.0, 1_000.0) == Outage(down, since=41_000.0)


def test_the_pause_of_an_outage_grows_to_five_minutes_and_never_below_the_interval() -> None:
    assert [round(backoff_s(60, failed)) for failed in range(6)] == [60, 90, 135, 202, 300, 300]
    assert backoff_s(0.1, 1_000_000) == 300
    assert backoff_s(900, 3) == 900


# --- the event loop -------------------------------------------------------------------------------------------------


def test_a_slow_service_holds_up_neither_the_event_loop_nor_its_default_executor(world: World, conn_id: str) -> None:
    batches = world.add(150)
    answer = threading.Event()
    world.trouble = lambda request: None if answer.wait(30) else error(503)

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        waits = [asyncio.create_task(wait_for(conn_id, batch_id)) for batch_id in batches]
        try:
            await until(lambda: len(world.requests) == 1)
            # A call that had one of the two would keep it until we let the service answer.
            for _ in range(20):
                await asyncio.to_thread(lambda: None)
            assert len(world.requests) == 1
            world.change(batches, "completed")
        finally:
            answer.set()
        await asyncio.gather(*waits)

    run(main())


def test_what_the_first_page_says_is_told_while_the_second_is_asked_for(world: World, conn_id: str) -> None:
    batches = world.add(PAGE_SIZE + 50)
    told = threading.Event()
    world.trouble = lambda request: None if "after" not in request.query or told.wait(30) else error(503)

    async def main() -> None:
        async with BatchPoller.watch(conn_id, batches, poll_interval=60) as watch:
            news = await watch.next()
            assert len(world.requests) <= 2
            assert not isinstance(news, Outage)
            seen = set(news)
            told.set()
            while seen != set(batches):
                news = await watch.next()
                assert not isinstance(news, Outage)
                assert seen.isdisjoint(news)
                seen |= set(news)

    run(main())


def test_news_for_many_waiters_leave_others_their_turns(world: World, conn_id: str) -> None:
    batches = world.add(1_000)
    turns = 0
    told = list[int]()

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def wait(batch_id: str) -> None:
        await wait_for(conn_id, batch_id)
        told.append(turns)

    async def main() -> None:
        waits = [asyncio.create_task(wait(batch_id)) for batch_id in batches]
        await until(lambda: world.pages >= 20)
        world.change(batches, "completed")
        counting = asyncio.create_task(count_turns())
        await asyncio.gather(*waits)
        counting.cancel()

    run(main())
    assert max(Counter(told).values()) <= 40


def test_the_last_waiter_out_closes_loop_client_and_thread_and_the_next_one_opens_new_ones(
    world: World, conn_id: str
) -> None:
    batches = world.add(3)

    async def main() -> None:
        for _ in range(3):
            waits = [asyncio.create_task(wait_for(conn_id, batch_id, poll_interval=0.05)) for batch_id in batches]
            calls = len(world.requests)
            await until(lambda calls=calls: len(world.requests) >= calls + 2)
            await until(lambda: len(poll_tasks()) == len(poll_threads()) == sockets_to(world.port) == 1)
            waits.pop().cancel()
            calls = len(world.requests)
            await until(lambda calls=calls: len(world.requests) >= calls + 2)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            await until(lambda: not poll_tasks() and not poll_threads() and not sockets_to(world.port))

    run(main())


def test_waiters_that_leave_during_a_slow_call_leave_nothing_behind(world: World, conn_id: str) -> None:
    batches = world.add(500)
    world.latency_s = 0.3

    async def main() -> None:
        wait = asyncio.create_task(wait_for(conn_id, *batches))
        await until(lambda: len(world.requests) == 1)
        wait.cancel()
        await until(lambda: not poll_tasks() and not poll_threads() and not sockets_to(world.port))
        assert len(world.requests) == 1

    run(main())


def test_a_service_that_hangs_does_not_keep_a_process_alive_that_was_told_to_stop(world: World, conn_id: str) -> None:
    answer = threading.Event()
    world.trouble = lambda request: error(503) if answer.wait(60) else None
    process = subprocess.Popen([sys.executable, "-c", _WAIT_UNTIL_STDIN_ENDS, conn_id], stdin=subprocess.PIPE)
    try:
        run(until(lambda: len(world.requests) == 1, within=40), within=40)
        process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        answer.set()
        process.kill()
        process.wait()


_WAIT_UNTIL_STDIN_ENDS = """
import asyncio, sys
from airflow_provider_openai_batches.polling import BatchPoller

async def main():
    async with BatchPoller.watch(sys.argv[1], ["batch_1"], poll_interval=1):
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def test_a_cancelled_waiter_leaves_the_others_waiting(world: World, conn_id: str) -> None:
    shared, other = world.add(2)

    async def main() -> None:
        cancelled = asyncio.create_task(wait_for(conn_id, shared, other))
        waits = [asyncio.create_task(wait_for(conn_id, batch_id)) for batch_id in (shared, other)]
        await until(lambda: len(world.requests) >= 2)
        cancelled.cancel("for a reason")
        with pytest.raises(asyncio.CancelledError, match="for a reason"):
            await cancelled
        world.change([shared, other], "completed")
        await asyncio.gather(*waits)

    run(main())


@pytest.mark.parametrize("kind", [RuntimeError, SystemError])
def test_a_defect_in_the_loop_strands_nobody(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    batches = world.add(5)

    def defect(*args: object, **kwargs: object) -> None:
        raise kind("the loop is broken")

    async def main() -> None:
        waits = [asyncio.create_task(wait_for(conn_id, batch_id)) for batch_id in batches]
        await until(lambda: len(world.requests) >= 2)
        with monkeypatch.context() as broken:
            broken.setattr(polling, "polled", defect)
            results = await asyncio.gather(*waits, return_exceptions=True)
        assert {str(result) for result in results} == {
            f"Polling batches on {conn_id} broke down: {kind.__name__}: the loop is broken"
        }
        world.change(batches, "completed")
        await wait_for(conn_id, *batches)
        await until(lambda: not poll_tasks() and not poll_threads() and not sockets_to(world.port))

    run(main())


def test_a_loop_that_broke_down_is_closed_even_if_its_successor_is_there_already(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [batch_id] = world.add()

    def defect(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the loop is broken")

    async def main() -> None:
        async with BatchPoller.watch(conn_id, [batch_id], poll_interval=0.05) as watch:
            with monkeypatch.context() as broken:
                broken.setattr(polling, "polled", defect)
                with pytest.raises(OpenAIBatchesError, match="broke down"):
                    await sighted(watch, "completed")
            successor = asyncio.create_task(wait_for(conn_id, batch_id, poll_interval=0.05))
            await until(lambda: len(poll_threads()) == 2)
        await until(lambda: len(poll_threads()) == sockets_to(world.port) == 1)
        world.change([batch_id], "completed")
        await successor
        await until(lambda: not poll_threads() and not sockets_to(world.port))

    run(main())


def test_the_loops_log_lines_do_not_carry_the_first_triggers_context(world: World, conn_id: str) -> None:
    [batch_id] = world.add()
    task_id: contextvars.ContextVar[str] = contextvars.ContextVar("task_id", default="nobody's")
    seen = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(task_id.get())

    async def main() -> None:
        task_id.set("the first trigger's")
        world.trouble = lambda request: error(500)
        wait = asyncio.create_task(wait_for(conn_id, batch_id, poll_interval=0.05))
        await until(lambda: bool(seen))
        wait.cancel()

    note = Note(logging.WARNING)
    polling.log.addHandler(note)
    try:
        run(main())
    finally:
        polling.log.removeHandler(note)
    assert set(seen) == {"nobody's"}


def test_connections_have_loops_of_their_own(world: World, connect: Connect) -> None:
    [batch_id] = world.add()

    async def main(broken: World) -> None:
        good, bad = connect(world.base_url, conn_id="good"), connect(broken.base_url, conn_id="bad")
        other = asyncio.create_task(wait_for(bad, batch_id, poll_interval=0.05))
        wait = asyncio.create_task(wait_for(good, batch_id, poll_interval=0.05))
        await until(lambda: len(broken.requests) >= 2 and len(world.requests) >= 2)
        assert len(poll_tasks()) == 2
        world.change([batch_id], "completed")
        await wait
        assert not other.done()
        other.cancel()

    with World() as broken:
        broken.trouble = lambda request: error(500)
        run(main(broken))
