"""Every batch that ends is told once: in whatever order they end, whenever the look comes, whatever restarts."""

from __future__ import annotations

import json
from collections import Counter
from itertools import takewhile
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.survey import LISTED_LATE_S, Cursor, Survey

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86_400
START = 10 * DAY_S
LATER = START + 365 * DAY_S


def batch(number: int, created_at: int, status: str = "in_progress") -> Batch:
    return Batch(id=f"batch_{number}", status=status, created_at=created_at)


def survey(
    *batches: Batch, reach: float = 0, is_first: bool = False, now: float = LATER, gone: tuple[str, ...] = ()
) -> Survey:
    return Survey({each.id: each for each in batches}, reach, is_first, now, gone)


def everything(_: Batch) -> bool:
    return True


def told(cursor: Cursor, seen: Survey) -> tuple[Cursor, list[str]]:
    cursor, ended = cursor.after(seen, everything)
    return cursor, [each.id for each in ended]


lives = st.lists(
    st.tuples(
        st.one_of(st.integers(0, HOUR_S), st.integers(0, 3 * DAY_S)),  # created, after the start
        st.one_of(st.integers(1, HOUR_S), st.integers(1, DAY_S)),  # seconds until it is over
        st.booleans(),  # whether anybody wants it
        st.integers(0, 20 * MINUTE_S),  # seconds until the listing shows it
        st.one_of(  # how far its server's clock is behind; some are ahead, by years
            st.integers(0, 40 * MINUTE_S), st.integers(-3 * HOUR_S, 0), st.integers(-4 * 365 * DAY_S, 0)
        ),
    ),
    max_size=25,
)
pauses = st.one_of(st.integers(1, 15 * MINUTE_S), st.integers(1, DAY_S))
looks = st.lists(st.tuples(pauses, st.booleans()), min_size=1, max_size=20)


@given(lives=lives, looks=looks, by_clock=st.booleans())
def test_each_wanted_batch_is_told_once_however_it_ends_and_whenever_one_looks(
    lives: list[tuple[int, int, bool, int, int]], looks: list[tuple[int, bool]], by_clock: bool
) -> None:
    now, cursor, heard = START, None, Counter[str]()
    # The last look comes when all are over.
    for pause, restarts in [*looks, (6 * DAY_S, False)]:
        now += pause
        # Newest first: by what the servers' clocks say, or by what is true.
        shown = [
            batch(number, START + created - slow, "completed" if now >= START + created + life else "in_progress")
            for number, (created, life, _, late, slow) in sorted(
                enumerate(lives), key=lambda item: item[1][0] - by_clock * item[1][4], reverse=True
            )
            if now >= START + created + late
        ]
        if cursor is None:
            cursor, _ = Cursor().after(survey(*shown, is_first=True, now=now), lambda each: lives[_of(each)][2])
            before = {each.id for each in shown if each.is_terminal}
            continue
        if restarts:
            cursor = Cursor.from_json(json.loads(json.dumps(cursor.to_json())))
        assert cursor.since <= now
        reach = cursor.reach(now)
        listed = list(takewhile(lambda each, reach=reach: (each.created_at or 0) >= reach, shown))  # type: ignore[misc]
        older = [each for each in shown if each.id in cursor.open]
        cursor, ended = cursor.after(survey(*listed, *older, reach=reach, now=now), lambda each: lives[_of(each)][2])
        heard.update(each.id for each in ended)
        assert all(lives[_of(each)][2] for each in ended)
    assert cursor is not None
    wanted = {f"batch_{number}" for number, life in enumerate(lives) if life[2]} - before
    assert heard == Counter(wanted)
    assert not cursor.open


def _of(each: Batch) -> int:
    return int(each.id.removeprefix("batch_"))


def test_one_who_begins_is_told_what_ends_from_then_on() -> None:
    over, going_on = batch(1, START, "completed"), batch(2, START - DAY_S)
    cursor, _ = told(Cursor(), survey(over, going_on, is_first=True))
    cursor, ended = told(cursor, survey(over, batch(2, START - DAY_S, "expired")))
    assert ended == ["batch_2"]


def test_events_come_in_the_order_of_creation() -> None:
    cursor = Cursor(since=START)
    _, ended = told(cursor, survey(*(batch(number, START + number, "failed") for number in (3, 1, 2))))
    assert ended == ["batch_1", "batch_2", "batch_3"]


def test_batch_that_the_listing_shows_late_is_told() -> None:
    cursor, ended = told(Cursor(since=START), survey(batch(1, START - LISTED_LATE_S, "completed")))
    assert ended == ["batch_1"]
    assert told(cursor, survey(batch(1, START - LISTED_LATE_S, "completed")))[1] == []


def test_batch_of_a_server_whose_clock_is_40_minutes_behind_is_told_once() -> None:
    assert LISTED_LATE_S >= 40 * MINUTE_S
    young, slow = batch(1, START, "completed"), batch(2, START - 40 * MINUTE_S)
    cursor, ended = told(Cursor(since=START - DAY_S), survey(young))
    assert ended == ["batch_1"]
    cursor, ended = told(cursor, survey(young, slow))
    assert (cursor.open, ended) == ({"batch_2"}, [])
    cursor = Cursor.from_json(json.loads(json.dumps(cursor.to_json())))
    over = batch(2, START - 40 * MINUTE_S, "failed")
    cursor, ended = told(cursor, survey(young, over))
    assert ended == ["batch_2"]
    assert told(Cursor.from_json(cursor.to_json()), survey(young, over))[1] == []


def test_batch_that_is_years_ahead_makes_no_other_look_old() -> None:
    ahead = batch(1, START + 3 * 365 * DAY_S, "completed")
    cursor, ended = told(Cursor(since=START), survey(ahead, now=START + MINUTE_S))
    assert (ended, cursor.since) == (["batch_1"], START + MINUTE_S)
    cursor, ended = told(cursor, survey(ahead, batch(2, START, "failed"), now=START + 2 * MINUTE_S))
    assert ended == ["batch_2"]
    # It is known for as long as it is listed, and that is until our clock is there, too.
    for now in (START + DAY_S, START + 3 * 365 * DAY_S, START + 4 * 365 * DAY_S):
        cursor, ended = told(cursor, survey(ahead, batch(now, now), now=now))
        assert ended == []
    assert "batch_1" not in cursor.done


def test_cursor_that_was_moved_years_ahead_hears_again() -> None:
    """Our clock was ahead, too, or the version that wrote it had no other clock than the service's."""
    cursor = Cursor(since=START + 3 * 365 * DAY_S, done={"batch_1": START + 3 * 365 * DAY_S})
    seen = survey(batch(2, START, "failed"), reach=START - LISTED_LATE_S, now=START)
    assert cursor.is_served_by(seen)
    cursor, ended = told(cursor, seen)
    assert (ended, cursor.since) == (["batch_2"], START)


@pytest.mark.parametrize("back_s", [1, MINUTE_S, LISTED_LATE_S])
def test_clock_that_steps_back_a_little_repeats_nothing_and_leaves_out_nothing(back_s: int) -> None:
    told_before = [batch(number, START - number * MINUTE_S, "completed") for number in range(180)]
    cursor, _ = told(Cursor(), survey(*told_before, now=START))
    now = START - back_s
    _, ended = told(cursor, survey(*told_before, batch(200, now, "failed"), reach=cursor.reach(now), now=now))
    assert ended == ["batch_200"]


def test_survey_of_older_batches_alone_does_not_move_the_cursor_back() -> None:
    cursor, _ = told(Cursor(since=START, open=frozenset({"batch_1"})), survey(batch(1, START - DAY_S)))
    assert cursor == Cursor(since=START, open=frozenset({"batch_1"}))


def test_survey_that_does_not_go_back_far_enough_serves_nobody() -> None:
    cursor = Cursor(since=START)
    assert cursor.is_served_by(survey(reach=START - LISTED_LATE_S))
    assert not cursor.is_served_by(survey(reach=START - LISTED_LATE_S + 1))


def test_batch_the_service_has_lost_is_not_asked_for_for_ever() -> None:
    cursor, ended = told(Cursor(since=START, open=frozenset({"batch_1", "batch_2"})), survey(gone=("batch_1",)))
    assert (cursor.open, ended) == ({"batch_2"}, [])


def test_batch_that_never_ends_is_forgotten_after_a_month() -> None:
    stuck = batch(1, START)
    cursor, _ = told(Cursor(), survey(stuck, is_first=True))
    assert cursor.open == {"batch_1"}
    cursor, _ = told(cursor, survey(stuck, batch(2, START + 29 * DAY_S)))
    assert cursor.open == {"batch_1", "batch_2"}
    cursor, _ = told(cursor, survey(stuck, batch(2, START + 31 * DAY_S)))
    assert cursor.open == {"batch_2"}


@pytest.mark.parametrize(("batches_a_day", "most_bytes"), [(1_440, 4_000), (10_000, 24_000), (48_000, 110_000)])
def test_cursor_stays_small(batches_a_day: int, most_bytes: int) -> None:
    cursor, size = Cursor(), 0
    every_s = DAY_S / batches_a_day
    # Eight hours, a look a minute.
    for look in range(1, 481):
        first, after = (int(minute * MINUTE_S / every_s) for minute in (look - 1, look))
        made = [
            Batch(id=f"batch_{number:032x}", status="completed", created_at=START + int(number * every_s))
            for number in range(first, after)
        ]
        cursor, _ = told(cursor, survey(*made, reach=-1))
        size = max(size, len(json.dumps(cursor.to_json())))
    assert most_bytes / 2 < size < most_bytes
    many = Cursor(START, frozenset(f"batch_{number:032x}" for number in range(1_500)))
    assert len(json.dumps(many.to_json())) < 65_536  # what Airflow keeps without a warning


@pytest.mark.parametrize(
    "kept", [None, 1, [], {}, {"since": "soon", "open": "", "done": {}}, {"since": 1, "open": [], "done": {}}]
)
def test_what_is_no_cursor_is_refused(kept: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"Expected|missing"):
        Cursor.from_json(kept)
