from __future__ import annotations

import io
import json
import logging
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import (
    MAX_BYTES,
    MAX_REQUESTS,
    InputSummary,
    check_base_url,
    check_completion_window,
    check_endpoint,
    check_expiry,
    check_id,
    check_input_file,
    check_metadata,
)
from airflow_provider_openai_batches.api.models import ENDPOINTS

CHAT = "/v1/chat/completions"
LONG = "x" * 1_000_000
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


def request(custom_id: Any = "row-1", **changes: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": BODY, **changes}


def without(line: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != name}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def check(content: bytes) -> InputSummary:
    return check_input_file(io.BytesIO(content), "rows.jsonl")


def refusal(content: bytes) -> str:
    with pytest.raises(InvalidInputError) as raised:
        check(content)
    assert raised.value.param == "source"
    assert "rows.jsonl" in str(raised.value)
    return str(raised.value)


def test_a_valid_file_is_summed_up() -> None:
    content = jsonl(*(request(f"row-{index}") for index in range(3)))
    assert check(content) == InputSummary(requests=3, bytes=len(content), endpoint=CHAT, model="gpt-4o-mini")


@pytest.mark.parametrize(
    "content",
    [
        jsonl(request()).rstrip(b"\n"),
        jsonl(request("a"), request("b")).replace(b"\n", b"\r\n"),
        jsonl(request("a\u2028b\u0085")),
        json.dumps(request("ü\u2028"), ensure_ascii=False).encode(),
        jsonl(request(extra={"of": "no matter"}, body={**BODY, "temperature": 0.1, "stream": False})),
        jsonl(request(), request("2", body={"messages": [], "model": "gpt-4o-mini"})),
        b'{"body": {"messages": [1], "model": "gpt\\u002d4o"}, "url": "%s", "method": "POST", "custom_id": "a"}\n'
        % CHAT.encode()
        + jsonl(request("b", body={**BODY, "model": "gpt-4o"})),
    ],
    ids=["no last newline", "CRLF", "U+2028", "UTF-8", "extra fields", "any field order", "escaped model"],
)
def test_harmless_variants_are_accepted(content: bytes) -> None:
    assert check(content).requests == content.count(b'"custom_id"')


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/responses", {"model": "m", "input": "hi"}),
        ("/v1/responses", {"model": "m", "prompt": {"id": "pmpt_1"}}),
        ("/v1/embeddings", {"model": "m", "input": ["a", "b"]}),
        ("/v1/completions", {"model": "m", "prompt": ""}),
        ("/v1/moderations", {"model": "m", "input": "hi"}),
        ("/v1/images/generations", {"model": "m", "prompt": "a cat"}),
        ("/v1/images/edits", {"model": "m", "prompt": "a cat", "images": [{"file_id": "f"}]}),
        ("/v1/videos", {"model": "m", "prompt": "a cat"}),
        ("/chat/completions", {"model": "my-deployment", "messages": []}),
        ("/v1/of-another-service", {"anything": 1}),
    ],
)
def test_every_endpoint_is_accepted(endpoint: str, body: dict[str, Any]) -> None:
    assert check(jsonl(request(url=endpoint, body=body))).endpoint == endpoint


LINE = 3

BAD_LINES: dict[str, tuple[Any, list[str]]] = {
    "not JSON": (b'{"custom_id": \n', ["not valid JSON", "one complete JSON object"]),
    "cut": (jsonl(request())[:-3] + b"\n", ["not valid JSON"]),
    "two objects": (jsonl(request("x"))[:-1] + jsonl(request("y")), ["not valid JSON"]),
    "a list": ([], ["array"]),
    "a text": ("hello", ["str"]),
    "null": (None, ["null"]),
    "empty line": (b"\n", ["empty", "Remove it"]),
    "blank line": (b"  \r\n", ["empty", "Remove it"]),
    "Latin-1": (jsonl(request("x")).replace(b"hi", b"\xfc"), ["UTF-8"]),
    "Latin-1 in a skipped field": (jsonl(request("x", note="NOTE")).replace(b"NOTE", b"\xfc"), ["UTF-8"]),
    "too deep": (b'{"note": ' + b"[" * 100_000 + b"\n", ["not valid JSON"]),
    "no custom_id": (without(request(), "custom_id"), ["custom_id"]),
    "custom_id null": (request(None), ["custom_id"]),
    "custom_id a number": (request(7), ["custom_id"]),
    "custom_id empty": (request(""), ["custom_id", "unique"]),
    "custom_id twice": (request("row-0"), ["'row-0'", "line 1", "unique"]),
    "no method": (without(request("x"), "method"), ["method"]),
    "GET": (request("x", method="GET"), ["method", "'GET'", "POST"]),
    "method in lower case": (request("x", method="post"), ["method", "'post'", "POST"]),
    "no url": (without(request("x"), "url"), ["url"]),
    "whole url": (request("x", url="https://api.openai.com/v1/chat/completions"), ["url", "path"]),
    "other url": (request("x", url="/v1/responses"), ["url", "/v1/responses", CHAT, "one endpoint per batch"]),
    "no body": (without(request("x"), "body"), ["body"]),
    "body null": (request("x", body=None), ["body"]),
    "body a text": (request("x", body="{}"), ["body"]),
    "no model": (request("x", body=without(BODY, "model")), ["body.model"]),
    "model null": (request("x", body={**BODY, "model": None}), ["body.model"]),
    "model empty": (request("x", body={**BODY, "model": ""}), ["body.model"]),
    "model a number": (request("x", body={**BODY, "model": 4}), ["body.model"]),
    "other model": (request("x", body={**BODY, "model": "o3"}), ["body.model 'o3'", "'gpt-4o-mini'", "per model"]),
    "stream": (request("x", body={**BODY, "stream": True}), ["body.stream", "Remove it"]),
    "no messages": (request("x", body=without(BODY, "messages")), ["body.messages"]),
    "messages null": (request("x", body={**BODY, "messages": None}), ["body.messages"]),
}


@pytest.mark.parametrize(("bad", "parts"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_refused_by_number_field_and_remedy(bad: Any, parts: list[str]) -> None:
    line = bad if isinstance(bad, bytes) else jsonl(bad)
    message = refusal(jsonl(request("row-0"), request("row-1")) + line + jsonl(request("row-3")))
    assert f"rows.jsonl, line {LINE}: " in message
    for part in parts:
        assert part in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("endpoint", "body", "field"),
    [
        ("/v1/embeddings", {"model": "m"}, "body.input"),
        ("/v1/completions", {"model": "m"}, "body.prompt"),
        ("/v1/moderations", {"model": "m"}, "body.input"),
        ("/v1/images/generations", {"model": "m"}, "body.prompt"),
    ],
)
def test_a_body_without_its_content_is_refused(endpoint: str, body: dict[str, Any], field: str) -> None:
    assert field in refusal(jsonl(request(url=endpoint, body=body)))


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS))
def test_every_openai_endpoint_needs_a_model(endpoint: str) -> None:
    assert "body.model" in refusal(jsonl(request(url=endpoint, body={"messages": [], "input": "", "prompt": ""})))


requests = st.lists(
    st.tuples(st.text(min_size=1, max_size=20), st.text(max_size=30), st.booleans()),
    min_size=2,
    max_size=8,
    unique_by=lambda row: row[0],
)


def lines_of(rows: list[tuple[str, str, bool]]) -> list[bytes]:
    return [
        json.dumps(
            request(custom_id, body={**BODY, "messages": [{"role": "user", "content": text}]}), ensure_ascii=ascii_only
        ).encode()
        + b"\n"
        for custom_id, text, ascii_only in rows
    ]


@given(requests)
def test_any_file_of_valid_lines_passes(rows: list[tuple[str, str, bool]]) -> None:
    content = b"".join(lines_of(rows))
    assert check(content) == InputSummary(len(rows), len(content), CHAT, "gpt-4o-mini")


@given(requests, st.sampled_from(sorted(BAD_LINES.keys() - {"custom_id twice"})), st.data())
def test_any_single_bad_line_is_named(rows: list[tuple[str, str, bool]], kind: str, data: st.DataObject) -> None:
    lines = lines_of([(f"{index}{custom_id}", text, flag) for index, (custom_id, text, flag) in enumerate(rows)])
    # A file's first line sets its endpoint and model, so another one is wrong only below it.
    at = data.draw(st.integers(1, len(lines)))
    bad = BAD_LINES[kind][0]
    lines.insert(at, bad if isinstance(bad, bytes) else jsonl(bad))
    assert f"line {at + 1}: " in refusal(b"".join(lines))


@given(requests, st.data())
def test_any_repeated_custom_id_names_both_lines(rows: list[tuple[str, str, bool]], data: st.DataObject) -> None:
    lines = lines_of(rows)
    first = data.draw(st.integers(0, len(lines) - 1))
    second = data.draw(st.integers(first + 1, len(lines)))
    lines.insert(second, lines[first])
    message = refusal(b"".join(lines))
    assert f"line {second + 1}: " in message
    assert f"in line {first + 1}." in message


def test_an_empty_file_is_refused() -> None:
    assert "empty" in refusal(b"")


def test_a_byte_order_mark_is_refused_with_its_remedy() -> None:
    message = refusal(b"\xef\xbb\xbf" + jsonl(request()))
    assert "line 1" in message
    assert "byte order mark" in message
    assert "utf-8" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_refused(encoding: str) -> None:
    assert "line 1" in refusal(jsonl(request()).decode().encode(encoding))


def test_fifty_thousand_requests_fit_and_one_more_does_not() -> None:
    lines = [jsonl(request(str(index))) for index in range(MAX_REQUESTS + 1)]
    assert check(b"".join(lines[:-1])).requests == MAX_REQUESTS
    message = refusal(b"".join(lines))
    assert "50,000" in message
    assert "line 50001" in message
    assert "Split" in message


EMBEDDINGS = "/v1/embeddings"


@pytest.mark.parametrize(
    ("content", "inputs"),
    [
        pytest.param("one, [text]", 1, id="text"),
        pytest.param([1, 2, 3], 1, id="tokens"),
        pytest.param(["a, b", 'quoted "c", \\', "[d]"], 3, id="texts"),
        pytest.param([[1, 2], [3], [4, 5]], 3, id="lists of tokens"),
    ],
)
def test_fifty_thousand_embedding_inputs_fit_and_more_do_not(content: Any, inputs: int) -> None:
    lines = 12
    room = jsonl(request("rest", url=EMBEDDINGS, body={"model": "m", "input": ["x"] * (MAX_REQUESTS - lines * inputs)}))
    several = b"".join(
        jsonl(request(str(index), url=EMBEDDINGS, body={"model": "m", "input": content})) for index in range(lines)
    )
    assert check(room + several).requests == lines + 1
    message = refusal(several + room + jsonl(request("more", url=EMBEDDINGS, body={"model": "m", "input": "x"})))
    for part in ("50,000 inputs", f"line {lines + 2}", "Split"):
        assert part in message


class Generated(io.RawIOBase):
    """A file that is made while it is read, so that its size costs the test no memory."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks, self.rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.rest = self.rest or next(self.blocks, b"")
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def generated(size: int, line_bytes: int = 40_000) -> BinaryIO:
    """A valid file of exactly this many bytes."""

    def lines() -> Iterator[bytes]:
        left = size
        index = 0
        while left:
            empty = len(jsonl(request(f"{index:09}", body={**BODY, "messages": ""})))
            length = line_bytes if left >= 2 * line_bytes else left
            yield jsonl(request(f"{index:09}", body={**BODY, "messages": "x" * (length - empty)}))
            left -= length
            index += 1

    return io.BufferedReader(Generated(lines()), 1 << 16)  # type: ignore[type-var]


@pytest.mark.parametrize("changes", [{"custom_id": LONG}, {"url": LONG}, {"method": LONG}])
def test_a_refusal_of_a_huge_value_stays_readable(changes: dict[str, str]) -> None:
    line = request(**changes)
    message = refusal(jsonl(line, line))
    assert LONG[:100] in message
    assert len(message) < 500


def test_a_refusal_of_a_huge_id_or_metadata_stays_readable() -> None:
    assert len(field_refusal(lambda: check_completion_window(LONG), "completion_window")) < 500
    assert len(field_refusal(lambda: check_metadata({LONG: LONG}), "metadata")) < 500
    assert len(field_refusal(lambda: check_id([LONG], "batch_id"), "batch_id")) < 500


def test_200_megabytes_are_checked_in_little_memory() -> None:
    tracemalloc.start()
    summary = check_input_file(generated(MAX_BYTES), "rows.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summary.bytes == MAX_BYTES
    assert peak < 20_000_000


def test_one_byte_over_200_megabytes_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"rows\.jsonl: .*200,000,000 bytes.*Split"):
        check_input_file(generated(MAX_BYTES + 1), "rows.jsonl")


# --- single values ----------------------------------------------------------------------------------------------------


def field_refusal(check: Callable[[], Any], param: str) -> str:
    with pytest.raises(InvalidInputError) as raised:
        check()
    assert raised.value.param == param
    assert str(raised.value).startswith(f"{param}: ")
    return str(raised.value)


@pytest.mark.parametrize("value", ["", "  ", None, "None", "null", 7, ["batch_1"], ".", "..", " .. "])
def test_what_cannot_be_an_id_is_refused(value: object) -> None:
    assert repr(value) in field_refusal(lambda: check_id(value, "batch_id"), "batch_id")


def test_an_id_of_any_shape_is_accepted() -> None:
    for value in ("batch_1", "bGl0ZWxsbV9wcm94eTo6/+==", "a" * 500, "file-batch-1"):
        assert check_id(f" {value}\n", "batch_id") == value


def test_an_unknown_endpoint_is_passed_on_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert check_endpoint("/v1/rerank") == "/v1/rerank"
    assert "/v1/rerank" in caplog.text


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS))
def test_a_known_endpoint_causes_no_warning(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert check_endpoint(endpoint) == endpoint
    assert not caplog.text


@pytest.mark.parametrize(
    "value", ["", "v1/responses", "https://api.openai.com/v1/responses", "/v1/ responses", None, 1]
)
def test_what_is_no_path_is_no_endpoint(value: Any) -> None:
    assert "/v1/chat/completions" in field_refusal(lambda: check_endpoint(value), "endpoint")


@pytest.mark.parametrize("value", ["24h", "7d", "336h"])
def test_a_completion_window_is_hours_or_days(value: str) -> None:
    assert check_completion_window(value) == value


@pytest.mark.parametrize("value", ["", "h", "24", 24, None, "24 h", "1.5h", "-1h", "24H", "1w"])
def test_any_other_completion_window_is_refused(value: Any) -> None:
    assert "'24h'" in field_refusal(lambda: check_completion_window(value), "completion_window")


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ([("a", "b")], "dict"),
        ("a=b", "dict"),
        ({"a": 1}, "str()"),
        ({"a": None}, "str()"),
        ({"tags": ["x"]}, "str()"),
        ({1: "a"}, "str()"),
        ({"": "a"}, "1 to 64"),
        ({"k" * 65: "a"}, "1 to 64"),
        ({"note": "v" * 513}, "'note' has 513 characters, at most 512"),
        ({f"k{index}": "" for index in range(17)}, "17 pairs are too many: at most 16"),
    ],
)
def test_bad_metadata_is_refused_by_key_and_limit(metadata: Any, part: str) -> None:
    assert part in field_refusal(lambda: check_metadata(metadata), "metadata")


def test_metadata_at_its_limits_is_accepted() -> None:
    metadata = {f"{index:064}": "v" * 512 for index in range(16)}
    assert check_metadata(metadata) == metadata
    assert check_metadata(None) == {}


def test_metadata_leaves_room_for_the_providers_own() -> None:
    metadata = {str(index): "" for index in range(15)}
    assert check_metadata(metadata, reserved=1) == metadata
    message = field_refusal(lambda: check_metadata({**metadata, "one": "more"}, reserved=1), "metadata")
    assert "at most 15" in message
    assert "provider's own" in message


@pytest.mark.parametrize("value", [3_600, 2_592_000, {"anchor": "created_at", "seconds": 3_600}, {"seconds": 3_600}])
def test_an_expiry_is_sent_as_the_apis_object(value: Any) -> None:
    seconds = value["seconds"] if isinstance(value, dict) else value
    assert check_expiry(value, "expires_after") == {"anchor": "created_at", "seconds": seconds}
    assert check_expiry(None, "expires_after") is None


@pytest.mark.parametrize("value", [0, 3_599, 2_592_001, -1, True, "3600", 3600.5, {}, {"anchor": "created_at"}])
def test_an_expiry_out_of_range_is_refused(value: Any) -> None:
    assert "3,600 to 2,592,000 seconds" in field_refusal(lambda: check_expiry(value, "expires_after"), "expires_after")


def test_another_anchor_is_refused_rather_than_replaced() -> None:
    value = {"anchor": "last_active_at", "seconds": 3_600}
    assert "'created_at'" in field_refusal(lambda: check_expiry(value, "expires_after"), "expires_after")


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        (" https://api.openai.com/v1/ ", "https://api.openai.com/v1"),
        ("http://127.0.0.1:8080/v1//", "http://127.0.0.1:8080/v1"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://res.openai.azure.com/openai/v1", "https://res.openai.azure.com/openai/v1"),
    ],
)
def test_a_base_url_loses_its_last_slash(url: str, clean: str) -> None:
    assert check_base_url(url) == clean


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.openai.com/v1",
        "ftp://api.openai.com",
        "https://",
        "https:///v1",
        "http://[::1",
        "http://localhost:port/v1",
        "http://localhost:99999/v1",
    ],
)
def test_what_is_no_base_url_is_refused(url: str) -> None:
    assert "https://api.openai.com/v1" in field_refusal(lambda: check_base_url(url), "host")


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter22@host/v1",
        "https://:hunter22@host/v1",
        "user:hunter22@host",
        "ftp://user:hunter22@host",
        "https://host/v1?key=hunter22",
        "https://host/v1#hunter22",
    ],
)
def test_a_secret_in_the_base_url_is_refused_without_showing_it(url: str) -> None:
    message = field_refusal(lambda: check_base_url(url), "host")
    assert "hunter22" not in message
    assert "credentials" in message
