"""One look at many batches: few calls, and everyone's trouble is their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import NotFoundError
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.sighting import Sighting, look
from tests.api.scripted_server import RESET, Answer, Request, as_json
from tests.polling.world import PAGE_SIZE, Trouble, World, error


@pytest.fixture
def looker(world: World) -> Iterator[BatchClient]:
    with BatchClient(ClientSettings(api_key="sk-any-0123456789", base_url=world.base_url), attempts=1) as client:
        yield client


def see(client: BatchClient, wanted: list[str]) -> Sighting:
    """Look once; whoever listens hears of each batch that was seen, and hears it once."""
    told: list[tuple[str, Batch]] = []
    sighting = look(client, wanted, threading.Event(), lambda page: told.extend(page.items()))
    assert dict(told) == sighting.batches
    assert len(told) == len(sighting.batches)
    return sighting


def fewest_calls(newest_first: list[str], wanted: set[str]) -> int:
    """Calls of someone who knows where each batch is: so many pages, and the rest one by one."""
    pages = -(-len(newest_first) // PAGE_SIZE)
    return min(depth + len(wanted - set(newest_first[: depth * PAGE_SIZE])) for depth in range(pages + 1))


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    total=st.integers(0, 450),
    places=st.sets(st.one_of(st.integers(0, 449), st.integers(0, 120)), max_size=40),
    unknown=st.integers(0, 3),
)
def test_every_batch_is_found_with_at_most_twice_the_fewest_calls(total: int, places: set[int], unknown: int) -> None:
    with World() as world:
        newest_first = world.add(total)[::-1]
        strangers = {f"batch_stranger_{number}" for number in range(unknown)}
        here = {newest_first[place] for place in places if place < total}
        wanted = here | strangers
        with BatchClient(ClientSettings(api_key="sk-any-0123456789", base_url=world.base_url), attempts=1) as client:
            sighting = see(client, sorted(wanted))
        assert sighting.batches.keys() == here
        assert sighting.errors.keys() == strangers
        assert all(isinstance(trouble, NotFoundError) for trouble in sighting.errors.values())
        assert sighting.outage is None
        assert sighting.calls == len(world.requests)
        assert sighting.calls <= 2 * fewest_calls(newest_first, wanted)


def test_a_last_page_with_few_of_many_batches_is_still_one_call(world: World, looker: BatchClient) -> None:
    newest_first = world.add(5 * PAGE_SIZE)[::-1]
    wanted = newest_first[: 4 * PAGE_SIZE + 4]
    assert see(looker, wanted).batches.keys() == set(wanted)
    assert len(world.requests) == 5


def test_a_thousand_batches_cost_ten_calls(world: World, looker: BatchClient) -> None:
    batches = world.add(1_000)
    assert len(see(looker, batches).batches) == 1_000
    assert len(world.requests) == 10


def test_a_lone_batch_is_retrieved_however_many_there_are(world: World, looker: BatchClient) -> None:
    old, *_ = world.add(300)
    assert see(looker, [old]).batches.keys() == {old}
    assert [request.path for request in world.requests] == [f"/v1/batches/{old}"]


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("completed", {"output_file_id": None}),
        ("completed", {"request_counts": {"total": 3, "completed": 2, "failed": 1}}),
        ("expired", {}),
        ("cancelled", {}),
        ("failed", {}),
    ],
)
def test_an_end_that_the_listing_shows_without_its_files_is_confirmed(
    world: World, looker: BatchClient, status: str, fields: dict[str, object]
) -> None:
    vague, clear = world.add(2)
    world.change([vague], status, **fields)
    see(looker, [vague, clear])
    assert [request.path for request in world.requests] == ["/v1/batches", f"/v1/batches/{vague}"]


def test_an_end_that_could_not_be_confirmed_is_not_reported(world: World, looker: BatchClient) -> None:
    vague, clear = world.add(2)
    world.change([vague], "completed", output_file_id=None)
    world.trouble = only(f"/v1/batches/{vague}", error(500))
    sighting = see(looker, [vague, clear])
    assert sighting.batches.keys() == {clear}
    assert sighting.errors.keys() == {vague}
    assert sighting.outage is None


def test_an_end_that_nobody_could_confirm_before_the_service_refused_is_not_reported(
    world: World, looker: BatchClient
) -> None:
    vague = world.add(3, status="completed", output_file_id=None)
    world.trouble = lambda request: None if request.path == "/v1/batches" else error(429)
    sighting = see(looker, vague)
    assert not sighting.batches
    assert sighting.outage is not None
    assert len(world.requests) == 2


@pytest.mark.parametrize("answer", [error(404), error(405), error(500), RESET], ids=["404", "405", "500", "reset"])
def test_without_a_working_listing_every_batch_is_asked_by_itself(
    world: World, looker: BatchClient, answer: Answer
) -> None:
    batches = world.add(30)
    world.trouble = only("/v1/batches", answer)
    sighting = see(looker, batches)
    assert sighting.batches.keys() == set(batches)
    assert len(world.requests) == 2 + len(batches)


def test_a_listing_that_stumbles_once_is_still_used(world: World, looker: BatchClient) -> None:
    batches = world.add(200)
    answers = iter([error(502)])
    world.trouble = lambda request: next(answers, None) if request.path == "/v1/batches" else None
    assert see(looker, batches).batches.keys() == set(batches)
    assert len(world.requests) == 1 + 1 + 2


def test_two_broken_batches_keep_nobody_else_from_being_seen(world: World, looker: BatchClient) -> None:
    old = world.add(6)
    world.add(600)
    world.trouble = only(f"/v1/batches/{old[0]}", error(500), f"/v1/batches/{old[1]}", error(500))
    sighting = see(looker, old)
    assert sighting.batches.keys() == set(old[2:])
    assert sighting.errors.keys() == set(old[:2])
    assert sighting.outage is None


@pytest.mark.parametrize("answer", [error(500), error(403), RESET], ids=["500", "403", "reset"])
def test_a_service_that_is_down_gets_three_calls_and_no_more(world: World, looker: BatchClient, answer: Answer) -> None:
    batches = world.add(50)
    world.trouble = lambda request: answer
    sighting = see(looker, batches)
    assert sighting.outage is not None
    assert not sighting.answered
    assert len(world.requests) == 3


def test_a_lone_batch_that_fails_is_told_apart_from_a_service_that_does(world: World, looker: BatchClient) -> None:
    [batch_id] = world.add()
    world.trouble = only(f"/v1/batches/{batch_id}", error(500))
    sighting = see(looker, [batch_id])
    assert sighting.errors.keys() == {batch_id}
    assert sighting.outage is None
    world.trouble = lambda request: error(500)
    assert see(looker, [batch_id]).outage is not None
    assert len(world.requests) == 4


@pytest.mark.parametrize(
    "answer", [error(401), error(429), error(503, retry_after="7")], ids=["401", "429", "503 with Retry-After"]
)
def test_an_answer_that_is_meant_for_all_ends_the_look_at_once(
    world: World, looker: BatchClient, answer: Answer
) -> None:
    batches = world.add(50)
    world.trouble = lambda request: answer
    sighting = see(looker, batches)
    assert sighting.outage is not None
    assert len(world.requests) == 1


@pytest.mark.parametrize("others", [0, 3], ids=["alone", "among others"])
def test_a_gateway_that_answers_with_the_id_behind_its_own_is_understood(
    world: World, looker: BatchClient, others: int
) -> None:
    behind = {"id": "batch_behind", "status": "completed", "output_file_id": "file-1"}
    world.trouble = only("/v1/batches/batch_managed", as_json(behind))
    sighting = see(looker, ["batch_managed", *world.add(others)])
    assert len(sighting.batches) == 1 + others
    assert sighting.batches["batch_managed"].id == "batch_managed"
    assert sighting.batches["batch_managed"].is_terminal


def test_a_look_that_nobody_waits_for_stops_after_the_call_under_way(world: World, looker: BatchClient) -> None:
    batches = world.add(500)
    stopped = threading.Event()

    def stop(request: Request) -> None:
        stopped.set()

    world.trouble = stop
    look(looker, batches, stopped)
    assert len(world.requests) == 1


def only(*paths_and_answers: str | Answer) -> Trouble:
    """Trouble on these paths alone."""
    troubled = dict(zip(paths_and_answers[::2], paths_and_answers[1::2], strict=True))
    return lambda request: troubled.get(request.path)  # type: ignore[return-value]
