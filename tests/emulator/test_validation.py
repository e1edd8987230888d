"""What is refused, when, and with which code."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from openai import OpenAI

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.emulator.validation import validate

from .batches import CHAT, jsonl, request, submit, upload

BAD_FILE = "Invalid file format for Batch API. Must be .jsonl"


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in request(2).items() if key != name}


def without_in_body(name: str) -> dict[str, Any]:
    line = request(2)
    del line["body"][name]
    return line


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{not json", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b"", "invalid_json_line", None),
        (b'{"custom_id": NaN}', "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("method"), "missing_required_parameter", "method"),
        (without("url"), "missing_required_parameter", "url"),
        (without("body"), "missing_required_parameter", "body"),
        ({**request(2), "custom_id": "row-1"}, "duplicate_custom_id", "custom_id"),
        ({**request(2), "method": "GET"}, "invalid_value", "method"),
        ({**request(2), "url": "/v1/responses"}, "invalid_url", "url"),
        ({**request(2), "body": "text"}, "invalid_type", "body"),
        (request(2, stream=True), "streaming_unsupported", "body.stream"),
        (without_in_body("model"), "invalid_request", "body.model"),
        (without_in_body("messages"), "invalid_request", "body.messages"),
        (request(2, model="no-such-model"), "model_not_found", "body.model"),
        (request(2, model="gpt-4o"), "mismatched_model", "body.model"),
    ],
)
def test_bad_line_fails_the_batch_with_its_code_and_line(
    emulator: Emulator, client: OpenAI, bad: Any, code: str, param: str | None
) -> None:
    batch = submit(client, [request(1), bad, request(3)])
    emulator.advance(3)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.failed_at) == ("failed", batch.created_at + 3)
    assert batch.errors is not None
    assert [(error.code, error.param, error.line) for error in batch.errors.data or []] == [(code, param, 2)]
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.output_file_id, batch.error_file_id) == (0, None, None)


def test_every_bad_line_is_reported(emulator: Emulator, client: OpenAI) -> None:
    submit(client, [request(1), b"?", without("body"), without("url")])
    emulator.advance(3)
    errors = emulator.batches()[0]["errors"]["data"]
    assert [(error["line"], error["code"]) for error in errors] == [
        (2, "invalid_json_line"),
        (3, "missing_required_parameter"),
        (4, "missing_required_parameter"),
    ]


def test_byte_order_mark_passes_the_upload_and_fails_line_one(emulator: Emulator, client: OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", b"\xef\xbb\xbf" + jsonl([request(1)])), purpose="batch")
    client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    emulator.advance(3)
    [error] = emulator.batches()[0]["errors"]["data"]
    assert (error["code"], error["line"]) == ("invalid_json_line", 1)


def test_unknown_file_fails_the_batch_later(emulator: Emulator, client: OpenAI) -> None:
    batch = client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")
    assert batch.status == "validating"
    emulator.advance(3)
    [error] = emulator.batches()[0]["errors"]["data"]
    assert (error["code"], error["param"], error["line"]) == ("invalid_request", "file_id", None)
    assert error["message"].startswith("Cannot find file file-x")


def test_empty_and_oversized_files_have_codes_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"")
    assert validate(path, CHAT, threading.Event()).errors[0]["code"] == "empty_file"
    path.write_bytes(jsonl(map(request, range(50_000))))
    assert validate(path, CHAT, threading.Event()).errors == []
    with path.open("ab") as file:
        file.write(jsonl([request(50_000)]))
    [error] = validate(path, CHAT, threading.Event()).errors
    assert (error["code"], error["line"]) == ("too_many_tasks", None)


def test_embedding_inputs_count_against_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    inputs = ["x"] * 2_000
    line = {"custom_id": "", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": inputs}}
    path.write_bytes(jsonl({**line, "custom_id": str(number)} for number in range(26)))
    [error] = validate(path, "/v1/embeddings", threading.Event()).errors
    assert error["code"] == "too_many_tasks"


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"input_file_id": None}, "input_file_id", "missing_required_parameter"),
        ({"endpoint": None}, "endpoint", "missing_required_parameter"),
        ({"completion_window": None}, "completion_window", "missing_required_parameter"),
        ({"endpoint": "/v1/invalid/endpoint"}, "endpoint", "invalid_value"),
        ({"completion_window": "48h"}, "completion_window", "invalid_value"),
        ({"metadata": {"tags": ["a"]}}, "metadata.tags", "invalid_type"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "object_above_max_properties"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds", None),
        ({"output_expires_after": {"seconds": 3600}}, "output_expires_after.anchor", "invalid_value"),
    ],
)
def test_bad_create_is_refused_at_once_and_makes_no_batch(
    emulator: Emulator, changes: dict[str, Any], param: str, code: str | None
) -> None:
    body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h", **changes}
    response = requests.post(f"{emulator.base_url}/batches", json=body, timeout=10)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert code is None or error["code"] == code
    assert emulator.batches() == []


def test_file_of_another_purpose_is_refused(client: OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", b"{}"), purpose="user_data")
    with pytest.raises(openai.BadRequestError):
        client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="Not allowed to download files of purpose: user_data"):
        client.files.content(file.id)


@pytest.mark.parametrize(
    ("name", "content"),
    [("input.txt", b"{}\n"), ("input.jsonl", b""), ("input.jsonl", b"not json\n{}\n"), ("input.jsonl", b"\n{}\n")],
)
def test_file_that_is_not_jsonl_is_refused_at_upload(client: OpenAI, name: str, content: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match=BAD_FILE):
        client.files.create(file=(name, content), purpose="batch")
    assert not client.files.list().data


def test_file_beyond_200_megabytes_is_refused_at_upload(client: OpenAI) -> None:
    content = b'{"a": 1}\n' + b" " * 200_000_000
    with pytest.raises(openai.BadRequestError, match="File is too large"):
        client.files.create(file=("input.jsonl", content), purpose="batch")


@pytest.mark.parametrize("notation", ["expires_after[{}]", "expires_after.{}"])
def test_file_expiry_is_read_in_bracket_and_dot_notation(emulator: Emulator, notation: str) -> None:
    data = {"purpose": "batch", notation.format("anchor"): "created_at", notation.format("seconds"): "7200"}
    files = {"file": ("in.jsonl", b"{}\n")}
    file = requests.post(f"{emulator.base_url}/files", data=data, files=files, timeout=10).json()
    assert file["expires_at"] == file["created_at"] + 7200
    data[notation.format("seconds")] = "60"
    assert requests.post(f"{emulator.base_url}/files", data=data, files=files, timeout=10).status_code == 400


def test_upload_without_purpose_file_or_multipart_is_refused(emulator: Emulator) -> None:
    url = f"{emulator.base_url}/files"
    files = {"file": ("in.jsonl", b"{}\n")}
    assert requests.post(url, files=files, timeout=10).json()["error"]["param"] == "purpose"
    assert requests.post(url, files=files, data={"purpose": "poetry"}, timeout=10).json()["error"]["param"] == "purpose"
    parts = {"purpose": (None, "batch")}
    assert requests.post(url, files=parts, timeout=10).json()["error"]["param"] == "file"
    assert requests.post(url, json={"purpose": "batch"}, timeout=10).status_code == 400


def test_odd_requests_are_refused_and_do_not_break_the_server(emulator: Emulator) -> None:
    files, batches = f"{emulator.base_url}/files", f"{emulator.base_url}/batches"
    nul = {"file": ("a\0.jsonl", b"{}\n")}
    answers = [
        requests.post(batches, data="[" * 100_000, headers={"Content-Type": "application/json"}, timeout=10),
        requests.post(files, data={"purpose": "batch"}, files=nul, timeout=10),
        requests.get(f"{batches}?limit=²", timeout=10),
    ]
    assert [answer.status_code for answer in answers] == [400, 400, 400]
    assert all(answer.json()["error"]["message"] for answer in answers)


def test_files_expire_on_the_clock(emulator: Emulator, client: OpenAI) -> None:
    file_id = upload(client, [request(1)])
    emulator.advance(30 * 86_400 - 1)
    assert client.files.retrieve(file_id).id == file_id
    emulator.advance(1)
    with pytest.raises(openai.NotFoundError):
        client.files.content(file_id)
    assert not client.files.list().data
