"""Whatever is in the files that a batch leaves: one row per request, in order, and a status that is true."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.jobs.classify import RetryLimits
from airflow_provider_openai_batches.jobs.lines import parse_line
from airflow_provider_openai_batches.jobs.parts import read_results, write_parts
from airflow_provider_openai_batches.jobs.results import Rules, ShardReview
from airflow_provider_openai_batches.jobs.rounds import RoundFiles
from tests.jobs.result_files import CHAT, answered, chat_body, not_run, refused, request, write_lines
from tests.properties.effort import TIMEOUT_S, effort
from tests.properties.odd_json import FRAGMENTS, nested, spelled, spoiled

pytestmark = pytest.mark.timeout(TIMEOUT_S)

IDS = st.text(min_size=1, max_size=4) | st.sampled_from(["row-1", "1", "\u2028", "\x00", "a\nb", "\ufeff", "e\u0301"])
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["\u2028\x85", "\x00", "a\nb", "\U0001f600", "x" * 300_000, nested(2_000)]
)

NO_RESULTS = [each for each in FRAGMENTS if parse_line(each) is None and b"\n" not in each]
"""Lines that are none, whatever stands beside them."""


@st.composite
def batch(draw: st.DrawFn) -> tuple[list[str], dict[str, tuple[str, str | None]], list[bytes], list[bytes], str]:
    """A batch's custom_ids, what each must come to, the lines of both its files, and how it ended."""
    ids = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    ending, of_absent = draw(
        st.sampled_from([("completed", "missing"), ("expired", "expired"), ("cancelled", "cancelled")])
    )
    expected: dict[str, tuple[str, str | None]] = {}
    output: list[bytes] = []
    errors: list[bytes] = []
    for custom_id in ids:
        fate = draw(st.sampled_from(["answered", "answered", "refused", "failing", "expired", "absent", "mixed"]))
        text = draw(TEXTS)
        good, bad = answered(custom_id, chat_body(text)), refused(custom_id, draw(st.sampled_from([400, 500, 429])))
        match fate:
            case "answered":
                # A row's further lines come behind the one that counts, so they are of one file and in one order.
                output += [draw(spelled(good))] * draw(st.integers(1, 2))
                expected[custom_id] = ("succeeded", text)
            case "refused" | "failing":
                (errors if draw(st.booleans()) else output).append(draw(spelled(bad)))
                expected[custom_id] = ("failed", None)
            case "expired":
                errors.append(draw(spelled(not_run(custom_id))))
                expected[custom_id] = ("expired", None)
            case "absent":
                expected[custom_id] = (of_absent, None)
            case "mixed":
                # In whatever order: an answer is an answer.
                output.append(draw(spelled(good)))
                (errors if draw(st.booleans()) else output).append(draw(spelled(bad)))
                errors.append(draw(spelled(not_run(custom_id))))
                expected[custom_id] = ("succeeded", text)
    junk = st.sampled_from(NO_RESULTS) | st.just(json.dumps(answered("nobody's", chat_body())).encode())
    output, errors = (draw(st.permutations([*lines, *draw(st.lists(junk, max_size=3))])) for lines in (output, errors))
    return ids, expected, output, errors, ending


def review(directory: Path, ids: list[str], output: bytes | None, errors: bytes | None, ending: str) -> ShardReview:
    context = ({"index": index, "custom_id": custom_id, "context": None} for index, custom_id in enumerate(ids))
    files: dict[str, Path | None] = {"output": None, "errors": None}
    for name, content in (("output", output), ("errors", errors)):
        if content is not None:
            files[name] = directory / name
            (directory / name).write_bytes(content)
    sent = write_lines(directory / "requests", (request(custom_id) for custom_id in ids))
    rounds = [RoundFiles(batch_id="batch", batch_status=ending, requests=sent, **files)]
    rules = Rules(endpoint=CHAT, limits=RetryLimits(1))
    return ShardReview(write_lines(directory / "context", context), rounds, rules)


def written(directory: Path, found: ShardReview) -> list[dict[str, Any]]:
    """Return the rows as whoever reads the results gets them."""
    parts = list(write_parts([found.rows()], directory, rows_per_part=2))
    return list(read_results({"results": [str(part.path) for part in parts]}))


def joined(lines: Iterable[bytes], end: bytes, last: bytes) -> bytes:
    return end.join(lines) + last


@effort(250)
@given(files=batch(), end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]), last=st.sampled_from([b"", b"\n"]))
def test_any_order_repetition_and_junk_leaves_one_true_row_per_request_in_order(
    files: Any, end: bytes, last: bytes
) -> None:
    ids, expected, output, errors, ending = files
    with TemporaryDirectory() as directory:
        found = review(Path(directory), ids, joined(output, end, last), joined(errors, end, last), ending)
        rows = written(Path(directory), found)
        assert [row["custom_id"] for row in rows] == ids
        assert [row["index"] for row in rows] == list(range(len(ids)))
        assert {row["custom_id"]: (row["status"], row["output"]) for row in rows} == expected
        assert found.report.by_status == Counter(status for status, _ in expected.values())


@effort(250)
@given(files=batch(), data=st.data())
def test_lines_that_something_has_happened_to_harm_no_row_but_their_own(files: Any, data: st.DataObject) -> None:
    ids, expected, output, errors, ending = files
    with TemporaryDirectory() as directory:
        victim = data.draw(st.sampled_from(output + errors)) if output + errors else b""
        hurt = data.draw(spoiled(victim))
        # What is spoiled may be anyone's line by now.
        parsed = parse_line(hurt)
        touched = {None if each is None else each.key for each in (parsed, parse_line(victim))}
        output, errors = ([hurt if line is victim else line for line in lines] for lines in (output, errors))
        found = review(Path(directory), ids, joined(output, b"\n", b""), joined(errors, b"\n", b"\n"), ending)
        rows = written(Path(directory), found)
        assert [row["custom_id"] for row in rows] == ids
        for row in rows:
            assert (row["error"] is None) == (row["status"] == "succeeded")
            if row["custom_id"] not in touched:
                assert (row["status"], row["output"]) == expected[row["custom_id"]]


@effort(150)
@given(output=st.binary(max_size=300) | st.none(), errors=st.lists(st.sampled_from(FRAGMENTS), max_size=5))
def test_files_of_anything_at_all_leave_one_row_per_request(output: bytes | None, errors: list[bytes]) -> None:
    with TemporaryDirectory() as directory:
        found = review(Path(directory), ["a", "b"], output, b"\n".join(errors), "completed")
        rows = written(Path(directory), found)
        assert [(row["custom_id"], row["status"]) for row in rows] == [("a", "missing"), ("b", "missing")]
        msgspec.json.encode(found.report)
