"""The answer cache: what any job has paid for, no other buys; and nothing in it can make a result wrong."""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, field_serializer, field_validator

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.jobs import answer_cache
from airflow_provider_openai_batches.jobs.answer_cache import AnswerCache, CachedAnswer, ContentKeys, NewAnswers
from airflow_provider_openai_batches.jobs.engine import Finished, ShardRefusedError, Stopped, Waiting, advance
from airflow_provider_openai_batches.jobs.job import Job
from airflow_provider_openai_batches.jobs.pricing import Price
from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
from airflow_provider_openai_batches.jobs.structured import OutputSchema
from tests.conftest import API_KEY
from tests.jobs.doomed import killed
from tests.jobs.world import World
from tests.stores import Bucket

NewWorld = Callable[..., World]
DAY_S = 86_400.0
PRICES = {"gpt-4o-mini": Price(input=1.0, output=2.0)}


@pytest.fixture
def cache(tmp_path: Path) -> AnswerCache:
    """An empty cache on local disk, whose answers are good for 30 days."""
    return AnswerCache.at(tmp_path / "cache", 30 * DAY_S)


def segments(cache: AnswerCache) -> list[Path]:
    return sorted(Path(str(cache.directory)).glob("v1/*/*"))


def reused(outcome: Finished | Stopped) -> tuple[int, int, int]:
    return tuple(outcome.manifest["reused"][name] for name in ("kept", "cache", "duplicates"))


# --- what is reused ------------------------------------------------------------------------------------------------


def test_next_job_with_the_same_questions_buys_nothing_and_is_done_at_once(
    new_world: NewWorld, cache: AnswerCache
) -> None:
    first = new_world(answer_cache=cache, prices=PRICES)
    bought = first.run()
    before = first.check_results(bought)
    rows = [{"custom_id": f"other-{n}", "prompt": f"say {n}", "context": {"prompt": f"say {n}"}} for n in range(25)]
    second = new_world(answer_cache=cache, prices=PRICES, rows=rows[::-1])
    outcome = advance(second.attempt())
    assert isinstance(outcome, Finished)
    results = second.check_results(outcome)
    assert second.calls("POST /v1/files") == second.calls("POST /v1/batches") == 0
    facts = ("output", "finish_reason", "model", "usage", "batch_id", "request_id")
    assert [[row[name] for name in facts] for row in results] == [[row[name] for name in facts] for row in before[::-1]]
    assert {(row["status"], row["attempts"]) for row in results} == {("succeeded", 0)}
    assert reused(outcome) == (0, 25, 0)
    assert outcome.manifest["reused"]["usage"] == bought.manifest["usage"]
    assert outcome.manifest["reused"]["cost"] == pytest.approx(bought.manifest["cost"])
    assert (outcome.manifest["cost"], outcome.manifest["estimated_cost"]) == (0.0, 0.0)


def test_rows_that_ask_the_same_are_bought_once_with_a_cache(new_world: NewWorld, cache: AnswerCache) -> None:
    for expected in ((0, 0, 2), (0, 1, 2)):
        world = new_world(answer_cache=cache, rows=["say it"] * 3)
        outcome = world.run()
        world.check_results(outcome)
        assert reused(outcome) == expected
    assert len(segments(cache)) == 1


def test_only_what_is_new_is_bought_and_what_failed_is_never_cached(new_world: NewWorld, cache: AnswerCache) -> None:
    world = new_world(answer_cache=cache, rows=["a", "b"], max_attempts=1)
    world.add_faults({"on": {"custom_id": "row-1"}, "do": {"outcome": "error"}, "times": 1})
    assert world.run().manifest["failed"] == 1
    world = new_world(answer_cache=cache, rows=["b", "a", "c"])
    outcome = world.run()
    world.check_results(outcome)
    assert world.answered() == {"row-0": 1, "row-2": 1}
    assert reused(outcome) == (0, 1, 0)


def test_answers_of_a_stopped_and_of_a_refused_job_are_not_lost(new_world: NewWorld, cache: AnswerCache) -> None:
    rows = [f"say {n}" for n in range(25)]
    no_model = {"outcome": "failed", "errors": [{"code": "model_not_found", "message": "No such model."}]}
    refused = new_world(answer_cache=cache, rows=rows)
    refused.add_faults({"on": {"batch": {"metadata": {"airflow_shard": "0"}}}, "do": no_model})
    with pytest.raises(ShardRefusedError, match="15 of 25 rows"):
        refused.run()
    late = new_world(answer_cache=cache, rows=rows)
    late.add_faults({"on": {"batch": {}}, "do": {"outcome": "expire", "finished": 0.5}})
    job = late.attempt(timeout_s=60)
    assert reused(late.run(job)) == (0, 15, 0)
    rest = late.run()
    late.check_results(rest)
    assert set((refused.contents() + late.contents()).values()) == {1}
    again = new_world(answer_cache=cache, rows=rows)
    assert reused(advance(again.attempt())) == (0, 25, 0)


def test_answers_that_were_bought_without_a_batch_are_cached_and_grow_no_younger(
    new_world: NewWorld, cache: AnswerCache
) -> None:
    options: dict[str, Any] = {"rows": ["a", "b"], "answer_cache": cache, "finish_synchronously_below": 5}
    world = new_world(**options)
    world.add_faults({"on": {"custom_id": "row-1"}, "do": {"outcome": "server_error"}, "times": 1})
    outcome = world.run()
    assert [row["batch_id"] is None for row in world.check_results(outcome)] == [False, True]
    again = new_world(**options)
    again.pass_time(20 * DAY_S)
    assert reused(again.run()) == (0, 2, 0)
    world.add_faults({"on": {"custom_id": "row-2"}, "do": {"outcome": "server_error"}, "times": 1})
    world.rows = ["a", "b", "c"]
    assert reused(world.run(max_tries=1)) == (2, 0, 0), "kept ones beside a new one"
    last = new_world(**{**options, "rows": ["a", "b", "c"]})
    last.pass_time(20 * DAY_S)
    assert reused(last.run()) == (0, 1, 0)


def test_answer_without_a_batch_is_as_old_as_its_own_round(new_world: NewWorld, cache: AnswerCache) -> None:
    options: dict[str, Any] = {"rows": ["a", "b"], "answer_cache": cache, "finish_synchronously_below": 5}
    world = new_world(**options)
    for row in (0, 1):
        world.add_faults({"on": {"custom_id": f"row-{row}"}, "do": {"outcome": "server_error"}, "times": 1})

    def late(operation: str) -> None:
        if operation.endswith("answer.json"):
            world.pass_time(3600)

    world.watch = late
    assert isinstance(world.run(timeout_s=3000), Stopped)
    world.watch = None
    world.pass_time(20 * DAY_S)
    assert [row["batch_id"] for row in world.check_results(world.run())] == [None, None]
    again = new_world(**options)
    again.pass_time(20 * DAY_S)
    assert reused(again.run()) == (0, 1, 0), "the first answer is 40 days old by now"


def test_cleared_task_keeps_its_own_rows_and_finds_the_others(new_world: NewWorld, cache: AnswerCache) -> None:
    other = new_world(answer_cache=cache, rows=["b", "c"])
    other.run()
    world = new_world(answer_cache=cache, rows=["a", "b", "b"])
    assert reused(world.run()) == (0, 1, 1)
    world.rows = ["a", "b", "b", "c", "a", "d"]
    outcome = world.run(max_tries=1)
    world.check_results(outcome)
    assert reused(outcome) == (3, 1, 1)
    assert world.contents() + other.contents() == dict.fromkeys(world.contents() + other.contents(), 1)


def test_answer_of_the_same_model_name_at_another_service_is_not_taken(
    new_world: NewWorld, cache: AnswerCache, tmp_path: Path
) -> None:
    new_world(answer_cache=cache, rows=["a"]).run()
    with Emulator(speed=0, api_key=API_KEY) as other:
        world = World(other.base_url, tmp_path / "other", ["a"], answer_cache=cache)
        assert reused(world.run()) == (0, 0, 0)


def test_answer_of_another_service_behind_the_same_gateway_is_not_taken(
    new_world: NewWorld, cache: AnswerCache
) -> None:
    worlds = [new_world(answer_cache=cache, rows=["a"]) for _ in range(3)]
    for world, provider in zip(worlds, ["one", "other", "one"], strict=True):
        world.query = {"provider": provider}
    assert [reused(world.run()) for world in worlds] == [(0, 0, 0), (0, 0, 0), (0, 1, 0)]


def key_of(**settings: Any) -> bytes:
    [request] = read_requests(["say it"], RequestTemplate(model="llama"))
    return ContentKeys(ClientSettings(api_key="key", base_url="https://gateway/v1", **settings)).of(request)


def test_header_that_chooses_the_service_behind_a_gateway_tells_answers_apart() -> None:
    headers = [None, {"x-provider": "one"}, {"x-provider": "other"}, {"x-provider": "one", "x-more": "a"}]
    keys = {key_of(headers=each or {}) for each in headers}
    assert len(keys | {key_of(query={"x-provider": "one"})}) == 5
    assert key_of(headers={"X-More": "a ", "X-Provider": "one"}) in keys, "neither case nor order count"


class Answer(BaseModel):
    text: str


def test_output_that_todays_validators_refuse_is_bought_again(new_world: NewWorld, cache: AnswerCache) -> None:
    lenient = Answer

    class Answer2(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def is_short(cls, text: str) -> str:
            if accepted is not None and text not in accepted:
                raise ValueError("not one of these")
            return text

    Answer2.__name__ = "Answer"
    accepted: set[str] | None = None
    rows = [{"custom_id": f"id-{n}", "prompt": f"say {n}"} for n in range(4)]
    first = new_world(answer_cache=cache, rows=rows, output_type=lenient)
    outputs = [row["output"] for row in first.check_results(first.run())]
    same = new_world(answer_cache=cache, rows=rows, output_type=Answer2)
    outcome = advance(same.attempt())
    assert reused(outcome) == (0, 4, 0), "the schema is the same"
    assert [row["output"] for row in same.check_results(outcome)] == outputs
    accepted = {outputs[0]["text"]}
    strict = new_world(answer_cache=cache, rows=rows, output_type=Answer2, max_attempts=1)
    accepted_now = sum(output["text"] in accepted for output in outputs)
    assert reused(strict.run())[1] == accepted_now < 4


class Marked(BaseModel):
    """Its validator and its serializer make something else of each text, and of what they made of it before."""

    text: str

    @field_validator("text")
    @classmethod
    def mark(cls, text: str) -> str:
        return f"{text}!"

    @field_serializer("text")
    def quote(self, text: str) -> str:
        return f"'{text}'"


@pytest.mark.parametrize("choices", [1, 2])
def test_output_type_reads_each_answer_once_whether_bought_kept_or_found_in_the_cache(
    new_world: NewWorld, cache: AnswerCache, choices: int
) -> None:
    rows = [{"custom_id": f"id-{n}", "prompt": f"say {n}"} for n in range(3)]
    options: dict[str, Any] = {"answer_cache": cache, "output_type": Marked, "body": {"n": choices}}
    first = new_world(rows=rows, **options)
    bought = [row["output"] for row in first.check_results(first.run())]
    texts = [each["text"] for output in bought for each in (output if choices > 1 else [output])]
    assert [text.count("!") for text in texts] == [1] * len(texts) == [1] * (3 * choices)
    second = new_world(rows=rows, **options)
    found = second.run()
    assert [row["output"] for row in second.check_results(found)] == bought
    assert reused(found) == (0, 3, 0)
    for world in (first, second):
        kept = world.run(max_tries=1)
        assert [row["output"] for row in world.check_results(kept)] == bought
        assert reused(kept) == (3, 0, 0)


def test_answer_in_the_form_of_an_earlier_version_is_bought_again_without_a_word(
    new_world: NewWorld, cache: AnswerCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(answer_cache, "_FORM", b"")
        new_world(answer_cache=cache, rows=["a"]).run()
    assert reused(new_world(answer_cache=cache, rows=["a"]).run()) == (0, 0, 0)
    assert reused(new_world(answer_cache=cache, rows=["a"]).run()) == (0, 1, 0)
    assert "damaged" not in caplog.text


def test_what_is_no_text_is_nothing_that_an_output_type_could_read(cache: AnswerCache, tmp_path: Path) -> None:
    key = bytes(32)
    for output, is_text in ((b'{"content": null}', False), (b'"\\ud800"', True), (b'["{}", 1]', True)):
        with tempfile.TemporaryDirectory(dir=tmp_path) as staging:
            new = NewAnswers(cache, Path(staging))
            answer = answer_of(msgspec.Raw(output), is_text=is_text)
            new.add(key, 1000.0, answer)
            new.publish(1000.0)
    with cache.answers(1000.0, OutputSchema.of(Answer).parse) as answers:
        assert answers.find(key) is None


def test_text_of_a_job_without_an_output_type_is_no_validated_output(new_world: NewWorld, cache: AnswerCache) -> None:
    form = {"response_format": OutputSchema.of(Answer).chat_format()}
    for _ in range(2):
        text = new_world(answer_cache=cache, rows=[{"prompt": "a"}], body=form)
        validated = new_world(answer_cache=cache, rows=[{"prompt": "a"}], output_type=Answer)
        assert isinstance(text.check_results(text.run())[0]["output"], str)
        assert isinstance(validated.check_results(validated.run())[0]["output"], dict)
    assert (text.batches(), validated.batches()) == ([], []), "the second time"


def test_vectors_in_parquet_come_out_of_the_cache_as_they_were(new_world: NewWorld, cache: AnswerCache) -> None:
    pytest.importorskip("pyarrow")
    options: dict[str, Any] = {"endpoint": "/v1/embeddings", "model": "text-embedding-3-small"}
    rows = [{"custom_id": "one", "input": "text"}, {"custom_id": "two", "input": ["text", "more"]}]
    outputs = []
    for _ in range(2):
        world = new_world(answer_cache=cache, rows=rows, output_format="parquet", **options)
        outputs.append([row["output"] for row in world.check_results(world.run())])
    assert outputs[0] == outputs[1]
    assert world.batches() == []


# --- expiry --------------------------------------------------------------------------------------------------------


def test_answer_is_used_until_it_expires_and_then_removed_by_the_next_writer(
    new_world: NewWorld, cache: AnswerCache
) -> None:
    new_world(answer_cache=cache, rows=["a"]).run()
    [old] = segments(cache)
    world = new_world(answer_cache=cache, rows=["a"])
    world.pass_time(29 * DAY_S)
    assert reused(world.run()) == (0, 1, 0)
    world = new_world(answer_cache=cache, rows=["a"])
    world.pass_time(2 * DAY_S)
    assert reused(world.run()) == (0, 0, 0)
    [new] = segments(cache)
    assert new.parent == old.parent
    assert new != old


def test_each_job_has_its_own_idea_of_old_and_removes_nothing_that_others_want(
    new_world: NewWorld, cache: AnswerCache
) -> None:
    short = AnswerCache(cache.directory, DAY_S)
    for_ever = AnswerCache(cache.directory, None)
    new_world(answer_cache=for_ever, rows=["a"]).run()
    world = new_world(answer_cache=short, rows=["a"])
    world.pass_time(2 * DAY_S)
    assert reused(world.run()) == (0, 0, 0), "too old for this one"
    world.pass_time(10_000 * DAY_S)
    assert reused(new_world(answer_cache=short, rows=["a"]).run()) == (0, 0, 0)
    assert reused(new_world(answer_cache=for_ever, rows=["a"]).run()) == (0, 1, 0)
    assert [path.name.startswith("999999999999-") for path in segments(cache)].count(True) == 1


# --- layout --------------------------------------------------------------------------------------------------------


def test_small_job_reads_and_writes_only_the_folders_of_its_rows(new_world: NewWorld, cache: AnswerCache) -> None:
    new_world(answer_cache=cache, rows=[f"say {n}" for n in range(300)], per_batch=300).run()
    assert len(segments(cache)) <= 256, "however many rows"
    seen: list[str] = []
    world = new_world(answer_cache=cache, rows=["say 7", "new"])
    world.watch = seen.append
    world.run()
    touched = {found[0] for operation in seen if (found := re.search(r"v1/[0-9a-f]{2}", operation))}
    assert len(touched) == 1, "say 7 was read only"


def test_many_small_segments_become_one_and_no_answer_is_lost(
    new_world: NewWorld, cache: AnswerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "_folder", lambda key: "v1/00")
    rows = [f"say {n}" for n in range(40)]
    for row in rows:
        new_world(answer_cache=cache, rows=[row]).run()
        assert len(segments(cache)) <= answer_cache.MANY_SEGMENTS
    world = new_world(answer_cache=cache, rows=rows)
    outcome = advance(world.attempt())
    assert reused(outcome) == (0, 40, 0)
    world.check_results(outcome)


def test_large_answers_are_merged_in_little_memory(
    cache: AnswerCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "_folder", lambda key: "v1/00")
    size = 500_000
    for number in range(answer_cache.MANY_SEGMENTS):
        put(cache, tmp_path, {bytes([number, n]) * 16: f"{number} {n} " + "x" * size for n in range(3)})
    tracemalloc.start()
    try:
        put(cache, tmp_path, {b"n" * 32: "new"})
        assert tracemalloc.get_traced_memory()[1] < 10 * size
    finally:
        tracemalloc.stop()
    assert [path.name.split("-")[1] for path in segments(cache)] == ["000000049"]


def test_reader_finds_what_is_moved_to_another_segment_meanwhile(
    cache: AnswerCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "_folder", lambda key: "v1/00")
    keys = [bytes([n]) * 32 for n in range(answer_cache.MANY_SEGMENTS + 1)]
    for number, key in enumerate(keys[:-1]):
        put(cache, tmp_path, {key: f"answer {number}"})
    with cache.answers(1000.0, None) as answers:
        assert output(answers.find(keys[0])) == "answer 0"
        put(cache, tmp_path, {keys[-1]: "last"})
        assert len(segments(cache)) == 1
        assert [output(answers.find(key)) for key in keys] == [f"answer {n}" for n in range(len(keys) - 1)] + ["last"]


@pytest.mark.parametrize("writers", [2, 3])
def test_writers_at_once_disturb_each_other_at_no_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: int
) -> None:
    """Each boundary of one writer is where the others write, merging the same segments."""
    from tests.jobs.world import WatchedDirectory

    monkeypatch.setattr(answer_cache, "_folder", lambda key: "v1/00")
    for boundary in range(200):
        cache = AnswerCache.at(tmp_path / f"cache-{boundary}", None)
        keys = [bytes([n]) * 32 for n in range(answer_cache.MANY_SEGMENTS)]
        for number, key in enumerate(keys):
            put(cache, tmp_path, {key: f"answer {number}"})
        seen = 0

        def watch(_: str, cache: AnswerCache = cache, boundary: int = boundary) -> None:
            nonlocal seen
            if seen == boundary:
                for writer in range(1, writers):
                    put(cache, tmp_path, {bytes([200 + writer]) * 32: f"writer {writer}"})
            seen += 1

        put(AnswerCache(WatchedDirectory(cache.directory, watch), None), tmp_path, {bytes([200]) * 32: "writer 0"})
        with cache.answers(1000.0, None) as answers:
            assert [output(answers.find(key)) for key in keys] == [f"answer {n}" for n in range(len(keys))]
            happened = range(writers if seen > boundary else 1)
            assert [output(answers.find(bytes([200 + n]) * 32)) for n in happened] == [f"writer {n}" for n in happened]
        if seen <= boundary:
            return
    raise AssertionError("a writer has less to do than that")


def test_cache_on_object_storage_holds_the_same_promise(new_world: NewWorld, bucket: Bucket) -> None:
    for expected in (0, 25):
        cache = AnswerCache.at(f"{bucket.uri}/{uuid.UUID(int=0)}/cache", 30 * DAY_S)
        world = new_world(answer_cache=cache)
        outcome = world.run()
        world.check_results(outcome)
        assert reused(outcome) == (0, expected, 0)


def test_answers_of_another_service_than_the_plan_s_are_nobody_else_s(new_world: NewWorld, tmp_path: Path) -> None:
    cache = AnswerCache.at(tmp_path / "cache", None)
    world = new_world(rows=["a", "b"], answer_cache=cache)
    world.query = {"gateway": "one"}
    advance(world.attempt())
    world.query = {"gateway": "two"}
    outcome = world.run()
    world.check_results(outcome)
    for gateway in ("one", "two"):
        other = new_world(rows=["a", "b"], answer_cache=cache)
        other.query = {"gateway": gateway}
        assert reused(other.run()) == (0, 0, 0), "neither has a way to tell whose answers those are"


# --- damage --------------------------------------------------------------------------------------------------------


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    match how:
        case "cut off":
            path.write_bytes(content[:150])
        case "empty":
            path.write_bytes(b"")
        case "a bit":
            path.write_bytes(content.replace(b"Prompt: ", b"Prompt; "))
        case "not ours":
            path.write_bytes(b"\x00\xff\n" * 100 + b"{}\nnull\n")
        case "another's answer":
            path.write_bytes(re.sub(rb"(?m)^([0-9a-f]{63})(.)", _other_digit, content))
        case "another version's":
            path.write_bytes(re.sub(rb"\{.*", b'{"output":"wrong"}', content))


@pytest.mark.parametrize("how", ["cut off", "empty", "a bit", "not ours", "another's answer", "another version's"])
def test_damaged_segment_is_a_miss_and_no_failure(new_world: NewWorld, cache: AnswerCache, how: str) -> None:
    new_world(answer_cache=cache).run()
    for path in segments(cache):
        damaged(path, how)
    world = new_world(answer_cache=cache)
    outcome = world.run()
    assert [row["status"] for row in world.check_results(outcome)] == ["succeeded"] * 25
    assert reused(outcome) == (0, 0, 0)
    again = new_world(answer_cache=cache)
    assert reused(advance(again.attempt())) == (0, 25, 0), "beside the damaged ones"


def test_damage_is_told(new_world: NewWorld, cache: AnswerCache, caplog: pytest.LogCaptureFixture) -> None:
    new_world(answer_cache=cache, rows=["a"]).run()
    [path] = segments(cache)
    damaged(path, "a bit")
    new_world(answer_cache=cache, rows=["a"]).run()
    assert caplog.text.count(f"{path} is damaged") == 1
    path.write_bytes(b"what\n")
    new_world(answer_cache=cache, rows=["a"]).run()
    assert caplog.text.count(f"{path} is damaged") == 2


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 12))
def test_whatever_happens_to_its_bytes_a_segment_never_gives_a_wrong_answer(seed: int, changes: int) -> None:
    chance = random.Random(seed)
    right = {bytes([n]) * 32: f"answer {n}" for n in range(6)}
    with tempfile.TemporaryDirectory() as place:
        cache = AnswerCache.at(Path(place, "cache"), None)
        put(cache, Path(place), right)
        for path in segments(cache):
            content = bytearray(path.read_bytes())
            for _ in range(changes):
                at = chance.randrange(len(content) or 1)
                part = bytes(chance.choice(content) if content else 0 for _ in range(chance.randrange(1, 80)))
                content[at : at + chance.choice([0, 1, 40, len(part)])] = part
            path.write_bytes(content)
        with cache.answers(1000.0, None) as answers:
            for key, text in right.items():
                assert output(answers.find(key)) in (text, None)


def test_other_files_in_the_cache_are_left_alone(new_world: NewWorld, cache: AnswerCache) -> None:
    folder = Path(str(cache.directory), "v1", "00")
    folder.mkdir(parents=True)
    for name in ("README", "000000000001-000000001-x.txt", ".hidden"):
        (folder / name).write_text("mine")
    new_world(answer_cache=cache, rows=[f"say {n}" for n in range(25)]).run()
    assert {path.read_text() for path in folder.iterdir() if path.name[0] in "R0." and "-x" in path.name} == {"mine"}


@pytest.mark.parametrize(
    "place", ["file", "file/cache", "/proc/nowhere"], ids=["a file", "below a file", "not writable"]
)
def test_cache_that_cannot_be_read_or_made_fails_before_money_is_spent(
    new_world: NewWorld, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("a file")
    world = new_world(answer_cache=AnswerCache.at(tmp_path / place, None))
    with pytest.raises(InvalidInputError, match=rf"answer_cache: .*{place} cannot be read or made .* all workers"):
        world.run()
    assert world.calls("POST /v1/files") == 0


def test_cache_that_cannot_be_written_costs_no_result(
    new_world: NewWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "cache"
    world = new_world(answer_cache=AnswerCache.at(place, None))
    advance(world.attempt())
    shutil.rmtree(place)
    place.write_text("a file, since the plan")
    world.check_results(world.run())
    assert "could not be put into the answer cache" in caplog.text


# --- crashes and other jobs ----------------------------------------------------------------------------------------


def test_sigkill_at_any_boundary_of_the_cache_loses_and_repeats_nothing(new_world: NewWorld, tmp_path: Path) -> None:
    def some_options(name: str) -> dict[str, Any]:
        cache = AnswerCache.at(tmp_path / name, 30 * DAY_S)
        return {"rows": ["say 0", "say 1", "say 1", "say 2"], "per_batch": 2, "answer_cache": cache}

    seen: list[str] = []
    undisturbed = new_world(**some_options("cache"))
    undisturbed.watch = seen.append
    undisturbed.run()
    boundaries = [at for at, what in enumerate(seen, start=1) if "v1/" in what or "publish _job/plan-" in what]
    assert sum("publish v1/" in seen[at - 1] for at in boundaries) >= 4
    for kill_at in boundaries:
        options = some_options(f"cache-{kill_at}")
        world = new_world(**options)
        assert killed(world, options, kill_at)
        outcome = world.run()
        assert [row["status"] for row in world.check_results(outcome)] == ["succeeded"] * 4
        world.check_bought_once()
        assert set(world.contents().values()) == {1}
        again = new_world(**options)
        assert reused(advance(again.attempt())) == (0, 3, 1)


@settings(max_examples=25, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_whatever_jobs_run_in_whatever_order_each_row_has_its_result_and_nothing_known_is_bought(
    emulator: Emulator, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory(prefix="cache-", dir=_in_memory()) as place:
        Play(emulator, Path(place), data).run()


class Play:
    """Jobs of several DAGs that share a cache: begun, advanced, retried and cleared in any order."""

    def __init__(self, emulator: Emulator, place: Path, data: st.DataObject) -> None:
        self.draw = data.draw
        self.emulator, self.place = emulator, place
        self.cache = AnswerCache.at(place / "cache", None)
        self.worlds: list[World] = []
        self.jobs: dict[int, Job] = {}
        self.tries: dict[int, int] = {}
        # What is in the cache when a job is planned, and what it sends in spite of that.
        self.known: set[str] = set()

    def run(self) -> None:
        for _ in range(self.draw(st.integers(2, 12))):
            idle = [number for number in range(len(self.worlds)) if number not in self.jobs]
            what = self.draw(st.sampled_from(["begin", "advance", "advance", "clear"]))
            if what == "begin" or not self.worlds:
                self.begin()
            elif what == "clear" and idle:
                self.clear(self.draw(st.sampled_from(idle)))
            elif self.jobs:
                self.advance(self.draw(st.sampled_from(sorted(self.jobs))))
        while self.jobs:
            self.advance(min(self.jobs))

    def begin(self) -> None:
        number = len(self.worlds)
        world = World(
            self.emulator.base_url,
            self.place / f"job-{number}",
            [],
            per_batch=3,
            max_attempts=2,
            answer_cache=self.cache,
        )
        self.worlds.append(world)
        self.tries[number] = 0
        self.plan(number)

    def clear(self, number: int) -> None:
        self.tries[number] += 1
        self.plan(number)

    def plan(self, number: int) -> None:
        world = self.worlds[number]
        world.clear_faults()
        for row in self.draw(st.sets(st.integers(0, 4), max_size=2)):
            outcome = self.draw(st.sampled_from(["error", "server_error", "missing"]))
            world.add_faults({"on": {"custom_id": f"row-{row}"}, "do": {"outcome": outcome}, "times": 1})
        world.rows = [f"say {n}" for n in self.draw(st.lists(st.integers(0, 5), min_size=1, max_size=8))]
        known = set(self.known)
        self.jobs[number] = world.attempt(max_tries=self.tries[number])
        self.advance(number)
        self.check_sent(world, known)

    def check_sent(self, world: World, known: set[str]) -> None:
        shards = world.ledger.shards
        lines = [
            msgspec.json.decode(line)
            for shard in shards
            for line in (world.location / shard.file("requests", 1)).open("rb")
        ]
        contents = [line["body"]["messages"][0]["content"] for line in lines]
        assert len(set(contents)) == len(contents), "duplicates are bought once"
        assert not known & set(contents), "what is known is not bought"

    def advance(self, number: int) -> None:
        world, job = self.worlds[number], self.jobs[number]
        outcome = advance(job)
        if isinstance(outcome, Waiting):
            world.wait(outcome)
            for other in self.worlds:
                other.pass_time(0)
            self.jobs[number] = world.attempt(resuming=True)
            return
        del self.jobs[number]
        rows = world.check_results(outcome)
        texts = list(world.rows)
        assert [row["context"]["prompt"] for row in rows] == texts
        first = {text: texts.index(text) for text in texts}
        fates = {text: rows[at]["status"] for text, at in first.items()}
        kept = outcome.manifest["kept"]
        for row, text in zip(rows, texts, strict=True):
            assert row["status"] == fates[text] or kept
            if row["status"] == "succeeded":
                assert row["output"].endswith(f"Prompt: {text}")
        self.known |= {text for text, row in zip(texts, rows, strict=True) if row["status"] == "succeeded"}


def test_drafts_of_writers_that_died_are_removed_when_they_are_old(
    new_world: NewWorld, cache: AnswerCache, tmp_path: Path
) -> None:
    drafts = Path(str(cache.directory), ".drafts")
    drafts.mkdir(parents=True)
    for name, age_s in (("dead", 2 * DAY_S), ("alive", 0.0)):
        (drafts / name).write_text("half")
        os.utime(drafts / name, (time.time() - age_s,) * 2)
    new_world(answer_cache=cache, rows=["a"]).run()
    assert [path.name for path in drafts.iterdir()] == ["alive"]


# --- by hand -------------------------------------------------------------------------------------------------------


def put(cache: AnswerCache, place: Path, texts: dict[bytes, str]) -> None:
    with tempfile.TemporaryDirectory(dir=place) as staging:
        new = NewAnswers(cache, Path(staging))
        for key, text in texts.items():
            answer = answer_of(msgspec.Raw(msgspec.json.encode(text)))
            new.add(key, 1000.0, answer)
        assert new.publish(1000.0) == len(texts)


def answer_of(output: msgspec.Raw, *, is_text: bool = True) -> CachedAnswer:
    return CachedAnswer(
        output=output,
        is_text=is_text,
        finish_reason="stop",
        model="m",
        usage=None,
        batch_id="batch_1",
        request_id=None,
    )


def _other_digit(found: re.Match[bytes]) -> bytes:
    return found[1] + (b"0" if found[2] != b"0" else b"1")


def output(answer: CachedAnswer | None) -> str | None:
    return None if answer is None else msgspec.json.decode(answer.output)


def _in_memory() -> str | None:
    return next((path for path in ["/dev/shm"] if os.access(path, os.W_OK)), None)


@pytest.fixture(autouse=True)
def no_faults(emulator: Emulator) -> Iterator[None]:
    """What one test scripted is none of the next one's business."""
    yield
    emulator.clear_faults()
