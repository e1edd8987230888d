from __future__ import annotations

import gzip
import io
import re
import threading
import tracemalloc
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import (
    BadRequestError,
    InvalidInputError,
    InvalidResponseError,
    NotFoundError,
    ServerError,
    TooLargeError,
)
from airflow_provider_openai_batches.emulator import Emulator
from tests.api.connecting import connect
from tests.api.scripted_server import RESET, Answer, Request, ScriptedServer, as_json

ON_UPLOAD = {"method": "POST", "path": "/v1/files"}
FILE = as_json({"id": "file-1", "bytes": 3})


class Source:
    """Opens a content anew each time, and knows what it opened."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.opened: list[BinaryIO] = []

    def __call__(self) -> BinaryIO:
        self.opened.append(io.BytesIO(self.content))
        return self.opened[-1]


def parts(request: Request) -> dict[str, tuple[str, bytes]]:
    """Headers and content of each part of a multipart body, by the part's name."""
    boundary = request.headers["Content-Type"].partition("boundary=")[2].encode()
    found = {}
    for part in request.body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        assert name
        found[name[1].decode()] = (head.decode(), content.removesuffix(b"\r\n"))
    return found


def test_an_uploaded_file_arrives_whole(client: BatchClient, input_file: bytes, tmp_path: Path) -> None:
    file = client.upload_file(lambda: io.BytesIO(input_file), filename="rows.jsonl")
    assert (file.bytes, file.filename, file.purpose) == (len(input_file), "rows.jsonl", "batch")
    assert client.retrieve_file(file.id) == file
    client.download_file(file.id, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == input_file


def test_the_parts_are_what_the_api_documents() -> None:
    with ScriptedServer(FILE, FILE) as server, connect(server.base_url) as client:
        client.upload_file(Source(b'{"a": "\r\n--"}'), filename="rows.jsonl", expires_after=3_600)
        client.upload_file(Source(b"{}"), filename="rows.jsonl", purpose="batch-api")
    full, least = map(parts, server.requests)
    assert full.keys() == {"purpose", "expires_after[anchor]", "expires_after[seconds]", "file"}
    assert full["purpose"][1] == b"batch"
    assert full["expires_after[anchor]"][1] == b"created_at"
    assert full["expires_after[seconds]"][1] == b"3600"
    assert full["file"][1] == b'{"a": "\r\n--"}'
    assert 'filename="rows.jsonl"' in full["file"][0]
    assert "Content-Type: application/jsonl" in full["file"][0]
    assert least.keys() == {"purpose", "file"}
    assert least["purpose"][1] == b"batch-api"


@pytest.mark.parametrize("filename", ['two "words".jsonl', "zeilen-ü.jsonl", "line\r\nbreak.jsonl"])
def test_any_filename_stays_within_its_header(filename: str) -> None:
    with ScriptedServer(FILE) as server, connect(server.base_url) as client:
        client.upload_file(Source(b"{}"), filename=filename)
    head, content = parts(server.requests[0])["file"]
    assert content == b"{}"
    assert len(head.splitlines()) == 2


def test_an_expiry_reaches_the_service(client: BatchClient, input_file: bytes) -> None:
    file = client.upload_file(Source(input_file), filename="rows.jsonl", expires_after=7_200)
    assert file.expires_at is not None
    assert file.created_at is not None
    assert file.expires_at - file.created_at == 7_200


def test_a_bad_expiry_is_refused_before_any_call(emulator: Emulator, client: BatchClient) -> None:
    with pytest.raises(InvalidInputError, match="expires_after"):
        client.upload_file(Source(b"{}"), filename="rows.jsonl", expires_after=60)
    assert emulator.calls == []


@pytest.mark.parametrize("trouble", [{"status": 500}, {"status": 429}, {"drop": "before"}, {"drop": "after"}], ids=str)
def test_every_attempt_sends_the_whole_file(
    emulator: Emulator, client: BatchClient, input_file: bytes, trouble: dict[str, Any], tmp_path: Path
) -> None:
    emulator.add_fault({"on": ON_UPLOAD, "do": trouble, "times": 2})
    source = Source(input_file)
    file = client.upload_file(source, filename="rows.jsonl")
    client.download_file(file.id, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == input_file
    assert len(source.opened) == 3
    assert all(stream.closed for stream in source.opened)


def test_a_failing_upload_closes_its_source(emulator: Emulator, client: BatchClient) -> None:
    emulator.add_fault({"on": ON_UPLOAD, "do": {"status": 500}, "times": None})
    source = Source(b"{}")
    with pytest.raises(ServerError):
        client.upload_file(source, filename="rows.jsonl")
    assert len(source.opened) == 5
    assert all(stream.closed for stream in source.opened)


def test_a_source_that_cannot_be_opened_raises_its_own_error(
    emulator: Emulator, client: BatchClient, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
        client.upload_file(lambda: (tmp_path / "missing.jsonl").open("rb"), filename="rows.jsonl")
    assert emulator.calls == []


def test_a_refused_file_gives_the_services_reason(client: BatchClient, input_file: bytes) -> None:
    with pytest.raises(BadRequestError, match=r"Must be \.jsonl"):
        client.upload_file(Source(input_file), filename="rows.txt")


def test_a_file_too_large_for_the_service_says_to_split_it() -> None:
    with (
        ScriptedServer(Answer(413, b"<h1>413 Request Entity Too Large</h1>")) as server,
        connect(server.base_url) as client,
        pytest.raises(TooLargeError, match="Split the input"),
    ):
        client.upload_file(Source(b"{}"), filename="rows.jsonl")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirected_upload_is_refused_and_names_where_to(status: int) -> None:
    elsewhere = Answer(status, headers={"Location": "https://other.example/v1/files"})
    with (
        ScriptedServer(elsewhere) as server,
        connect(server.base_url) as client,
        pytest.raises(InvalidResponseError, match=r"https://other\.example/v1/files.*host"),
    ):
        client.upload_file(Source(b"{}"), filename="rows.jsonl")
    assert len(server.requests) == 1


def test_a_page_instead_of_a_file_names_the_host_as_the_remedy() -> None:
    page = Answer(200, b"<html>It works!</html>", {"Content-Type": "text/html"})
    with (
        ScriptedServer(page) as server,
        connect(server.base_url) as client,
        pytest.raises(InvalidResponseError, match=r"text/html.*host"),
    ):
        client.upload_file(Source(b"{}"), filename="rows.jsonl")
    assert len(server.requests) == 1


def test_an_answer_without_an_id_is_refused() -> None:
    with (
        ScriptedServer(as_json({"status": "ok"})) as server,
        connect(server.base_url) as client,
        pytest.raises(InvalidResponseError, match="no id"),
    ):
        client.upload_file(Source(b"{}"), filename="rows.jsonl")


class Zeros(io.RawIOBase):
    """A file of zeros that takes no memory."""

    def __init__(self, size: int) -> None:
        self.size, self.at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.size - self.at)
        buffer[:count] = bytes(count)
        self.at += count
        return count


@pytest.fixture
def swallowing_server() -> Any:
    """A server that counts a body without keeping it."""
    counted: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            left = int(self.headers["Content-Length"])
            counted.append(left)
            while left and (block := self.rfile.read(min(left, 1 << 16))):
                left -= len(block)
            if left:
                return  # the client has gone
            self.send_response(200)
            self.end_headers()
            self.wfile.write(FILE.body)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", counted
    server.shutdown()
    server.server_close()
    thread.join()


def peak_memory(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_150_megabytes_are_uploaded_in_little_memory(swallowing_server: tuple[str, list[int]]) -> None:
    base_url, counted = swallowing_server
    size = 150_000_000
    with connect(base_url) as client:
        peak = peak_memory(
            lambda: client.upload_file(lambda: io.BufferedReader(Zeros(size)), filename="rows.jsonl")  # type: ignore[type-var]
        )
    assert counted[0] > size
    assert peak < 20_000_000


def test_bytes_are_not_copied(swallowing_server: tuple[str, list[int]]) -> None:
    content = io.BytesIO(bytes(50_000_000))
    with connect(swallowing_server[0]) as client:
        assert peak_memory(lambda: client.upload_file(lambda: content, filename="rows.jsonl")) < 20_000_000


def test_a_packed_source_is_sent_unpacked(tmp_path: Path, input_file: bytes) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(input_file * 9))
    with ScriptedServer(FILE) as server, connect(server.base_url) as client:
        client.upload_file(lambda: gzip.GzipFile(packed), filename="rows.jsonl")  # type: ignore[arg-type, return-value]
    assert parts(server.requests[0])["file"][1] == input_file * 9


def test_a_source_is_sent_from_where_it_stands() -> None:
    def opened() -> BinaryIO:
        stream = io.BytesIO(b"skipped{}")
        stream.seek(7)
        return stream

    with ScriptedServer(FILE) as server, connect(server.base_url) as client:
        client.upload_file(opened, filename="rows.jsonl")
    assert parts(server.requests[0])["file"][1] == b"{}"


def test_a_source_that_becomes_shorter_ends_the_upload(
    swallowing_server: tuple[str, list[int]], tmp_path: Path
) -> None:
    class Shrinking(Zeros):
        def readinto(self, buffer: Any) -> int:
            self.size = min(self.size, 500_000)
            return super().readinto(buffer)

    with connect(swallowing_server[0]) as client, pytest.raises(InvalidInputError, match="500,000 bytes shorter"):
        client.upload_file(lambda: io.BufferedReader(Shrinking(1_000_000)), filename="rows.jsonl")  # type: ignore[type-var]


# --- the other calls for files ----------------------------------------------------------------------------------------


def test_a_deleted_file_is_gone_and_may_be_deleted_again(client: BatchClient, input_file: bytes) -> None:
    file = client.upload_file(Source(input_file), filename="rows.jsonl")
    client.delete_file(file.id)
    client.delete_file(file.id)
    with pytest.raises(NotFoundError, match="files also expire"):
        client.retrieve_file(file.id)


def test_a_lost_delete_is_repeated() -> None:
    with (
        ScriptedServer(RESET, as_json({"error": {"message": "No such File"}}, 404)) as server,
        connect(server.base_url) as client,
    ):
        client.delete_file("file-1")
    assert len(server.calls("DELETE", "/v1/files/file-1")) == 2


def test_files_are_listed_by_purpose_and_limit(client: BatchClient, input_file: bytes) -> None:
    ids = [client.upload_file(Source(input_file), filename=f"{n}.jsonl").id for n in range(3)][::-1]
    assert [file.id for file in client.list_files()] == ids
    assert [file.id for file in client.list_files(purpose="batch", limit=2)] == ids[:2]
    assert list(client.list_files(purpose="batch_output")) == []
