from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.models import Batch, Usage
from airflow_provider_openai_batches.jobs.classify import RetryLimits
from airflow_provider_openai_batches.jobs.results import Rules, ShardReview, check_counts, count_lines
from airflow_provider_openai_batches.jobs.rounds import RoundFiles
from airflow_provider_openai_batches.jobs.structured import Parsed
from airflow_provider_openai_batches.jobs.verdict import RowsFailedError, raise_for_results
from tests.jobs.result_files import (
    CHAT,
    EMBEDDINGS,
    Shard,
    answered,
    chat_body,
    not_run,
    plain,
    refused,
    request,
    write_lines,
)


def review(shard: Shard, *, max_attempts: int = 3, **rules: Any) -> ShardReview:
    limits = RetryLimits(max_attempts)
    return ShardReview(shard.context, shard.rounds, Rules(endpoint=CHAT, limits=limits, **rules))


def rows(shard: Shard, **rules: Any) -> list[dict[str, Any]]:
    return [plain(row) for row in review(shard, **rules).rows()]


def outputs(shard: Shard) -> dict[str, Any]:
    return {row["custom_id"]: row["output"] for row in rows(shard)}


def next_requests(shard: Shard, **rules: Any) -> list[dict[str, Any]]:
    """Write the next round's request file and read it back."""
    destination = shard.directory / f"round-{len(shard.rounds) + 1}.requests.jsonl"
    written = review(shard, **rules).write_next_round(destination, len)
    lines = destination.read_bytes().splitlines()
    assert written.requests == len(lines)
    assert written.bytes == destination.stat().st_size
    assert written.tokens == sum(len(line.partition(b'"body":')[2].lstrip()) - 1 for line in lines)
    return [json.loads(line) for line in lines]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_result_row_has_the_documented_keys_in_order(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a", "b"], first_index=7, name="Zoë")
    shard.add_round([answered("a", chat_body("yes"))], [refused("b", 400, "invalid_value")])
    usage = {"input_tokens": 10, "cached_tokens": 4, "output_tokens": 5, "reasoning_tokens": 2, "total_tokens": 15}
    good = {
        "custom_id": "a",
        "index": 7,
        "status": "succeeded",
        "output": "yes",
        "error": None,
        "finish_reason": "stop",
        "model": "gpt-4o-mini-2024-07-18",
        "usage": usage,
        "batch_id": "batch_1",
        "request_id": "req_a",
        "attempts": 1,
        "context": {"name": "Zoë"},
    }
    bad = good | {"custom_id": "b", "index": 8, "status": "failed", "output": None, "request_id": "req_b"}
    bad |= {"error": {"code": "invalid_value", "message": "No.", "http_status": 400}}
    bad |= {"finish_reason": None, "model": None, "usage": None}
    first, second = rows(shard)
    assert list(first.items()) == list(good.items())
    assert list(second.items()) == list(bad.items())


def test_rows_come_in_input_order_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    ids = [f"row-{number}" for number in range(50)]
    shard = Shard(tmp_path, ids)
    shuffled = random.Random(1).sample(ids, 50)
    shard.add_round(
        [answered(each, chat_body(each)) for each in shuffled[:30]], [refused(each, 400) for each in shuffled[30:]]
    )
    assert [row["custom_id"] for row in rows(shard)] == ids
    assert all(row["output"] == row["custom_id"] for row in rows(shard) if row["status"] == "succeeded")


def test_a_shard_that_was_never_submitted_has_its_rows_too(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a"])
    (row,) = rows(shard)
    assert (row["status"], row["error"]["code"], row["attempts"], row["batch_id"]) == (
        "missing",
        "not_submitted",
        0,
        None,
    )


def test_text_with_line_separators_stays_one_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x0bd\x85e\r\nf"
    shard = Shard(tmp_path, ["a"])
    lines = json.dumps(answered("a", chat_body(text)), ensure_ascii=False).encode()
    shard.add_round([lines])
    assert outputs(shard) == {"a": text}


def test_a_single_vector_follows_the_request_of_its_own_row(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["text", "list"])
    sent = [request("text", {"input": "x"}, url=EMBEDDINGS), request("list", {"input": ["x"]}, url=EMBEDDINGS)]
    body = {"data": [{"index": 0, "embedding": [0.25]}]}
    shard.add_round([answered("list", body), answered("text", body)], requests=sent)
    found = ShardReview(shard.context, shard.rounds, Rules(endpoint=EMBEDDINGS)).rows()
    assert [plain(row.output) for row in found] == [[0.25], [[0.25]]]


# --- lines that are not as they should be ----------------------------------------------------------------------------


def test_of_several_lines_the_first_success_counts(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a", "b", "c"])
    shard.add_round(
        [answered("a", chat_body("first")), answered("a", chat_body("second")), answered("b", chat_body("good"))],
        [refused("b", 500), refused("c", 400, "one"), answered("c", chat_body("late")), refused("a", 400)],
    )
    assert outputs(shard) == {"a": "first", "b": "good", "c": "late"}
    assert review(shard).report.oddities.duplicates == 4


def test_a_second_success_changes_nothing_even_if_the_first_is_not_usable(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a"])
    shard.add_round([answered("a", chat_body("hal", finish_reason="length")), answered("a", chat_body("late"))])
    assert [row["status"] for row in rows(shard)] == ["invalid_output"]
    assert review(shard).report.usage == Usage(10, 4, 5, 2, 15)


def test_lines_are_found_whatever_white_space_is_between_them(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a", "b"])
    lines = [json.dumps(answered(each, chat_body(each))).encode() for each in ("a", "b")]
    shard.add_round([b"", lines[0] + b"  \r", b"\r", b" " + lines[1] + b"\r"])
    assert outputs(shard) == {"a": "a", "b": "b"}


def test_of_several_errors_the_first_counts(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a"])
    shard.add_round(None, [refused("a", 400, "one"), refused("a", 500, "two")])
    assert [row["error"]["code"] for row in rows(shard)] == ["one"]


def test_strange_lines_are_counted_and_quoted_and_harm_nobody(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a", "b"])
    shard.add_round(
        [
            answered("a", chat_body("yes")),
            b"<html>Bad gateway</html>",
            answered("zz", chat_body("whose?")),
            answered(None, chat_body("whose?")),
            b"",
            b"[]",
            json.dumps(answered("b", chat_body("lost"))).encode()[:-9],
        ]
    )
    oddities = review(shard).report.oddities
    assert (oddities.broken, oddities.unknown, oddities.duplicates) == (3, 2, 0)
    assert oddities.quotes[0] == "round-1.output.jsonl, line 2: not a result: <html>Bad gateway</html>"
    assert "line 3: no request of this batch" in oddities.quotes[1]
    assert "line 6: not a result: []" in oddities.quotes[3]
    assert [row["status"] for row in rows(shard)] == ["succeeded", "missing"]


def test_no_more_than_a_few_strange_lines_are_quoted(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a"])
    shard.add_round([b"x" * 10_000] * 100)
    oddities = review(shard).report.oddities
    assert oddities.broken == 100
    assert len(oddities.quotes) == 5
    assert max(map(len, oddities.quotes)) < 300


def test_a_quoted_line_forges_no_line_of_a_log(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a"])
    shard.add_round([b"oops\x1b[2J\rERROR all is lost"])
    [quote] = review(shard).report.oddities.quotes
    assert quote.isprintable()
    assert quote.endswith("ERROR all is lost")


def test_an_error_code_forges_no_line_of_the_table_of_codes() -> None:
    manifest = {"requests": 1, "failed": 1, "succeeded": 0, "by_error": {"x\n  9  fine\x1b": 1}, "output_path": "o"}
    with pytest.raises(RowsFailedError) as raised:
        raise_for_results(manifest, 0)
    assert "        1  x   9  fine\N{REPLACEMENT CHARACTER}\n" in str(raised.value)


def test_a_line_for_a_row_that_this_round_did_not_send_is_unknown(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a", "b"])
    shard.add_round(None, [refused("a", 400, "one"), refused("b", 500)])
    shard.add_round([answered("a", chat_body("?")), answered("b", chat_body("yes"))], requests=[request("b")])
    assert outputs(shard) == {"a": None, "b": "yes"}
    assert review(shard).report.oddities.unknown == 1


# --- rounds ----------------------------------------------------------------------------------------------------------


def test_only_rows_that_can_still_succeed_go_to_the_next_round(tmp_path: Path) -> None:
    ids = ["done", "dead", "busy", "expired", "absent"]
    shard = Shard(tmp_path, ids)
    shard.add_round(
        [answered("done", chat_body())],
        [not_run("expired"), refused("busy", 503), refused("dead", 400)],
        status="expired",
    )
    assert next_requests(shard) == [request(custom_id) for custom_id in ("busy", "expired", "absent")]
    report = review(shard).report
    assert (report.rows, report.retries, report.ran) == (5, 3, 3)
    assert report.by_status == {"succeeded": 1, "failed": 2, "expired": 2}
    assert report.by_error == {"some_error": 2, "batch_expired": 2}


def test_only_rounds_in_which_a_row_ran_are_its_attempts(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a"])
    shard.add_round(None, [not_run("a")], status="expired")
    shard.add_round(None, None)
    shard.add_round(None, [refused("a", 500)])
    shard.add_round(None, [not_run("a", "batch_cancelled")], status="cancelled")
    (row,) = rows(shard, max_attempts=2)
    assert (row["attempts"], row["status"], row["batch_id"]) == (1, "cancelled", "batch_4")
    assert next_requests(shard, max_attempts=2) == [request("a")]
    shard.add_round(None, [refused("a", 500)])
    assert review(shard, max_attempts=2).report.retries == 0
    (row,) = rows(shard, max_attempts=2)
    assert (row["attempts"], row["status"]) == (2, "failed")


def test_a_round_in_which_nothing_ran_is_seen_as_such(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a", "b"])
    shard.add_round([answered("a", chat_body())], [refused("b", 500)])
    assert review(shard).report.ran == 2
    shard.add_round(None, None, requests=[request("b")])
    assert review(shard).report.ran == 0


def test_caps_double_from_round_to_round(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a", "b"])
    body = request("a")["body"] | {"max_completion_tokens": 100}
    cut = [answered("a", chat_body("hal", finish_reason="length"))]
    shard.add_round([*cut, answered("b", chat_body())], requests=[request("a", body), request("b", body)])
    second = next_requests(shard)
    assert second == [request("a", body | {"max_completion_tokens": 200})]
    shard.add_round(cut, requests=second)
    assert next_requests(shard) == [request("a", body | {"max_completion_tokens": 400})]


def test_an_answer_that_does_not_validate_goes_back_with_the_reason(tmp_path: Path) -> None:
    def parse(text: str) -> Parsed:
        return Parsed({"label": text}) if text == "good" else Parsed(error="$.label: not good")

    shard = Shard(tmp_path, ["a", "b"])
    shard.add_round([answered("b", chat_body("bad")), answered("a", chat_body("good"))])
    (sent,) = next_requests(shard, parse_output=parse)
    *_, answer, correction = sent["body"]["messages"]
    assert answer == {"role": "assistant", "content": "bad"}
    assert "$.label: not good" in correction["content"]
    good, bad = rows(shard, parse_output=parse)
    assert good["output"] == {"label": "good"}
    assert (bad["status"], bad["output"], bad["error"]["message"]) == ("invalid_output", None, "$.label: not good")


def test_a_higher_limit_takes_up_rows_that_were_given_up(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a", "b"])
    shard.add_round(None, [refused("a", 500), not_run("b")], status="expired")
    only_b = next_requests(shard, max_attempts=1)
    assert only_b == [request("b")]
    shard.add_round(None, [not_run("b")], status="expired", requests=only_b)
    assert next_requests(shard, max_attempts=2) == [request("a"), request("b")]


def test_a_success_stays_one_when_the_row_was_sent_again(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a"])
    shard.add_round([answered("a", chat_body("first"))])
    shard.add_round(None, [refused("a", 400)])
    assert outputs(shard) == {"a": "first"}
    assert review(shard).report.by_status == {"succeeded": 1}


def test_usage_counts_every_run_and_a_row_shows_its_last(tmp_path: Path) -> None:
    shard = Shard(tmp_path, ["a"])
    body = {"max_tokens": 1}
    shard.add_round([answered("a", chat_body("h", finish_reason="length"))], requests=[request("a", body)])
    shard.add_round([answered("a", chat_body("hi"))], requests=[request("a", body)])
    assert review(shard).report.usage == Usage(20, 8, 10, 4, 30)
    (row,) = rows(shard)
    assert (row["usage"]["total_tokens"], row["attempts"]) == (15, 2)


# --- any world -------------------------------------------------------------------------------------------------------

FATES = ("ok", "bad request", "server error", "cut off", "expired", "absent")


class World:
    """A service that answers at random, and what each row must come to, worked out row by row."""

    def __init__(self, directory: Path, count: int, rng: random.Random, max_attempts: int) -> None:
        ids = [f"row-{number}" for number in range(count)]
        self.rng = rng
        self.max_attempts = max_attempts
        self.shard = Shard(directory, ids, first_index=rng.randrange(100))
        self.status = dict.fromkeys(ids, "missing")
        self.output: dict[str, str | None] = dict.fromkeys(ids)
        self.attempts = dict.fromkeys(ids, 0)
        self.cap = dict.fromkeys(ids, 10)
        self.open = set(ids)

    def requests(self) -> list[dict[str, Any]]:
        body = request("")["body"]
        return [
            request(custom_id, body | {"max_tokens": self.cap[custom_id]})
            for custom_id in self.shard.custom_ids
            if custom_id in self.open
        ]

    def play_round(self, sent: list[dict[str, Any]]) -> None:
        rng = self.rng
        number = len(self.shard.rounds) + 1
        batch_status = rng.choice(["completed", "completed", "expired", "cancelled"])
        good: list[Any] = []
        late: list[Any] = []
        bad: list[Any] = []
        for line in sent:
            custom_id = line["custom_id"]
            fate = rng.choice(FATES)
            text = f"{custom_id} in round {number}"
            match fate:
                case "ok":
                    good.append(answered(custom_id, chat_body(text)))
                    late += [answered(custom_id, chat_body("again"))] * rng.choice([0, 0, 2])
                    bad += [refused(custom_id, 500)] * rng.choice([0, 0, 1])
                    self.settle(custom_id, "succeeded", text)
                case "bad request":
                    bad += [refused(custom_id, 400)] * rng.choice([1, 1, 2])
                    self.settle(custom_id, "failed")
                case "server error":
                    bad.append(refused(custom_id, 500))
                    self.ran_in_vain(custom_id, "failed")
                case "cut off":
                    good.append(answered(custom_id, chat_body("hal", finish_reason="length")))
                    self.ran_in_vain(custom_id, "invalid_output")
                    self.cap[custom_id] *= 2
                case "expired":
                    bad.append(not_run(custom_id))
                    self.status[custom_id] = "expired"
                case "absent":
                    self.status[custom_id] = batch_status if batch_status != "completed" else "missing"
        noise = [b"<html>", b"{}", b"null", b"", answered("nobody", chat_body())]
        rng.shuffle(good)
        bad += rng.sample(noise, rng.randrange(len(noise)))
        rng.shuffle(bad)
        good += late + rng.sample(noise, rng.randrange(len(noise)))
        self.shard.add_round(good or None, bad or rng.choice([None, []]), status=batch_status, requests=sent)

    def settle(self, custom_id: str, status: str, output: str | None = None) -> None:
        self.attempts[custom_id] += 1
        self.status[custom_id] = status
        self.output[custom_id] = output
        self.open.discard(custom_id)

    def ran_in_vain(self, custom_id: str, status: str) -> None:
        self.attempts[custom_id] += 1
        self.status[custom_id] = status
        if self.attempts[custom_id] == self.max_attempts:
            self.open.discard(custom_id)


@settings(max_examples=150)
@given(count=st.integers(1, 8), seed=st.integers(0, 2**32), rounds=st.integers(1, 4), max_attempts=st.integers(1, 3))
def test_every_row_ends_in_one_true_result_row_and_no_finished_row_is_sent_again(
    count: int, seed: int, rounds: int, max_attempts: int
) -> None:
    with TemporaryDirectory() as directory:
        world = World(Path(directory), count, random.Random(seed), max_attempts)
        shard = world.shard
        sent = world.requests()
        for _ in range(rounds):
            world.play_round(sent)
            sent = next_requests(shard, max_attempts=max_attempts)
            assert sent == world.requests()
            if not sent:
                break
        found = rows(shard, max_attempts=max_attempts)
        assert [row["custom_id"] for row in found] == shard.custom_ids
        assert [row["index"] - found[0]["index"] for row in found] == list(range(count))
        assert {row["custom_id"]: row["status"] for row in found} == world.status
        assert {row["custom_id"]: row["output"] for row in found} == world.output
        assert {row["custom_id"]: row["attempts"] for row in found} == world.attempts
        report = review(shard, max_attempts=max_attempts).report
        assert report.by_status == Counter(world.status.values())
        assert report.retries == len(world.open)
        assert sum(report.by_error.values()) == count - report.by_status.get("succeeded", 0)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_size_of_answers(tmp_path: Path) -> None:
    ids = [f"row-{number}" for number in range(100)]
    shard = Shard(tmp_path, ids)
    body = {"messages": [{"role": "user", "content": "x" * 200_000}], "max_tokens": 1}
    requests = write_lines(tmp_path / "sent.jsonl", (request(custom_id, body) for custom_id in ids))
    output = write_lines(
        tmp_path / "output.jsonl",
        (
            answered(each, chat_body("y" * 200_000, finish_reason="stop" if at % 2 else "length"))
            for at, each in enumerate(ids)
        ),
    )
    shard.rounds.append(RoundFiles(batch_id="batch_1", batch_status="completed", requests=requests, output=output))
    tracemalloc.start()
    try:
        reviewed = review(shard)
        assert reviewed.write_next_round(tmp_path / "next.jsonl", len).requests == 50
        assert sum(len(msgspec.json.encode(row)) > 200_000 for row in reviewed.rows()) == 50
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert output.stat().st_size > 20_000_000
    assert peak < 5_000_000


# --- counts ----------------------------------------------------------------------------------------------------------


def batch(completed: int | None, failed: int | None, status: str = "completed") -> Batch:
    counts = {"total": 10, "completed": completed, "failed": failed}
    return Batch.from_api({"id": "batch_1", "status": status, "request_counts": counts})


@pytest.mark.parametrize(
    ("ended", "output_lines", "error_lines"),
    [
        (batch(8, 2), 8, 2),
        (batch(10, 0), 10, 0),
        (batch(0, 10), 0, 10),
        (batch(1, 0, "expired"), 1, 9),  # rows that never ran are not counted
        (batch(8, 2), 10, 0),  # one file for all
        (batch(None, None), 8, 2),  # Azure
    ],
)
def test_complete_files_pass(ended: Batch, output_lines: int, error_lines: int) -> None:
    assert check_counts(ended, output_lines, error_lines) is None


def test_where_nothing_is_counted_each_request_has_a_line() -> None:
    uncounted = Batch.from_api({"id": "batch_1", "status": "completed"})
    assert check_counts(uncounted, 8, 2, 10) is None
    assert "10 requests, but its files have 9 lines" in (check_counts(uncounted, 8, 1, 10) or "")
    assert check_counts(uncounted, 8, 1) is None, "how many there were is not known"
    assert check_counts(Batch.from_api({"id": "batch_1", "status": "expired"}), 8, 1, 10) is None


@pytest.mark.parametrize(
    ("ended", "output_lines", "error_lines", "words"),
    [
        (batch(8, 2), 7, 2, "batch_1: 8 requests completed, but the output file has 7 lines"),
        (batch(8, 2), 7, 3, "output file has 7 lines"),
        (batch(8, 2), 8, 1, "2 requests failed, but the error file has 1 lines"),
        (batch(1, 0, "expired"), 0, 9, "output file has 0 lines"),
    ],
)
def test_a_file_with_fewer_lines_than_counted_is_not_complete(
    ended: Batch, output_lines: int, error_lines: int, words: str
) -> None:
    assert words in (check_counts(ended, output_lines, error_lines) or "")


@pytest.mark.parametrize(
    ("content", "count"),
    [(b"", 0), (b'{}\n{"a":1}\n', 2), (b"{}\n{}", 2), (b'{}\n{"a":', 1), (b"{}\n\n{}\n \n", 2), (b"{}\n<html>\n", 2)],
)
def test_a_last_line_that_was_cut_off_does_not_count(tmp_path: Path, content: bytes, count: int) -> None:
    path = tmp_path / "output.jsonl"
    path.write_bytes(content)
    assert count_lines(path) == count
