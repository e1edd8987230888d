"""Each fault shows its effect over real HTTP."""

from __future__ import annotations

import datetime
import email.utils
import inspect
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.testing import faults
from airflow_provider_openai_batches.testing.clock import BatchClock

from .conftest import ROOT

CHAT = "/v1/chat/completions"


@pytest.fixture
def emulator(openai_batches_emulator: Emulator) -> Emulator:
    return openai_batches_emulator


def call(emulator: Emulator, method: str, path: str, **options: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {emulator.api_key}", **options.pop("headers", {})}
    return requests.request(method, emulator.base_url + path, headers=headers, timeout=10, **options)


def request_line(number: int, url: str = CHAT) -> dict[str, Any]:
    asked = {"input": "hello"} if url == "/v1/responses" else {"messages": [{"role": "user", "content": "hello"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": url, "body": {"model": "gpt-4o-mini", **asked}}


def create(emulator: Emulator, file_id: str = "file-x", url: str = CHAT, **metadata: str) -> requests.Response:
    body = {"input_file_id": file_id, "endpoint": url, "completion_window": "24h", "metadata": metadata}
    return call(emulator, "POST", "/batches", json=body)


def submit(emulator: Emulator, rows: int = 4, url: str = CHAT, **metadata: str) -> str:
    content = "".join(json.dumps(request_line(number, url)) + "\n" for number in range(rows))
    file = call(emulator, "POST", "/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}).json()
    batch_id: str = create(emulator, file["id"], url, **metadata).json()["id"]
    return batch_id


def look(emulator: Emulator, batch_id: str) -> Any:
    return call(emulator, "GET", f"/batches/{batch_id}").json()


def content(emulator: Emulator, file_id: str) -> bytes:
    return call(emulator, "GET", f"/files/{file_id}/content").content


def finished(emulator: Emulator, **options: Any) -> Any:
    return look(emulator, submit(emulator, **options))


def answers(emulator: Emulator, batch: Any) -> dict[str, Any]:
    """The lines of the output and error file by custom_id; those that cannot be read are left out."""
    found = {}
    for file_id in filter(None, (batch["output_file_id"], batch["error_file_id"])):
        # Not splitlines(): U+2028 ends no line of JSONL.
        for line in content(emulator, file_id).decode().split("\n")[:-1]:
            try:
                decoded = json.loads(line)
            except ValueError:
                continue
            found[decoded["custom_id"]] = decoded
    return found


class TestCalls:
    @pytest.mark.parametrize("retry_after", [3.0, 600.0, None])
    def test_rate_limited_in_seconds_or_without_a_word(self, emulator: Emulator, retry_after: float | None) -> None:
        emulator.add_fault(faults.rate_limited(retry_after, times=2))
        refused = [call(emulator, "GET", "/batches") for _ in range(3)]
        assert [each.status_code for each in refused] == [429, 429, 200]
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
        assert refused[0].headers.get("Retry-After") == (None if retry_after is None else f"{retry_after:g}")

    def test_rate_limited_in_milliseconds_or_by_date(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.rate_limited(0.25, form="milliseconds"))
        emulator.add_fault(faults.rate_limited(90, form="date"))
        first, second = (call(emulator, "GET", "/batches").headers for _ in range(2))
        assert (first["retry-after-ms"], "Retry-After" in first) == ("250", False)
        moment = email.utils.parsedate_to_datetime(second["Retry-After"])
        assert 60 < (moment - datetime.datetime.now(datetime.UTC)).total_seconds() <= 90

    def test_insufficient_quota(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.insufficient_quota(on=faults.CREATE))
        refused = create(emulator)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        assert "Retry-After" not in refused.headers

    def test_server_error_in_every_shape(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.server_error())
        emulator.add_fault(faults.server_error(502, html=True, should_retry=False))
        emulator.add_fault(faults.server_error(503, should_retry=True))
        plain, page, busy = (create(emulator) for _ in range(3))
        assert [each.status_code for each in (plain, page, busy)] == [500, 502, 503]
        assert "x-should-retry" not in plain.headers
        assert (page.headers["x-should-retry"], busy.headers["x-should-retry"]) == ("false", "true")
        assert page.text.startswith("<html>")
        assert busy.json()["error"]["type"] == "server_error"
        assert emulator.batches() == []

    def test_refused(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.refused(401, "invalid_api_key", on=faults.UPLOAD))
        refused = call(emulator, "POST", "/files")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")

    @pytest.mark.parametrize(
        ("fault", "made"),
        [
            (faults.lost_call(on=faults.CREATE), 0),
            (faults.lost_response(on=faults.CREATE), 1),
            (faults.lost_create_response(), 1),
        ],
        ids=["lost_call", "lost_response", "lost_create_response"],
    )
    def test_lost(self, emulator: Emulator, fault: faults.Rule, made: int) -> None:
        emulator.add_fault(fault)
        with pytest.raises(requests.ConnectionError, match="reset"):
            create(emulator)
        assert len(emulator.batches()) == made
        assert emulator.calls == [("POST", "/v1/batches", 0)]

    def test_slow(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.slow(0.3))
        began = time.monotonic()
        assert call(emulator, "GET", "/batches").ok
        assert time.monotonic() - began >= 0.3

    def test_redirected(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.redirected("http://127.0.0.1:9", on=faults.LIST))
        answer = call(emulator, "GET", "/batches?limit=1", allow_redirects=False)
        assert (answer.status_code, answer.headers["Location"]) == (302, "http://127.0.0.1:9/v1/batches?limit=1")

    def test_batch_not_found_at_first(self, emulator: Emulator) -> None:
        batch_id = submit(emulator)
        emulator.add_fault(faults.batch_not_found(times=2))
        statuses = [call(emulator, "GET", f"/batches/{batch_id}").status_code for _ in range(3)]
        assert statuses == [404, 404, 200]

    def test_cancel_conflict(self, emulator: Emulator) -> None:
        batch_id = submit(emulator)
        emulator.add_fault(faults.cancel_conflict())
        assert [call(emulator, "POST", f"/batches/{batch_id}/cancel").status_code for _ in range(2)] == [409, 200]

    def test_list_ignores_after(self, emulator: Emulator) -> None:
        newest = [submit(emulator) for _ in range(2)][1]
        emulator.add_fault(faults.list_ignores_after())
        page = call(emulator, "GET", f"/batches?after={newest}&limit=1").json()
        assert [batch["id"] for batch in page["data"]] == [newest]


class TestDownloads:
    @pytest.fixture
    def file_id(self, emulator: Emulator) -> str:
        found: str = finished(emulator)["output_file_id"]
        return found

    def test_truncated_download(self, emulator: Emulator, file_id: str) -> None:
        emulator.add_fault(faults.truncated_download(10))
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="10 bytes read"):
            content(emulator, file_id)
        assert len(content(emulator, file_id)) > 10

    def test_failed_download(self, emulator: Emulator, file_id: str) -> None:
        emulator.add_fault(faults.failed_download(times=2))
        statuses = [call(emulator, "GET", f"/files/{file_id}/content").status_code for _ in range(3)]
        assert statuses == [500, 500, 200]

    def test_compressed_download(self, emulator: Emulator, file_id: str) -> None:
        plain = content(emulator, file_id)
        emulator.add_fault(faults.compressed_download())
        packed = call(emulator, "GET", f"/files/{file_id}/content")
        assert (packed.headers["Content-Encoding"], packed.content) == ("gzip", plain)

    def test_resumable_download(self, emulator: Emulator, file_id: str) -> None:
        whole = content(emulator, file_id)
        emulator.add_fault(faults.resumable_download())
        part = call(emulator, "GET", f"/files/{file_id}/content", headers={"Range": "bytes=5-"})
        assert (part.status_code, part.content) == (206, whole[5:])

    def test_deleted_file(self, emulator: Emulator, file_id: str) -> None:
        emulator.add_fault(faults.deleted_file())
        assert call(emulator, "GET", f"/files/{file_id}/content").status_code == 404


class TestShownBatches:
    def test_batch_shows(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.batch_shows({"request_counts": None, "status": "paused"}))
        batch = finished(emulator)
        assert (batch["request_counts"], batch["status"]) == (None, "paused")

    def test_batch_lacks(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.batch_lacks("metadata", "usage", "expires_at"))
        submit(emulator)
        [batch] = call(emulator, "GET", "/batches").json()["data"]
        assert not {"metadata", "usage", "expires_at"} & batch.keys()
        assert batch["status"] == "completed"

    def test_empty_file_ids_only_where_there_is_no_file(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.empty_file_ids())
        emulator.add_fault(faults.all_requests_fail(skip=1))
        good, bad = finished(emulator), finished(emulator)
        assert (good["error_file_id"], bad["output_file_id"]) == ("", "")
        assert good["output_file_id"].startswith("file-")
        assert bad["error_file_id"].startswith("file-")

    def test_azure_dialect(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.azure_dialect())
        batch = finished(emulator)
        [batch_in_list] = call(emulator, "GET", "/batches").json()["data"]
        assert (batch["status"], batch_in_list["status"]) == ("Completed", "Completed")
        assert datetime.datetime.fromisoformat(batch["completed_at"]).timestamp() <= emulator.now
        assert batch["failed_at"] is None


class TestBatches:
    def test_batch_fails_at_once_or_after_a_while(self, emulator: Emulator, openai_batches_clock: BatchClock) -> None:
        error = {"code": "empty_file", "message": "m", "param": None, "line": 7}
        emulator.add_fault(faults.batch_fails([error], at_once=True))
        emulator.add_fault(faults.batch_fails())
        first, second = submit(emulator), submit(emulator)
        openai_batches_clock.advance(0)  # what is due now has happened
        at_once = look(emulator, first)
        assert (at_once["status"], at_once["errors"]["data"]) == ("failed", [error])
        assert at_once["failed_at"] - at_once["created_at"] <= 1
        assert look(emulator, second)["status"] == "validating"
        openai_batches_clock.advance(3)
        later = look(emulator, second)
        assert (later["status"], later["errors"]) == ("failed", None)

    @pytest.mark.parametrize(
        ("fault", "code"),
        [(faults.queue_full, "token_limit_exceeded"), (faults.input_file_not_found, "invalid_request")],
    )
    def test_refused_at_first(self, emulator: Emulator, fault: Any, code: str) -> None:
        emulator.add_fault(fault(times=2))
        batches = [finished(emulator) for _ in range(3)]
        assert [batch["status"] for batch in batches] == ["failed", "failed", "completed"]
        assert batches[0]["errors"]["data"][0]["code"] == code

    @pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling"])
    def test_batch_stuck(self, emulator: Emulator, openai_batches_clock: BatchClock, status: Any) -> None:
        emulator.add_fault(faults.batch_stuck(status, hours=30, batch={"metadata": {"run": "hit*"}}))
        spared, hit = submit(emulator, run="spared"), submit(emulator, run="hit-1")
        if status == "cancelling":
            openai_batches_clock.advance(minutes=1)
            for batch_id in (spared, hit):
                assert call(emulator, "POST", f"/batches/{batch_id}/cancel").ok
        openai_batches_clock.advance(hours=29)
        ended = "cancelled" if status == "cancelling" else "completed"
        assert [look(emulator, each)["status"] for each in (spared, hit)] == [ended, status]
        openai_batches_clock.advance(hours=2)
        # Whoever is validated after the window has closed runs no more.
        assert look(emulator, hit)["status"] == ("expired" if status == "validating" else ended)

    def test_skipped_states(self, emulator: Emulator, openai_batches_clock: BatchClock) -> None:
        emulator.add_fault(faults.skipped_states())
        batch_id = submit(emulator)
        openai_batches_clock.advance(minutes=2)
        assert look(emulator, batch_id)["status"] == "validating"
        openai_batches_clock.advance(minutes=1)
        assert look(emulator, batch_id)["status"] == "completed"

    def test_batch_expires(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.batch_expires(0.25))
        batch = finished(emulator)
        assert (batch["status"], batch["request_counts"]) == ("expired", {"total": 4, "completed": 1, "failed": 0})
        codes = Counter(line["error"] and line["error"]["code"] for line in answers(emulator, batch).values())
        assert codes == {None: 1, "batch_expired": 3}
        assert sum(emulator.bought().values()) == 1

    def test_all_requests_fail(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.all_requests_fail(503, "overloaded"))
        batch = finished(emulator)
        assert (batch["status"], batch["output_file_id"]) == ("completed", None)
        assert {line["response"]["status_code"] for line in answers(emulator, batch).values()} == {503}
        assert emulator.bought() == {}

    def test_empty_error_file(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.empty_error_file(times=2))
        emulator.add_fault(faults.row_fails("row-0", skip=1))
        empty, full, usual = (finished(emulator) for _ in range(3))
        assert content(emulator, empty["error_file_id"]) == b""
        assert len(answers(emulator, full)) == 4
        assert content(emulator, full["error_file_id"]) != b""
        assert usual["error_file_id"] is None


class TestRows:
    def run(self, emulator: Emulator, *rules: faults.Rule, **options: Any) -> dict[str, Any]:
        for rule in rules:
            emulator.add_fault(rule)
        return answers(emulator, finished(emulator, **options))

    def test_row_fails(self, emulator: Emulator) -> None:
        lines = self.run(emulator, faults.row_fails("row-1", 429, "rate_limit_exceeded", "slow down"))
        response = lines["row-1"]["response"]
        assert (response["status_code"], response["body"]["error"]["code"]) == (429, "rate_limit_exceeded")
        assert response["body"]["error"]["message"] == "slow down"
        assert emulator.bought() == {"row-0": 1, "row-2": 1, "row-3": 1}

    def test_row_times_out(self, emulator: Emulator) -> None:
        line = self.run(emulator, faults.row_times_out("row-1"))["row-1"]
        assert (line["response"], line["error"]["code"]) == (None, "request_timeout")

    def test_row_missing_but_billed(self, emulator: Emulator) -> None:
        assert set(self.run(emulator, faults.row_missing("row-1"))) == {"row-0", "row-2", "row-3"}
        assert emulator.bought()["row-1"] == 1

    def test_row_duplicated_but_billed_once(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.row_duplicated("row-1"))
        lines = content(emulator, finished(emulator)["output_file_id"]).splitlines()
        assert Counter(json.loads(line)["custom_id"] for line in lines)["row-1"] == 2
        assert emulator.bought()["row-1"] == 1

    def test_row_unknown(self, emulator: Emulator) -> None:
        assert set(self.run(emulator, faults.row_unknown("row-1"))) == {"row-0", "unknown-row-1", "row-2", "row-3"}

    def test_row_broken(self, emulator: Emulator) -> None:
        emulator.add_fault(faults.row_broken("row-1"))
        batch = finished(emulator)
        assert len(content(emulator, batch["output_file_id"]).splitlines()) == 4
        assert set(answers(emulator, batch)) == {"row-0", "row-2", "row-3"}

    @pytest.mark.parametrize("url", [CHAT, "/v1/responses"])
    def test_row_cut_off(self, emulator: Emulator, url: str) -> None:
        body = self.run(emulator, faults.row_cut_off("row-1"), url=url)["row-1"]["response"]["body"]
        if url == CHAT:
            assert body["choices"][0]["finish_reason"] == "length"
        else:
            assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})

    def test_row_refused(self, emulator: Emulator) -> None:
        line = self.run(emulator, faults.row_refused("row-1"))["row-1"]
        assert "cannot assist" in line["response"]["body"]["choices"][0]["message"]["refusal"]

    def test_row_invalid(self, emulator: Emulator) -> None:
        line = self.run(emulator, faults.row_invalid("row-1"))["row-1"]
        assert "does not follow the schema" in line["response"]["body"]["choices"][0]["message"]["content"]

    @pytest.mark.parametrize("text", ["positive", "one\u2028line", "x" * 3_000_000], ids=["label", "U+2028", "long"])
    def test_row_answers(self, emulator: Emulator, text: str) -> None:
        line = self.run(emulator, faults.row_answers("row-1", text))["row-1"]
        assert line["response"]["body"]["choices"][0]["message"]["content"] == text
        batch = emulator.batches()[0]
        assert text.encode() in content(emulator, batch["output_file_id"]), "as it is, not escaped"


def named_faults() -> dict[str, Any]:
    return {
        name: function
        for name, function in inspect.getmembers(faults, inspect.isfunction)
        if function.__module__ == faults.__name__ and not name.startswith("_")
    }


def test_every_fault_is_shown_here() -> None:
    source = Path(__file__).read_text()
    assert [name for name in named_faults() if f"faults.{name}" not in source] == []


def test_every_fault_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    assert [name for name in named_faults() if f"`{name}(" not in page] == []


def test_rules_are_json_that_the_emulators_command_line_reads(tmp_path: Path) -> None:
    """Whatever can be said in Python can be put into the file of ``--faults``."""
    from airflow_provider_openai_batches.emulator.faults import parse_rules

    required = {"seconds": 1, "url": "http://127.0.0.1:9", "status": 400, "length": 5, "members": {"a": None}}
    rules = []
    for function in named_faults().values():
        parameters = inspect.signature(function).parameters.values()
        needed = {
            each.name: required.get(each.name, "row-*")
            for each in parameters
            if each.default is each.empty and each.kind is not each.VAR_POSITIONAL
        }
        rules.append(function(**needed, times=None, skip=2))
    assert len(parse_rules(json.loads(json.dumps(rules)))) == len(rules) > 30
