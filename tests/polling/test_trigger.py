"""The trigger: one true event, and a cancel only when the task has really ended."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
import time
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.models import TERMINAL_STATUSES, Batch, RequestCounts
from airflow_provider_openai_batches.polling import BatchPoller
from airflow_provider_openai_batches.triggers.openai_batches import Chronicle, OpenAIBatchTrigger, Tally
from tests.api.scripted_server import Request
from tests.polling.conftest import Connect
from tests.polling.waiting import run, sighted, until, wait_for
from tests.polling.world import World, error

KEY = "sk-never-to-be-seen-0123456789"


def rebuilt(trigger: BaseTrigger) -> OpenAIBatchTrigger:
    """The trigger as the triggerer makes it from what the database holds."""
    path, kwargs = trigger.serialize()
    assert path == f"{OpenAIBatchTrigger.__module__}.{OpenAIBatchTrigger.__name__}"
    return OpenAIBatchTrigger(**json.loads(json.dumps(kwargs)))


async def event_of(trigger: OpenAIBatchTrigger) -> dict[str, Any]:
    async with aclosing(rebuilt(trigger).run()) as events:
        [payload] = [event.payload async for event in events]
    return payload


def test_a_trigger_survives_the_database() -> None:
    trigger = OpenAIBatchTrigger(
        conn_id="c",
        batch_ids=("batch_1", "batch_2"),
        poll_interval=5,
        deadline=2_000_000_000.5,
        until="any",
        target_statuses=TERMINAL_STATUSES,
        cancel_on_kill=True,
    )
    assert rebuilt(trigger).serialize() == trigger.serialize()
    assert rebuilt(trigger).batch_ids == ["batch_1", "batch_2"]


def test_no_secret_is_in_kwargs_events_or_logs(
    world: World, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    conn_id = connect(world.base_url, password=KEY, headers={"x-proxy": KEY})
    [batch_id] = world.add(status="completed")
    [lost] = world.add()
    world.trouble = lambda request: error(401, f"Incorrect key {KEY}") if request.path.endswith(lost) else None
    caplog.set_level(logging.DEBUG)
    event = run(event_of(OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[batch_id], poll_interval=0.05)))
    late = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[lost], poll_interval=0.05, deadline=time.time() + 0.5)
    timeout = run(event_of(late))
    assert world.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps([event, timeout, late.serialize()]) + caplog.text


@pytest.mark.parametrize(
    ("statuses", "until_", "targets", "reached"),
    [
        (["completed", "in_progress"], "all", None, False),
        (["completed", "expired"], "all", None, True),
        (["in_progress", "cancelled"], "any", None, True),
        (["in_progress", "cancelling"], "any", None, False),
        (["in_progress", "in_progress"], "all", ["in_progress"], True),
        (["in_progress", "finalizing"], "all", ["in_progress"], False),
        # It went past the target between two looks, and will not come back.
        (["completed", "in_progress"], "all", ["in_progress"], True),
        (["failed"], "all", ["completed"], True),
        ([None, "completed"], "all", None, False),
        ([None, "completed"], "any", None, True),
        ([None], "any", None, False),
        (["a new status"], "all", None, False),
        ([], "all", None, True),
        ([], "any", None, True),
    ],
)
def test_when_the_wait_is_over(
    statuses: list[str | None], until_: Literal["all", "any"], targets: list[str] | None, reached: bool
) -> None:
    batch_ids = [f"batch_{number}" for number in range(len(statuses))]
    seen = {
        batch_id: Batch(id=batch_id, status=status)
        for batch_id, status in zip(batch_ids, statuses, strict=True)
        if status
    }
    at_once, one_by_one = (Tally(batch_ids, until_, targets) for _ in range(2))
    at_once.add(seen)
    for batch_id, batch in seen.items():
        one_by_one.add({batch_id: batch})
    assert at_once.is_reached is one_by_one.is_reached is reached


def test_a_batch_that_goes_on_from_a_target_without_a_trace_counts_no_more() -> None:
    tally = Tally(["batch_1", "batch_2"], "all", ["finalizing"])
    tally.add({"batch_1": Batch(id="batch_1", status="finalizing")})
    tally.add({"batch_1": Batch(id="batch_1", status="cancelling")})
    tally.add({"batch_2": Batch(id="batch_2", status="completed")})
    assert not tally.is_reached
    tally.add({"batch_1": Batch(id="batch_1", status="cancelled")})
    assert tally.is_reached


def test_many_batches_share_a_log_line_that_counts_them_by_status() -> None:
    def sighted(count: int, status: str) -> dict[str, Batch]:
        return {f"batch_{number}": Batch(id=f"batch_{number}", status=status) for number in range(count)}

    chronicle = Chronicle(sighted(2_000, ""))
    assert chronicle.lines(sighted(2_000, "in_progress"), now=1_000) == ["Of 2,000 batches: 2,000 in_progress"]
    assert chronicle.lines(sighted(2_000, "in_progress"), now=9_000) == []
    assert chronicle.lines(sighted(1, "completed"), now=9_001) == ["Of 2,000 batches: 1,999 in_progress, 1 completed"]
    assert chronicle.lines(sighted(2, "completed"), now=9_300) == []
    assert chronicle.lines(sighted(3, "completed"), now=9_301) == ["Of 2,000 batches: 1,997 in_progress, 3 completed"]
    assert chronicle.lines(sighted(2_000, "completed"), now=9_302) == ["Of 2,000 batches: 2,000 completed"]


def test_a_few_batches_have_log_lines_of_their_own() -> None:
    seen = {f"batch_{number}": Batch(id=f"batch_{number}", status="in_progress") for number in range(10)}
    assert Chronicle(seen).lines(seen) == [f"Batch {batch_id} is in_progress" for batch_id in seen]


def counted(number: int, done: int, status: str = "in_progress") -> Batch:
    counts = RequestCounts(total=100, completed=done)
    return Batch(id=f"batch_{number}", status=status, request_counts=counts, in_progress_at=1_000)


@pytest.mark.parametrize("count", [2, 50])
def test_progress_of_several_batches_is_one_line_with_counts_rate_and_time_left(count: int) -> None:
    chronicle = Chronicle(f"batch_{number}" for number in range(count))
    chronicle.lines({f"batch_{number}": counted(number, 0) for number in range(count)}, now=1_000)
    half = {f"batch_{number}": counted(number, 50) for number in range(count)}
    assert chronicle.lines(half, now=1_299) == []
    # Nothing is seen to change after that, yet it has not been told.
    assert chronicle.lines({}, now=1_300) == [
        f"Of {count} batches: {count} in_progress; {count * 50:,} of {count * 100:,} requests done; "
        f"{count * 10:,} a minute, about 5 min left"
    ]
    assert chronicle.lines({}, now=9_000) == []
    assert chronicle.lines(half, now=9_000) == []


def test_progress_of_one_batch_is_about_that_batch() -> None:
    chronicle = Chronicle(["batch_1"])
    assert chronicle.lines({"batch_1": counted(1, 0)}, now=1_000) == [
        "Batch batch_1 is in_progress; 0 of 100 requests done"
    ]
    assert chronicle.lines({"batch_1": counted(1, 50)}, now=1_300) == [
        "Batch batch_1 is in_progress; 50 of 100 requests done; 10 a minute, about 5 min left"
    ]


@given(
    st.integers(1, 30),
    st.lists(
        st.tuples(st.integers(0, 29), st.sampled_from(["validating", "in_progress", "completed"]), st.integers(0, 100)),
        max_size=60,
    ),
    st.floats(0.1, 200),
)
def test_a_log_has_no_more_lines_than_changes_of_status_and_five_minutes(
    count: int, steps: list[tuple[int, str, int]], interval: float
) -> None:
    chronicle = Chronicle(f"batch_{number}" for number in range(count))
    statuses: dict[int, str] = {}
    lines, changes, now = 0, 0, 10_000.0
    for number, status, done in steps:
        number %= count
        now += interval
        changes += statuses.get(number) != status
        statuses[number] = status
        lines += len(chronicle.lines({f"batch_{number}": counted(number, done, status)}, now=now))
    assert lines <= changes + (now - 10_000) / 300


def test_a_trigger_of_thousands_of_batches_does_not_stop_the_event_loop(world: World, conn_id: str) -> None:
    batches = world.add(4_000)
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=batches, poll_interval=0.1, until="any")

    async def main() -> float:
        event = asyncio.create_task(event_of(trigger))
        longest_s = 0.0
        while not event.done():
            # What this thread computes between two turns: whatever else the machine does is not in it.
            began = time.thread_time()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.thread_time() - began)
            if world.pages > 80:
                world.change(batches[:1], "completed")
        assert (await event)["status"] == "reached"
        return longest_s

    gc.collect()
    gc.freeze()  # what earlier tests have left is not looked through again in the middle of this one
    try:
        assert run(main()) < 0.5
    finally:
        gc.unfreeze()


def test_the_event_shows_every_batch_as_last_seen(world: World, conn_id: str) -> None:
    done, running = world.add(2, request_counts={"total": 4, "completed": 1, "failed": 0})

    async def main() -> dict[str, Any]:
        trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[running, done], poll_interval=0.05, until="any")
        event = asyncio.create_task(event_of(trigger))
        await until(lambda: len(world.requests) >= 2)
        world.change([done], "completed")
        return await event

    event = run(main())
    assert (event["status"], event["message"]) == ("reached", "")
    assert list(event["batches"]) == [running, done]
    assert event["batches"][running]["status"] == "in_progress"
    assert event["batches"][running]["request_counts"] == {"total": 4, "completed": 1, "failed": 0}
    assert event["batches"][done]["output_file_id"] == f"file-{done}"


def test_a_state_that_was_skipped_between_two_looks_does_not_hang_the_wait(world: World, conn_id: str) -> None:
    [batch_id] = world.add(status="validating")

    async def main() -> dict[str, Any]:
        trigger = OpenAIBatchTrigger(
            conn_id=conn_id, batch_ids=[batch_id], poll_interval=0.05, target_statuses=["in_progress"]
        )
        event = asyncio.create_task(event_of(trigger))
        await until(lambda: len(world.requests) >= 2)
        world.change([batch_id], "completed")
        return await event

    event = run(main())
    assert event["status"] == "reached"
    assert event["batches"][batch_id]["status"] == "completed"


def test_a_deadline_is_a_moment_whoever_waits_for_it(world: World, conn_id: str) -> None:
    [batch_id] = world.add()
    deadline = time.time() + 1.0
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[batch_id], poll_interval=3600, deadline=deadline)

    async def main() -> dict[str, Any]:
        restarted = asyncio.create_task(event_of(trigger))
        await until(lambda: bool(world.requests))
        restarted.cancel()
        return await event_of(trigger)

    event = run(main())
    assert time.time() >= deadline
    assert event["status"] == "timeout"
    assert event["batches"][batch_id]["status"] == "in_progress"


@pytest.mark.parametrize(("status", "outcome"), [("completed", "reached"), ("in_progress", "timeout")])
def test_a_deadline_that_passed_while_nobody_watched_leaves_one_look(
    world: World, conn_id: str, status: str, outcome: str
) -> None:
    [batch_id] = world.add(status=status)
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[batch_id], deadline=time.time() - 60)

    event = run(event_of(trigger))
    assert event["status"] == outcome
    assert event["batches"][batch_id]["status"] == status
    assert len(world.requests) == 1


def test_triggers_that_are_overdue_share_one_look_beside_a_waiter_whose_next_is_far_away(
    world: World, conn_id: str
) -> None:
    [running] = world.add()
    ended = world.add(50, status="completed")
    overdue = time.time() - 60

    async def main() -> list[dict[str, Any]]:
        async with BatchPoller.watch(conn_id, [running], poll_interval=3600) as bystander:
            await sighted(bystander)
            triggers = [OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[id_], deadline=overdue) for id_ in ended]
            return await asyncio.gather(*map(event_of, triggers))

    events = run(main())
    assert [event["status"] for event in events] == ["reached"] * 50
    assert len(world.requests) <= 3


def test_triggers_that_are_overdue_and_come_during_a_slow_look_have_theirs_right_after_it(
    world: World, conn_id: str
) -> None:
    [running] = world.add()
    ended = world.add(5, status="completed")
    world.latency_s = 0.5

    async def main() -> list[dict[str, Any]]:
        async with BatchPoller.watch(conn_id, [running], poll_interval=3600):
            await until(lambda: len(world.requests) == 1)
            overdue = time.time() - 60
            triggers = [OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[id_], deadline=overdue) for id_ in ended]
            return await asyncio.gather(*map(event_of, triggers))

    events = run(main())
    assert [event["status"] for event in events] == ["reached"] * 5


def test_a_batch_that_ends_between_the_last_poll_and_the_deadline_is_seen(world: World, conn_id: str) -> None:
    [batch_id] = world.add()

    def end(request: Request) -> None:
        if len(world.requests) == 2:
            world.change([batch_id], "completed")

    world.trouble = end
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[batch_id], deadline=time.time() + 2)
    assert run(event_of(trigger))["status"] == "reached"
    assert len(world.requests) == 2


def test_a_last_look_that_fails_ends_the_wait_too(world: World, conn_id: str) -> None:
    world.trouble = lambda request: error(500)
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=["batch_1"], deadline=time.time() - 60)
    assert run(event_of(trigger))["status"] == "timeout"


def test_an_event_leaves_out_what_is_empty_and_nothing_else(world: World, conn_id: str) -> None:
    [batch_id] = world.add(status="completed", metadata={"team": "search"}, error_file_id=None, errors=None)
    [seen] = run(event_of(OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[batch_id])))["batches"].values()
    assert not [name for name, value in seen.items() if value in (None, [], {})]
    assert Batch.from_dict(seen) == Batch.from_api(world.batch(batch_id))


def test_a_batch_never_seen_is_none_in_the_event(world: World, conn_id: str) -> None:
    world.trouble = lambda request: error(500)
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=["batch_1"], poll_interval=0.05, deadline=time.time() + 0.3)
    event = run(event_of(trigger))
    assert (event["status"], event["batches"]) == ("timeout", {"batch_1": None})


def test_an_outage_is_one_line_of_a_tasks_log_however_many_batches_it_waits_for(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_openai_batches.polling.OUTAGE_WORTH_TELLING_S", 0.2)
    batches = world.add(20)
    lines: list[str] = []
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=batches, poll_interval=0.05)
    monkeypatch.setattr(trigger, "_log", SimpleNamespace(warning=lambda *text: lines.append(text[0]), info=print))

    async def main() -> None:
        async def consume() -> None:
            async with aclosing(trigger.run()) as events:
                assert [event.payload["status"] async for event in events] == ["reached"]

        wait = asyncio.create_task(consume())
        await until(lambda: len(world.requests) >= 2)
        world.trouble = lambda request: error(503)
        await until(lambda: bool(lines))
        world.trouble = None
        world.change(batches, "completed")
        await wait

    run(main())
    assert len(lines) == 1


def test_a_log_that_takes_no_lines_holds_up_neither_the_event_loop_nor_another_waiter(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's supervisor reads no log line while it writes events to the database."""
    mine, other = world.add(2)
    taken, asked = threading.Event(), threading.Event()
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[mine], poll_interval=0.05)

    def info(line: str) -> None:
        asked.set()
        assert taken.wait(30)

    monkeypatch.setattr(trigger, "_log", SimpleNamespace(info=info))

    async def consume() -> None:
        async with aclosing(trigger.run()) as events:
            assert [event.payload["batches"][mine]["status"] async for event in events] == ["completed"]

    async def main() -> None:
        wait = asyncio.create_task(consume())
        await until(asked.is_set)
        world.change([mine, other], "completed")
        await wait_for(conn_id, other)
        taken.set()
        await wait

    run(main())


def test_one_batch_done_is_enough_for_any_whatever_becomes_of_the_other(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_openai_batches.api.retry.UNKNOWN_BATCH_GRACE_S", 0.0)
    done = world.add(status="completed")
    lost = ["batch_unknown_1", "batch_unknown_2"]
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[*lost, *done], poll_interval=0.05, until="any")
    assert run(event_of(trigger))["status"] == "reached"


def test_a_batch_that_stays_unknown_ends_the_wait_with_its_error(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_openai_batches.api.retry.UNKNOWN_BATCH_GRACE_S", 0.2)
    [running] = world.add()
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=["batch_gone", running], poll_interval=0.05)
    event = run(event_of(trigger))
    assert event["status"] == "error"
    assert "batch_gone" in event["message"]
    assert event["batches"]["batch_gone"] is None
    assert event["batches"][running]["status"] == "in_progress"


def test_an_unknown_connection_is_named_in_the_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_openai_batches.api.retry.OUTAGE_GRACE_S", 0.2)
    monkeypatch.setenv("AIRFLOW_CONN_BROKEN", "{not json")
    event = run(event_of(OpenAIBatchTrigger(conn_id="broken", batch_ids=["batch_1"], poll_interval=0.05)))
    assert event["status"] == "error"
    assert "connection broken cannot be read" in event["message"]


# --- on_kill --------------------------------------------------------------------------------------------------------


def in_state(trigger: OpenAIBatchTrigger, state: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Airflow say that the trigger's task instance is in this state."""
    if not hasattr(BaseTrigger, "on_kill"):
        pytest.skip("this Airflow tells no trigger that a user ended its task (before 3.3)")
    states = {} if state is None else {"run": {"task_3": state}}
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(lambda **where: states))
    ti = SimpleNamespace(dag_id="dag", task_id="task", run_id="run", map_index=3)
    is_property = hasattr(type(trigger), "task_instance")  # from Airflow 3.3 on
    monkeypatch.setattr(trigger, "_task_instance" if is_property else "task_instance", ti, raising=False)
    assert trigger.task_instance is ti


def killed(trigger: OpenAIBatchTrigger, state: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a trigger whose task instance is in this state."""
    in_state(trigger, state, monkeypatch)
    run(trigger.on_kill())


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "removed", "upstream_failed"])
def test_a_task_that_ended_takes_its_batches_along(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    batches = world.add(2)
    killed(OpenAIBatchTrigger(conn_id=conn_id, batch_ids=batches, cancel_on_kill=True), state, monkeypatch)
    assert world.cancelled == batches


@pytest.mark.parametrize(
    "state", ["deferred", "scheduled", "queued", "running", "up_for_retry", "restarting", "up_for_reschedule", None]
)
def test_a_task_that_goes_on_or_was_cleared_keeps_its_batches(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch, state: str | None
) -> None:
    batches = world.add(2)
    killed(OpenAIBatchTrigger(conn_id=conn_id, batch_ids=batches, cancel_on_kill=True), state, monkeypatch)
    assert not world.requests


def test_nothing_is_cancelled_unless_asked_for(world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(OpenAIBatchTrigger(conn_id=conn_id, batch_ids=world.add()), "failed", monkeypatch)
    assert not world.requests


def test_a_batch_that_cannot_be_cancelled_does_not_save_the_others(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, over, running = world.add(3)
    answers = {gone: error(404), over: error(409)}
    world.trouble = lambda request: answers.get(request.path.split("/")[-2]) if request.method == "POST" else None
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=[gone, over, running], cancel_on_kill=True)
    killed(trigger, "failed", monkeypatch)
    assert world.status(running) == "cancelling"


def test_a_cancel_under_way_survives_that_the_triggerer_cancels_the_trigger_again(
    world: World, conn_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = world.add(2)
    trigger = OpenAIBatchTrigger(conn_id=conn_id, batch_ids=batches, cancel_on_kill=True)
    in_state(trigger, "failed", monkeypatch)
    state, asked, answer = RuntimeTaskInstance.get_task_states, threading.Event(), threading.Event()

    def slow(**where: object) -> object:
        asked.set()
        answer.wait(10)
        return state(**where)

    async def main() -> None:
        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(slow))
        kill = asyncio.create_task(trigger.on_kill())
        await until(asked.is_set)
        kill.cancel()
        with pytest.raises(asyncio.CancelledError):
            await kill
        answer.set()
        await until(lambda: world.cancelled == batches)

    run(main())
