from __future__ import annotations

import gzip
import io
import itertools
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import (
    APIConnectionError,
    BadRequestError,
    DownloadIncompleteError,
    InvalidInputError,
    InvalidResponseError,
    NotFoundError,
    PermissionDeniedError,
    ServerError,
)
from airflow_provider_openai_batches.emulator import Emulator
from tests.api.connecting import API_KEY, connect
from tests.api.scripted_server import RESET, Answer, Request, ScriptedServer, as_json

BLOCK = 1 << 20
"""The client reads a content in blocks of this size; of a block that is cut, it keeps nothing."""

CONTENT = random.Random(1).randbytes(5 * BLOCK // 2)
CUT = BLOCK + 7
FROM_BLOCK = f"bytes={BLOCK}-"
TRUE_RANGES = {"Accept-Ranges": "bytes", "ETag": '"v1"'}
ON_CONTENT = {"method": "GET", "path": "/v1/files/*/content"}


def ranged(content: bytes = CONTENT, *, etag: str = '"v1"', cut_at: int | None = None) -> Any:
    """A step that serves ranges properly, and may be cut after so many bytes."""

    def serve(request: Request) -> Answer:
        headers = {"Accept-Ranges": "bytes", "ETag": etag}
        asked = request.headers.get("Range")
        if asked is None or request.headers.get("If-Range") != etag:
            return Answer(200, content, headers, cut_at=cut_at)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Answer(206, content[start:], headers, cut_at=cut_at)

    return serve


def download(tmp_path: Path, *steps: Any, attempts: int = 5) -> tuple[bytes, list[str | None]]:
    """What arrives, and the ``Range`` of each request."""
    destination = tmp_path / "out.jsonl"
    with ScriptedServer(*steps) as server, connect(server.base_url, attempts=attempts) as client:
        size = client.download_file("file-1", destination)
    content = destination.read_bytes()
    assert size == len(content)
    assert list(tmp_path.iterdir()) == [destination]
    return content, [request.headers.get("Range") for request in server.requests]


# --- whole or not at all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{}\n", CONTENT, "a\u2028b\u0085c\r\nü\n".encode()])
def test_a_content_arrives_byte_by_byte(tmp_path: Path, content: bytes) -> None:
    assert download(tmp_path, Answer(200, content)) == (content, [None])


def test_a_batchs_results_arrive_with_their_line_separators(
    emulator: Emulator, client: BatchClient, tmp_path: Path, input_file: bytes
) -> None:
    content = input_file.replace(b"hi", "a\u2028b".encode())
    file = client.upload_file(lambda: io.BytesIO(content), filename="rows.jsonl")
    batch = client.create_batch(file.id, "/v1/chat/completions")
    emulator.advance(1_000)
    output = client.retrieve_batch(batch.id).output_file_id
    assert output is not None
    client.download_file(output, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 3


def test_a_content_without_a_length_is_taken_as_it_comes(tmp_path: Path) -> None:
    assert download(tmp_path, Answer(chunks=(b"one\n", b"two\n")))[0] == b"one\ntwo\n"


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_bytes(b"old")
    assert download(tmp_path, Answer(200, b"new"))[0] == b"new"


FAILURES: dict[str, tuple[list[Any], type[Exception]]] = {
    "404": ([as_json({"error": {"message": "No such File"}}, 404)], NotFoundError),
    "500": ([Answer(500)] * 5, ServerError),
    "cut": ([Answer(200, CONTENT, cut_at=9)] * 5, DownloadIncompleteError),
    "reset": ([RESET] * 5, APIConnectionError),
    "a page": (
        [Answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html; charset=utf-8"})],
        InvalidResponseError,
    ),
    "no content": ([Answer(204)], InvalidResponseError),
    "not modified": ([Answer(304)], InvalidResponseError),
    "a redirect to nowhere": ([Answer(302)], InvalidResponseError),
    "wrong purpose": ([as_json({"error": {"message": "Not allowed"}}, 400)], BadRequestError),
}


@pytest.mark.parametrize(("steps", "kind"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("existing", [None, b"old"])
def test_a_failed_download_leaves_everything_as_it_was(
    tmp_path: Path, steps: list[Any], kind: type[Exception], existing: bytes | None
) -> None:
    destination = tmp_path / "out.jsonl"
    if existing is not None:
        destination.write_bytes(existing)
    with ScriptedServer(*steps) as server, connect(server.base_url) as client, pytest.raises(kind):
        client.download_file("file-1", destination)
    assert len(server.requests) == len(steps)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if existing is None else [existing])


def test_the_destinations_directory_has_to_exist(tmp_path: Path) -> None:
    with ScriptedServer() as server, connect(server.base_url) as client, pytest.raises(FileNotFoundError):
        client.download_file("file-1", tmp_path / "missing" / "out.jsonl")
    assert server.requests == []


@pytest.mark.parametrize("file_id", ["", None, ".."])
def test_what_is_no_id_is_not_downloaded(emulator: Emulator, client: BatchClient, tmp_path: Path, file_id: Any) -> None:
    with pytest.raises(InvalidInputError, match="file_id"):
        client.download_file(file_id, tmp_path / "out.jsonl")
    assert emulator.calls == []


# --- trouble on the way -----------------------------------------------------------------------------------------------


def test_a_cut_content_is_noticed_and_started_over(tmp_path: Path) -> None:
    cut = Answer(200, CONTENT, cut_at=CUT)
    assert download(tmp_path, cut, cut, Answer(200, CONTENT)) == (CONTENT, [None] * 3)


def test_a_reset_and_five_hundreds_are_waited_out(
    emulator: Emulator, client: BatchClient, tmp_path: Path, pauses: list[float], input_file: bytes
) -> None:
    file = client.upload_file(lambda: io.BytesIO(input_file), filename="rows.jsonl")
    for trouble in ({"status": 500}, {"drop": "before"}, {"status": 503, "body": "<h1>busy</h1>"}, {"truncate": 7}):
        emulator.add_fault({"on": ON_CONTENT, "do": trouble})
    assert client.download_file(file.id, tmp_path / "out.jsonl") == len(input_file)
    assert (tmp_path / "out.jsonl").read_bytes() == input_file
    assert len(pauses) == 4


def test_a_content_is_asked_for_unpacked(tmp_path: Path) -> None:
    with ScriptedServer(Answer(200, CONTENT)) as server, connect(server.base_url) as client:
        client.download_file("file-1", tmp_path / "out")
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_a_gzipped_content_is_unpacked(
    emulator: Emulator, client: BatchClient, tmp_path: Path, input_file: bytes
) -> None:
    file = client.upload_file(lambda: io.BytesIO(input_file), filename="rows.jsonl")
    emulator.add_fault({"on": ON_CONTENT, "do": {"gzip": True}})
    client.download_file(file.id, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == input_file


def test_a_cut_gzipped_content_is_started_over_and_never_resumed(tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT)
    headers = {"Content-Encoding": "gzip", **TRUE_RANGES}
    cut = Answer(200, packed, headers, cut_at=CUT)
    assert download(tmp_path, cut, Answer(200, packed, headers)) == (CONTENT, [None, None])


def test_a_broken_gzipped_content_is_started_over(tmp_path: Path) -> None:
    broken = Answer(200, b"\x1f\x8b" + b"\xff" * 100, {"Content-Encoding": "gzip"})
    assert download(tmp_path, broken, Answer(200, CONTENT))[0] == CONTENT


def test_a_small_answer_after_a_large_cut_one_leaves_no_rest(tmp_path: Path) -> None:
    assert download(tmp_path, Answer(200, CONTENT, cut_at=CUT), Answer(200, b"small"))[0] == b"small"


# --- going on where it was cut ----------------------------------------------------------------------------------------


def test_a_download_goes_on_where_it_was_cut_if_the_server_proves_that_it_can(tmp_path: Path) -> None:
    steps = (ranged(cut_at=CUT), ranged(cut_at=CUT), ranged())
    assert download(tmp_path, *steps) == (CONTENT, [None, FROM_BLOCK, f"bytes={2 * BLOCK}-"])


def test_the_emulators_ranges_are_used(
    emulator: Emulator, client: BatchClient, tmp_path: Path, input_file: bytes
) -> None:
    content = input_file * (2 * BLOCK // len(input_file))
    file = client.upload_file(lambda: io.BytesIO(content), filename="rows.jsonl")
    emulator.add_fault({"on": ON_CONTENT, "do": {"ranges": True, "truncate": CUT}})
    emulator.add_fault({"on": ON_CONTENT, "do": {"ranges": True}})
    client.download_file(file.id, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == content
    statuses = [call.status for call in emulator.calls if call.route.endswith("/content")]
    assert statuses[-1] == 206


def test_trouble_between_two_parts_loses_nothing(tmp_path: Path) -> None:
    steps = (ranged(cut_at=CUT), Answer(500), RESET, ranged())
    assert download(tmp_path, *steps) == (CONTENT, [None, *[FROM_BLOCK] * 3])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Accept-Ranges": "bytes"},
        {"ETag": '"v1"'},
        {"Accept-Ranges": "bytes", "ETag": 'W/"v1"'},
        {"Accept-Ranges": "bytes", "ETag": "v1"},
        {"Accept-Ranges": "none", "ETag": '"v1"'},
    ],
    ids=str,
)
def test_without_proof_a_download_starts_over(tmp_path: Path, headers: dict[str, str]) -> None:
    cut = Answer(200, CONTENT, headers, cut_at=CUT)
    assert download(tmp_path, cut, Answer(200, CONTENT, headers)) == (CONTENT, [None, None])


def test_a_content_that_changed_is_taken_whole(tmp_path: Path) -> None:
    other = CONTENT[::-1]
    content, ranges = download(tmp_path, ranged(cut_at=CUT), ranged(other, etag='"v2"'))
    assert content == other
    assert ranges == [None, FROM_BLOCK]


def part(start: int, end: int, total: int, **headers: str) -> Answer:
    names = {"Content-Range": f"bytes {start}-{end}/{total}", "ETag": '"v1"', "Accept-Ranges": "bytes", **headers}
    return Answer(206, b"x" * (end - start + 1), names)


TOTAL = len(CONTENT)
MISFITS = {
    "another start": part(BLOCK - 1, TOTAL - 1, TOTAL),
    "from the start": part(0, TOTAL - 1, TOTAL),
    "another total": part(BLOCK, TOTAL, TOTAL + 1),
    "not to the end": part(BLOCK, TOTAL - 2, TOTAL),
    "another version": part(BLOCK, TOTAL - 1, TOTAL, ETag='"v2"'),
    "packed": part(BLOCK, TOTAL - 1, TOTAL, **{"Content-Encoding": "gzip"}),
    "no Content-Range": Answer(206, b"x", {"ETag": '"v1"'}),
    "range not satisfiable": Answer(416, b"", {"Content-Range": "bytes */5"}),
}


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_a_part_that_does_not_continue_starts_the_download_over(tmp_path: Path, misfit: Answer) -> None:
    content, ranges = download(tmp_path, ranged(cut_at=CUT), misfit, Answer(200, CONTENT))
    assert content == CONTENT
    assert ranges == [None, FROM_BLOCK, None]


def test_a_part_nobody_asked_for_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    content, ranges = download(tmp_path, part(0, 9, TOTAL), Answer(200, CONTENT))
    assert content == CONTENT
    assert ranges == [None, None]


def test_a_part_shorter_than_it_says_is_noticed_and_continued(tmp_path: Path) -> None:
    short = Answer(206, CONTENT[BLOCK : BLOCK + 10], part(BLOCK, TOTAL - 1, TOTAL).headers)
    content, ranges = download(tmp_path, ranged(cut_at=CUT), short, ranged())
    assert content == CONTENT
    assert ranges == [None, FROM_BLOCK, f"bytes={BLOCK + 10}-"]


troubles = st.lists(
    st.sampled_from([Answer(500), RESET, *(misfit for name, misfit in MISFITS.items() if name != "another version")])
    | st.builds(lambda cut_at: ranged(cut_at=cut_at), st.integers(0, TOTAL - 1))
    | st.builds(lambda cut_at: Answer(200, CONTENT, cut_at=cut_at), st.integers(0, TOTAL - 1))
    | st.builds(lambda cut_at: ranged(CONTENT[::-1], etag='"v2"', cut_at=cut_at), st.integers(0, TOTAL - 1)),
    max_size=4,
)


@settings(max_examples=25)
@given(steps=troubles)
def test_no_order_of_troubles_splices_two_contents(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    content, _ = download(tmp_path_factory.mktemp("download"), *steps, ranged(), ranged(), attempts=9)
    assert content in (CONTENT, CONTENT[::-1])


# --- another host -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["bearer", "api-key"])
def test_a_redirect_to_another_host_takes_no_header_of_ours_along(tmp_path: Path, auth: str) -> None:
    with ScriptedServer(Answer(200, CONTENT)) as storage:
        elsewhere = Answer(302, headers={"Location": f"http://{storage.host}/blob?signature=s"})
        with (
            ScriptedServer(elsewhere) as server,
            connect(
                server.base_url,
                auth=auth,
                organization="org-1",
                project="proj_1",
                headers={"X-Gateway-Key": "gateway-secret"},
                query={"code": "query-secret"},
            ) as client,
        ):
            client.download_file("file-1", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == CONTENT
    sent = {name.lower(): value for name, value in storage.requests[0].headers.items()}
    assert not sent.keys() & {"authorization", "api-key", "x-gateway-key", "openai-organization", "openai-project"}
    assert not {API_KEY, "gateway-secret"} & set(sent.values())
    assert storage.requests[0].query == {"signature": "s"}
    assert server.requests[0].headers["X-Gateway-Key"] == "gateway-secret"


def test_a_redirect_on_the_same_host_keeps_them(tmp_path: Path) -> None:
    steps = (Answer(302, headers={"Location": "/v1/elsewhere"}), Answer(200, CONTENT))
    with ScriptedServer(*steps) as server, connect(server.base_url) as client:
        client.download_file("file-1", tmp_path / "out")
    assert server.requests[1].path == "/v1/elsewhere"
    assert server.requests[1].headers["Authorization"] == f"Bearer {API_KEY}"


def test_a_redirect_back_to_us_does_not_bring_them_back(tmp_path: Path) -> None:
    with ScriptedServer() as there, ScriptedServer() as here, connect(here.base_url) as client:
        here._steps = iter([Answer(302, headers={"Location": there.base_url}), Answer(200, CONTENT)])
        there._steps = iter([Answer(302, headers={"Location": here.base_url})])
        client.download_file("file-1", tmp_path / "out")
    assert "Authorization" not in there.requests[0].headers
    assert "Authorization" not in here.requests[1].headers


def test_a_refusal_by_another_host_is_told(tmp_path: Path) -> None:
    with ScriptedServer(Answer(403, b"<Error><Code>AccessDenied</Code></Error>")) as storage:
        elsewhere = Answer(302, headers={"Location": f"http://{storage.host}/blob"})
        with (
            ScriptedServer(elsewhere) as server,
            connect(server.base_url) as client,
            pytest.raises(PermissionDeniedError, match="AccessDenied"),
        ):
            client.download_file("file-1", tmp_path / "out")


def test_a_chain_of_redirects_ends(tmp_path: Path) -> None:
    around = itertools.repeat(Answer(302, headers={"Location": "/v1/files/file-1/content"}))
    with (
        ScriptedServer(endless=around) as server,
        connect(server.base_url, attempts=1) as client,
        pytest.raises(APIConnectionError, match="redirects"),
    ):
        client.download_file("file-1", tmp_path / "out")


# --- size -------------------------------------------------------------------------------------------------------------


def test_60_megabytes_are_downloaded_in_little_memory(tmp_path: Path) -> None:
    large = bytes(60_000_000)
    with ScriptedServer(Answer(200, large)) as server, connect(server.base_url) as client:
        tracemalloc.start()
        size = client.download_file("file-1", tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert size == len(large)
    assert peak < 20_000_000


def test_an_error_body_in_several_chunks_is_read_whole(tmp_path: Path) -> None:
    chunks = (b'{"error": {"message": "no", ', b'"code": "insufficient_quota"}}')
    with (
        ScriptedServer(Answer(429, chunks=chunks)) as server,
        connect(server.base_url) as client,
        pytest.raises(Exception, match="billing"),
    ):
        client.download_file("file-1", tmp_path / "out")
    assert len(server.requests) == 1


class TestCheck:
    """What the caller says of the content before it gets its name."""

    def test_sees_the_whole_content(self, tmp_path: Path) -> None:
        seen: list[bytes] = []
        with ScriptedServer(Answer(200, CONTENT)) as server, connect(server.base_url) as client:
            client.download_file("file-1", tmp_path / "out", check=lambda path: seen.append(path.read_bytes()))
        assert seen == [CONTENT]

    def test_what_it_refuses_replaces_nothing(self, tmp_path: Path) -> None:
        destination = tmp_path / "out"
        destination.write_bytes(b"good")

        def refuse(path: Path) -> None:
            raise DownloadIncompleteError(f"{path.stat().st_size} bytes are too few")

        with (
            ScriptedServer(Answer(200, b"bad")) as server,
            connect(server.base_url) as client,
            pytest.raises(DownloadIncompleteError, match="3 bytes are too few"),
        ):
            client.download_file("file-1", destination, check=refuse)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {destination: b"good"}


def test_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    destination = tmp_path / ("x" * 255)
    with ScriptedServer(Answer(200, b"content")) as server, connect(server.base_url) as client:
        client.download_file("file-1", destination)
    assert destination.read_bytes() == b"content"
