"""The hook: connections, and files from and to wherever Airflow can read and write."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath, redact

from airflow_provider_openai_batches.api import download
from airflow_provider_openai_batches.api.errors import (
    AuthenticationError,
    InvalidInputError,
    InvalidResponseError,
    NotFoundError,
    WaitTimeoutError,
)
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from tests.airflow.conftest import CONNECTION_VARIABLE, EmulatorTime, request_lines
from tests.api.scripted_server import Answer, ScriptedServer
from tests.conftest import API_KEY

pytestmark = pytest.mark.usefixtures("connection", "openai_batches_clock", "no_pauses", "memory_storage")

Connect = Callable[..., None]
ENDPOINT = "/v1/chat/completions"
HOUR_S = 3600


@pytest.fixture
def hook(connection: Connect) -> OpenAIBatchesHook:
    return OpenAIBatchesHook()


def batch_of(hook: OpenAIBatchesHook, content: bytes | None = None) -> str:
    return hook.create_batch(hook.upload_file(content or request_lines(3)).id, ENDPOINT).id


class TestSources:
    @pytest.fixture(params=["path", "text", "file uri", "object storage", "memory", "bytes", "file", "no name"])
    def source(self, request: pytest.FixtureRequest, input_file: Path) -> Any:
        match request.param:
            case "path":
                return input_file
            case "text":
                return str(input_file)
            case "file uri":
                return input_file.as_uri()
            case "object storage":
                return ObjectStoragePath(str(input_file))
            case "memory":
                remote = ObjectStoragePath(f"memory://{input_file.parent.name}/requests.jsonl")
                remote.write_bytes(input_file.read_bytes())
                return remote
            case "bytes":
                return input_file.read_bytes()
            case "file":
                return input_file.open("rb")
            case _:
                return io.BytesIO(input_file.read_bytes())

    def test_content_arrives_unchanged(self, hook: OpenAIBatchesHook, source: Any, input_file: Path) -> None:
        file = hook.upload_file(source)
        assert (file.filename, file.bytes) == ("requests.jsonl", input_file.stat().st_size)
        assert b"".join(hook.iter_lines(file.id)) == input_file.read_bytes()

    def test_content_arrives_whole_after_a_broken_upload(
        self, hook: OpenAIBatchesHook, source: Any, input_file: Path, emulator: Emulator
    ) -> None:
        emulator.add_fault({"on": {"method": "POST", "path": "/files"}, "do": {"drop": "before"}, "times": 2})
        assert b"".join(hook.iter_lines(hook.upload_file(source).id)) == input_file.read_bytes()

    def test_own_file_name(self, hook: OpenAIBatchesHook, input_file: Path) -> None:
        assert hook.upload_file(input_file, filename="july.jsonl").filename == "july.jsonl"

    def test_file_name_gets_the_suffix_the_api_asks_for(self, hook: OpenAIBatchesHook, tmp_path: Path) -> None:
        source = tmp_path / "requests.txt"
        source.write_bytes(request_lines(1))
        assert hook.upload_file(source).filename == "requests.txt.jsonl"

    def test_expiry_in_seconds(self, hook: OpenAIBatchesHook, input_file: Path) -> None:
        file = hook.upload_file(input_file, expires_after=HOUR_S)
        assert file.created_at is not None
        assert file.expires_at == file.created_at + HOUR_S


class TestBadSources:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("/nowhere/in.jsonl", "/nowhere/in.jsonl does not exist, or this worker cannot see it"),
            ("memory://nowhere/in.jsonl", "memory://nowhere/in.jsonl does not exist"),
            ("", "the path is empty. Did the upstream task push one?"),
            ("/tmp", "/tmp is a directory; give one JSONL file"),
            (io.StringIO("{}"), "the file is open in text mode; open it with 'rb'"),
            ("/dev/zero", "/dev/zero is no regular file; give one JSONL file"),
            ("/tmp/" + "x" * 300, "/tmp/x+[.]{3} is too long for a path|x does not exist"),
            ("nope://bucket/in.jsonl", "nope:///?bucket/in.jsonl: .*nope.*. Install the Airflow provider"),
            (7, "expected a path, bytes or a binary file, got int"),
            (None, "expected a path, bytes or a binary file, got NoneType"),
        ],
    )
    def test_error_says_what_to_give(
        self, hook: OpenAIBatchesHook, source: Any, message: str, emulator: Emulator
    ) -> None:
        with pytest.raises(InvalidInputError, match=f"source: .*{message}"):
            hook.upload_file(source)
        assert emulator.calls == []

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "requests.jsonl: the file is empty: there is no request to send"),
            (b"id,prompt\n1,hi\n", "line 1: not valid JSON"),
            (b"\xef\xbb\xbf" + request_lines(1), "line 1: the file starts with a byte order mark; write it as plain"),
            (request_lines(2) + b"\n", "line 3: the line is empty. Remove it"),
            (request_lines(1) * 2, "line 2: custom_id 'row-0' was already used in line 1"),
            (request_lines(2, method="GET"), "line 1: method is 'GET'; the API takes only 'POST'"),
            (request_lines(50_001), "line 50001: the file has more than 50,000 requests, the API's limit. Split it"),
            (request_lines(1, body={"model": "m", "messages": "x" * 200_000_000}), "larger than 200,000,000 bytes"),
        ],
        ids=["empty", "csv", "bom", "blank line", "duplicate", "method", "50,001 lines", "over 200 MB"],
    )
    def test_error_names_line_and_remedy_and_sends_nothing(
        self, hook: OpenAIBatchesHook, content: bytes, message: str, emulator: Emulator, tmp_path: Path
    ) -> None:
        source = tmp_path / "requests.jsonl"
        source.write_bytes(content)
        with pytest.raises(InvalidInputError, match=message):
            hook.upload_file(source)
        assert emulator.calls == []

    def test_pipe_is_refused_rather_than_waited_for(
        self, hook: OpenAIBatchesHook, tmp_path: Path, emulator: Emulator
    ) -> None:
        pipe = tmp_path / "in.jsonl"
        os.mkfifo(pipe)
        with pytest.raises(InvalidInputError, match=r"in\.jsonl is no regular file"):
            hook.upload_file(pipe)
        assert emulator.calls == []

    @pytest.mark.parametrize("filename", [5, b"in.jsonl", Path("in.jsonl")])
    def test_file_name_that_is_no_text_is_refused(
        self, hook: OpenAIBatchesHook, filename: Any, emulator: Emulator
    ) -> None:
        with pytest.raises(InvalidInputError, match="filename: expected a text, got"):
            hook.upload_file(request_lines(1), filename=filename)
        assert emulator.calls == []


class TestDestinations:
    @pytest.fixture
    def file_id(self, hook: OpenAIBatchesHook) -> str:
        return hook.upload_file(request_lines(3)).id

    @pytest.mark.parametrize("kind", ["path", "text", "file uri", "object storage", "memory"])
    def test_file_is_there_with_its_directories(
        self, hook: OpenAIBatchesHook, file_id: str, tmp_path: Path, kind: str
    ) -> None:
        local = tmp_path / "some" / "where" / "out.jsonl"
        destination: Any = {
            "path": local,
            "text": str(local),
            "file uri": local.as_uri(),
            "object storage": ObjectStoragePath(str(local)),
            "memory": ObjectStoragePath(f"memory://{tmp_path.name}/some/where/out.jsonl"),
        }[kind]
        size = hook.download_file(file_id, destination)
        found = destination if kind == "memory" else local
        assert found.read_bytes() == request_lines(3)
        assert size == len(request_lines(3))
        assert [entry.name for entry in found.parent.iterdir()] == ["out.jsonl"]

    @pytest.mark.parametrize("scheme", ["file", "memory"])
    def test_nothing_is_there_after_a_download_that_was_cut(
        self, hook: OpenAIBatchesHook, file_id: str, tmp_path: Path, emulator: Emulator, scheme: str
    ) -> None:
        emulator.add_fault({"on": {"path": "/files/*/content"}, "do": {"truncate": 20}, "times": None})
        destination = ObjectStoragePath(f"{scheme}://{tmp_path}/cut/out.jsonl")
        with pytest.raises(Exception, match=r"ended after \d+ of 474 bytes"):
            hook.download_file(file_id, destination)
        assert not destination.exists()

    def test_lines_end_at_newlines_only(self, hook: OpenAIBatchesHook) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "one\u2028two\u0085three"}]}
        line = json.dumps(
            {"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": body}, ensure_ascii=False
        ).encode()
        file = hook.upload_file(line + b"\n" + line.replace(b'"a"', b'"b"') + b"\n")
        assert list(hook.iter_lines(file.id)) == [line + b"\n", line.replace(b'"a"', b'"b"') + b"\n"]

    def test_a_line_too_long_for_memory_is_refused_where_lines_are_read_and_nowhere_else(
        self, connection: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "LONGEST_LINE_BYTES", 1 << 20)
        answer = Answer(body=b"x" * (3 << 20))
        with ScriptedServer(answer, answer, answer) as server:
            connection(host=server.base_url)
            hook = OpenAIBatchesHook()
            with pytest.raises(
                InvalidResponseError, match=r"File file-1 has a line of more than .* hook's download_file"
            ):
                next(hook.iter_lines("file-1"))
            with pytest.raises(InvalidResponseError, match="the file stays at the service"):
                hook.download_file("file-1", tmp_path / "checked", check=lambda content: None)
            assert hook.download_file("file-1", tmp_path / "out") == 3 << 20
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


class TestFilesAndBatches:
    def test_files_are_listed_found_and_deleted(self, hook: OpenAIBatchesHook) -> None:
        first, second = (hook.upload_file(request_lines(1)) for _ in range(2))
        assert [file.id for file in hook.list_files(purpose="batch")] == [second.id, first.id]
        assert [file.id for file in hook.list_files(limit=1)] == [second.id]
        assert hook.retrieve_file(first.id) == first
        hook.delete_file(first.id)
        hook.delete_file(first.id)
        assert list(hook.list_files()) == [second]
        with pytest.raises(NotFoundError):
            hook.retrieve_file(first.id)

    def test_batches_are_created_listed_found_and_cancelled(self, hook: OpenAIBatchesHook) -> None:
        file = hook.upload_file(request_lines(3))
        first = hook.create_batch(file.id, ENDPOINT, metadata={"team": "search"}, idempotency_token="t1")
        second = hook.create_batch(file.id, ENDPOINT, output_expires_after=HOUR_S)
        assert first.metadata == {"team": "search", "idempotency_token": "t1"}
        assert [batch.id for batch in hook.list_batches()] == [second.id, first.id]
        assert [batch.id for batch in hook.list_batches(after=second.id)] == [first.id]
        assert hook.retrieve_batch(first.id).status == "validating"
        assert hook.cancel_batch(first.id).status == "cancelling"


class TestWait:
    def test_returns_the_batch_with_its_files(
        self, hook: OpenAIBatchesHook, clock: EmulatorTime, caplog: pytest.LogCaptureFixture
    ) -> None:
        batch_id = batch_of(hook)
        with caplog.at_level("INFO"):
            batch = hook.wait_for_batch(batch_id, poll_interval=30)
        assert (batch.status, bool(batch.output_file_id)) == ("completed", True)
        assert clock.slept == 150
        assert f"Batch {batch_id} is in_progress" in caplog.text

    def test_outage_of_hours_is_waited_out(
        self, hook: OpenAIBatchesHook, clock: EmulatorTime, emulator: Emulator
    ) -> None:
        batch_id = batch_of(hook)
        for effect in ({"status": 503}, {"drop": "before"}, {"status": 502, "body": "<h1>Bad gateway</h1>"}):
            emulator.add_fault({"on": {"path": "/batches/*"}, "do": effect, "times": 300})
        assert hook.wait_for_batch(batch_id, poll_interval=60).status == "completed"
        assert clock.slept > 2 * HOUR_S

    def test_revoked_key_is_tolerated_for_ten_minutes(
        self, hook: OpenAIBatchesHook, clock: EmulatorTime, emulator: Emulator
    ) -> None:
        batch_id = batch_of(hook)
        emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"status": 401}, "times": None})
        with pytest.raises(AuthenticationError):
            hook.wait_for_batch(batch_id, poll_interval=60)
        assert 600 <= clock.slept <= 660

    def test_rotated_key_is_picked_up(
        self, hook: OpenAIBatchesHook, clock: EmulatorTime, connection: Connect, emulator: Emulator
    ) -> None:
        batch_id = batch_of(hook)
        connection(password="sk-revoked-0123456789")

        def rotate_and_sleep(seconds: float) -> None:
            connection(password=API_KEY)
            clock.sleep(seconds)

        waiting = OpenAIBatchesHook()
        assert waiting.wait_for_batch(batch_id, poll_interval=200, sleep=rotate_and_sleep).status == "completed"

    def test_connection_that_cannot_be_read_during_a_refusal_ends_no_wait(
        self, hook: OpenAIBatchesHook, clock: EmulatorTime, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch_id = batch_of(hook)
        emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"status": 401}, "times": 3})

        def lose_and_sleep(seconds: float) -> None:
            monkeypatch.setenv(CONNECTION_VARIABLE, "{not json")
            clock.sleep(seconds)

        assert hook.wait_for_batch(batch_id, poll_interval=60, sleep=lose_and_sleep).status == "completed"

    def test_refusal_after_an_outage_gets_its_own_ten_minutes(
        self, hook: OpenAIBatchesHook, clock: EmulatorTime, emulator: Emulator
    ) -> None:
        batch_id = batch_of(hook)
        for status, times in ((503, 200), (401, 9)):
            emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"status": status}, "times": times})
        assert hook.wait_for_batch(batch_id, poll_interval=60).status == "completed"
        assert clock.slept == 209 * 60

    def test_outage_is_one_warning(
        self, hook: OpenAIBatchesHook, clock: EmulatorTime, emulator: Emulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        batch_id = batch_of(hook)
        emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"status": 503}, "times": 300})
        hook.wait_for_batch(batch_id, poll_interval=60)
        [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warning.startswith(f"Could not look at batch {batch_id}, trying again")

    def test_longer_pause_is_made_if_the_service_asks_for_it(
        self, hook: OpenAIBatchesHook, clock: EmulatorTime, emulator: Emulator
    ) -> None:
        batch_id = batch_of(hook)
        busy = {"status": 429, "headers": {"Retry-After": "45"}}
        emulator.add_fault({"on": {"path": "/batches/*"}, "do": busy, "times": 2})
        with pytest.raises(WaitTimeoutError):
            hook.wait_for_batch(batch_id, poll_interval=1, timeout=80)
        assert emulator.count("GET", "/v1/batches/{batch_id}") == 3

    def test_timeout_ends_the_wait_and_not_the_batch(
        self, hook: OpenAIBatchesHook, clock: EmulatorTime, emulator: Emulator
    ) -> None:
        batch_id = batch_of(hook)
        with pytest.raises(WaitTimeoutError, match=f"Batch {batch_id} was not over after 50 seconds; it goes on"):
            hook.wait_for_batch(batch_id, poll_interval=40, timeout=50)
        assert clock.slept == 50
        assert emulator.batches()[0]["status"] == "in_progress"

    def test_timeout_of_zero_looks_once(self, hook: OpenAIBatchesHook, clock: EmulatorTime, emulator: Emulator) -> None:
        batch_id = batch_of(hook)
        emulator.advance(200)
        assert hook.wait_for_batch(batch_id, timeout=0).status == "completed"

    def test_files_that_are_named_late_are_waited_for(
        self, hook: OpenAIBatchesHook, clock: EmulatorTime, emulator: Emulator
    ) -> None:
        batch_id = batch_of(hook)
        emulator.advance(200)
        late = {"on": {"path": "/batches/*"}, "do": {"set": {"output_file_id": ""}}, "times": 3}
        emulator.add_fault(late)
        assert hook.wait_for_batch(batch_id, poll_interval=5).output_file_id


class TestConnection:
    def test_good_connection(self, hook: OpenAIBatchesHook, emulator: Emulator) -> None:
        assert hook.test_connection() == (True, f"Connected to {emulator.base_url}.")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"password": "sk-wrong-0123456789"}, "HTTP 401"),
            ({"password": ""}, "connection openai_batches_default: password: the API key is missing"),
            ({"host": "http://127.0.0.1:9/v1"}, "no connection to 127.0.0.1:9"),
        ],
    )
    def test_bad_connection_says_why(self, connection: Connect, fields: dict[str, Any], message: str) -> None:
        connection(**fields)
        good, said = OpenAIBatchesHook().test_connection()
        assert not good
        assert message in said

    def test_is_tried_once(self, hook: OpenAIBatchesHook, emulator: Emulator) -> None:
        emulator.add_fault({"on": {"path": "/batches"}, "do": {"status": 503}, "times": None})
        assert hook.test_connection()[0] is False
        assert len(emulator.calls) == 1

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"password": None}, "password: the API key is missing. Put it into the connection's password"),
            ({"password": "sk two words"}, "password: the API key has characters that no key has"),
            ({"host": "api.openai.com"}, "host: expected a base URL like 'https://api.openai.com/v1'"),
            ({"host": "https://h/v1?api-version=1"}, "host: the base URL may hold neither query"),
            ({"extra": {"timeout": "soon"}}, "timeout: expected seconds, more than 0 and at most 86,400, got 'soon'"),
            ({"extra": {"timeout": 1e20}}, "timeout: expected seconds, more than 0 and at most 86,400, got 1e+20"),
            ({"extra": {"timeout": 86_401}}, "timeout: expected seconds, more than 0 and at most 86,400, got 86401"),
            ({"extra": {"timeout": -1}}, "timeout: expected seconds, more than 0 and at most 86,400, got -1"),
            ({"extra": {"timeout": "nan"}}, "timeout: expected seconds, more than 0 and at most 86,400, got 'nan'"),
            ({"extra": {"auth": "basic"}}, "auth: expected 'bearer' or 'api-key', got 'basic'"),
            ({"extra": {"headers": "X: 1"}}, "headers: expected a JSON object"),
            ({"extra": {"headers": {"X": "a\nb"}}}, "headers: 'X' or its value has characters"),
            ({"extra": {"query": ["a"]}}, "query: expected a JSON object"),
            ({"extra": {"dialect": "cohere"}}, "dialect: 'cohere' is not known; there are openai, azure, groq"),
            ({"extra": {"dialect": "azure"}}, "host: expected Azure's base URL, such as https://RESOURCE.openai."),
            ({"extra": {"dialect": "azure"}, "host": None}, "host: Azure OpenAI has no common address"),
            (
                {"extra": {"dialect": "azure"}, "host": "https://r.openai.azure.com/openai/deployments/gpt/batches"},
                "host: the Batch API of Azure is not below a deployment",
            ),
            (
                {"extra": {"auth": "entra"}},
                "auth: expected 'bearer' or 'api-key', got 'entra'. Tokens of",
            ),
            (
                {"password": None, "extra": {"auth_type": "workload_identity"}},
                "auth_type: 'workload_identity' is the official provider's. Put a key into the password",
            ),
            ({"extra": {"openai_client_kwargs": "x"}}, "openai_client_kwargs: expected a JSON object"),
            ({"extra": {"openai_client_kwargs": {"timeout": {"read": 5}}}}, "timeout: expected"),
        ],
    )
    def test_bad_field_is_named_with_its_connection(
        self, connection: Connect, fields: dict[str, Any], message: str, emulator: Emulator
    ) -> None:
        connection(**fields)
        with pytest.raises(InvalidInputError) as raised:
            OpenAIBatchesHook().upload_file(request_lines(1))
        assert f"connection openai_batches_default: {message}" in str(raised.value)
        assert emulator.calls == []

    @pytest.mark.usefixtures("odd_extras_are_read")
    def test_an_extra_that_is_no_json_is_named(self, connection: Connect, emulator: Emulator) -> None:
        connection(extra='{"project": "p')
        with pytest.raises(InvalidInputError, match="default: its extra has to be a JSON object"):
            OpenAIBatchesHook().upload_file(request_lines(1))
        assert emulator.calls == []

    def test_fields_of_the_form_reach_the_service(
        self, connection: Connect, monkeypatch: pytest.MonkeyPatch, emulator: Emulator
    ) -> None:
        connection(
            extra={
                "organization": "org-1",
                "project": 7,
                "timeout": "12.5",
                "auth": "api-key",
                "headers": '{"X-Team": "search"}',
                "query": {"api-version": "2"},
            }
        )
        settings = OpenAIBatchesHook().get_conn().settings
        assert settings.timeout_s == 12.5
        assert settings.query == {"api-version": "2"}
        assert settings.request_headers() == {
            "X-Team": "search",
            "api-key": API_KEY,
            "OpenAI-Organization": "org-1",
            "OpenAI-Project": "7",
        }

    def test_connection_of_the_official_provider_works_unchanged(
        self, monkeypatch: pytest.MonkeyPatch, emulator: Emulator
    ) -> None:
        kwargs = {
            "api_key": API_KEY,
            "base_url": emulator.base_url,
            "organization": "org-1",
            "timeout": 30,
            "max_retries": 5,
            "default_headers": {"X-Team": "search"},
        }
        official = {"conn_type": "openai", "extra": {"openai_client_kwargs": kwargs}}
        monkeypatch.setenv("AIRFLOW_CONN_OPENAI_DEFAULT", json.dumps(official))
        hook = OpenAIBatchesHook("openai_default")
        assert hook.upload_file(request_lines(1)).id
        assert hook.get_conn().settings.timeout_s == 30
        assert hook.get_conn().settings.request_headers()["X-Team"] == "search"

    @pytest.mark.parametrize(
        ("host", "extra", "dialect"),
        [
            ("https://r.openai.azure.com/openai/v1", {}, "azure"),
            ("https://r.services.ai.azure.com/openai/v1", {"dialect": ""}, "azure"),
            ("https://r.openai.azure.com/openai/v1", {"dialect": "openai"}, "openai"),
            ("https://openai.azure.com.example/openai/v1", {}, "openai"),
            ("https://gateway.example/openai/v1", {}, "openai"),
        ],
    )
    def test_a_host_of_azure_is_known(
        self, connection: Connect, host: str, extra: dict[str, str], dialect: str
    ) -> None:
        connection(host=host, extra=extra)
        assert OpenAIBatchesHook().get_conn().settings.dialect.name == dialect

    def test_default_host_is_openai(self, connection: Connect) -> None:
        connection(host=None)
        assert OpenAIBatchesHook().get_conn().settings.base_url == "https://api.openai.com/v1"

    def test_unknown_connection_is_named(self) -> None:
        with pytest.raises(Exception, match="nowhere"):
            OpenAIBatchesHook("nowhere").get_conn()


class TestWebhookSecret:
    @pytest.mark.parametrize(
        ("extra", "secret"),
        [({"webhook_secret": " whsec_bGV0IG1lIGlu\n"}, "whsec_bGV0IG1lIGlu"), ({"webhook_secret": None}, ""), ({}, "")],
    )
    def test_comes_from_the_connection(
        self, connection: Callable[..., None], extra: dict[str, Any], secret: str
    ) -> None:
        connection(extra=extra)
        assert OpenAIBatchesHook().webhook_secret == secret

    @pytest.mark.parametrize("written", ["whsec_never-in-a-log", " whsec_not-without-the-blanks-either\n"])
    def test_is_masked_in_logs(self, connection: Callable[..., None], written: str) -> None:
        connection(extra={"webhook_secret": written})
        secret = OpenAIBatchesHook().webhook_secret
        assert secret == written.strip()
        assert secret not in str(redact(f"signed with {secret}"))
