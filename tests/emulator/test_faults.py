"""Each scripted fault does what its table says."""

from __future__ import annotations

import gzip
import json
from typing import Any

import openai
import pytest
import requests
from openai import OpenAI

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.emulator.faults import FaultError, Faults, parse_rule, parse_rules

from .batches import CHAT, request, results, submit, upload, wait_until

CREATE = {"method": "POST", "path": "/v1/batches"}
CONTENT = {"path": "/v1/files/*/content"}


def create(emulator: Emulator) -> requests.Response:
    body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    return requests.post(f"{emulator.base_url}/batches", json=body, timeout=10)


# HTTP calls


def test_status_is_answered_without_applying_the_request(emulator: Emulator) -> None:
    effect = {"status": 429, "headers": {"Retry-After": "7"}, "body": {"error": {"code": "rate_limit_exceeded"}}}
    emulator.add_fault({"on": CREATE, "do": effect, "skip": 1, "times": 2})
    answers = [create(emulator) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 429, 429, 200]
    assert (answers[1].headers["Retry-After"], answers[1].json()) == ("7", effect["body"])
    assert len(emulator.batches()) == 2


def test_text_body_is_html_and_missing_body_an_envelope(emulator: Emulator) -> None:
    emulator.add_fault({"on": CREATE, "do": {"status": 502, "body": "<html>Bad gateway</html>"}})
    emulator.add_fault({"on": CREATE, "do": {"status": 503}})
    html, envelope = create(emulator), create(emulator)
    assert (html.text, html.headers["Content-Type"].split(";")[0]) == ("<html>Bad gateway</html>", "text/html")
    assert envelope.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(("when", "made"), [("before", 0), ("after", 1)])
def test_connection_is_reset_before_or_after_the_request_is_applied(emulator: Emulator, when: str, made: int) -> None:
    emulator.add_fault({"on": CREATE, "do": {"drop": when}})
    with pytest.raises(requests.ConnectionError, match="Connection reset"):
        create(emulator)
    assert len(emulator.batches()) == made
    assert emulator.calls == [("POST", "/v1/batches", 0)]


def test_delayed_request_is_applied_though_the_client_has_gone(emulator: Emulator) -> None:
    emulator.add_fault({"on": CREATE, "do": {"delay": 0.2}})
    body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{emulator.base_url}/batches", json=body, timeout=0.05)
    assert emulator.batches() == []
    wait_until(lambda: len(emulator.batches()) == 1)


def test_cut_content_announces_its_full_length(emulator: Emulator, client: OpenAI) -> None:
    file_id = upload(client, map(request, range(9)))
    emulator.add_fault({"on": CONTENT, "do": {"truncate": 10}})
    emulator.add_fault({"on": {"path": "/v1/files"}, "do": {"truncate": 10}})
    for path in (f"files/{file_id}/content", "files"):
        response = requests.get(f"{emulator.base_url}/{path}", stream=True, timeout=10)
        assert int(response.headers["Content-Length"]) > 10
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="10 bytes read"):
            assert response.content
    assert requests.get(f"{emulator.base_url}/files/{file_id}/content", timeout=10).content.count(b"\n") == 9


def test_gzip_content_unpacks_to_the_same(emulator: Emulator, client: OpenAI) -> None:
    file_id = upload(client, map(request, range(9)))
    url = f"{emulator.base_url}/files/{file_id}"
    plain = requests.get(f"{url}/content", timeout=10)
    assert "Content-Encoding" not in plain.headers
    emulator.add_fault({"on": {"path": "/v1/files/**"}, "do": {"gzip": True}, "times": 2})
    packed = requests.get(f"{url}/content", timeout=10, stream=True)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.raw.read(decode_content=False)) == plain.content
    assert requests.get(url, timeout=10).json()["id"] == file_id


def test_redirect_keeps_the_path_and_query(emulator: Emulator) -> None:
    emulator.add_fault({"on": {"path": "/v1/files"}, "do": {"redirect": "http://elsewhere.test"}})
    response = requests.get(f"{emulator.base_url}/files?limit=3", allow_redirects=False, timeout=10)
    assert response.status_code == 302
    assert response.headers["Location"] == "http://elsewhere.test/v1/files?limit=3"


def test_patch_and_set_change_objects_and_the_items_of_lists(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, [request(0)])
    effect = {"patch": {"metadata": None, "status": "Validating"}, "set": {"request_counts": None}}
    emulator.add_fault({"on": {"path": "/batches**"}, "do": effect, "times": 2})
    one = requests.get(f"{emulator.base_url}/batches/{batch.id}", timeout=10).json()
    [item] = requests.get(f"{emulator.base_url}/batches", timeout=10).json()["data"]
    for shown in (one, item):
        assert ("metadata" in shown, shown["status"], shown["request_counts"]) == (False, "Validating", None)
    assert client.batches.retrieve(batch.id).status == "validating"


def test_ranges_are_served_only_while_a_fault_says_so(emulator: Emulator, client: OpenAI) -> None:
    file_id = upload(client, map(request, range(9)))
    url = f"{emulator.base_url}/files/{file_id}/content"
    whole = requests.get(url, headers={"Range": "bytes=5-"}, timeout=10)
    assert (whole.status_code, "Accept-Ranges" in whole.headers, "ETag" in whole.headers) == (200, False, False)
    emulator.add_fault({"on": CONTENT, "do": {"ranges": True}, "times": None})
    etag = requests.get(url, timeout=10).headers["ETag"]
    part = requests.get(url, headers={"Range": "bytes=5-", "If-Range": etag}, timeout=10)
    size = len(whole.content)
    assert (part.status_code, part.headers["Content-Range"]) == (206, f"bytes 5-{size - 1}/{size}")
    assert part.content == whole.content[5:]
    assert requests.get(url, headers={"Range": "bytes=5-", "If-Range": '"old"'}, timeout=10).status_code == 200
    assert requests.get(url, headers={"Range": f"bytes={size}-"}, timeout=10).status_code == 416


def test_list_can_ignore_after(emulator: Emulator, client: OpenAI) -> None:
    made = [submit(client, [request(0)]).id for _ in range(2)]
    emulator.add_fault({"on": {"method": "GET", "path": "/v1/batches"}, "do": {"ignore_after": True}})
    assert [batch.id for batch in client.batches.list(after=made[1]).data] == made[::-1]


def test_faults_are_added_and_cleared_over_http(emulator: Emulator) -> None:
    url = emulator.base_url.removesuffix("/v1") + "/emulator/faults"
    rule = {"on": CREATE, "do": {"status": 500}, "times": None}
    assert requests.post(url, json=[rule, rule], timeout=10).json() == {"added": 2}
    assert create(emulator).status_code == 500
    assert requests.delete(url, timeout=10).ok
    assert create(emulator).status_code == 200
    refused = requests.post(url, json={"do": {"explode": True}}, timeout=10)
    assert (refused.status_code, "explode" in refused.text) == (400, True)


# Batches


def outcome(emulator: Emulator, do: dict[str, Any], on: dict[str, Any] | None = None, **rule: Any) -> None:
    emulator.add_fault({"on": {"batch": on or {}}, "do": do, **rule})


def test_batch_fails_with_the_given_errors(emulator: Emulator, client: OpenAI) -> None:
    errors = [{"code": "billing_hard_limit_reached", "message": "m", "param": None, "line": None}]
    outcome(emulator, {"outcome": "failed", "errors": errors}, {"metadata": {"run": "b*"}})
    spared, hit = (
        submit(client, [request(0)], metadata={"run": "a1"}),
        submit(client, [request(0)], metadata={"run": "b1"}),
    )
    emulator.advance(3)
    assert client.batches.retrieve(spared.id).status == "in_progress"
    assert client.batches.retrieve(hit.id).status == "failed"
    assert emulator.batches()[0]["errors"]["data"] == errors


def test_batch_can_fail_without_a_word(emulator: Emulator, client: OpenAI) -> None:
    outcome(emulator, {"outcome": "failed"})
    batch = submit(client, [request(0)])
    emulator.advance(3)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.errors) == ("failed", None)


@pytest.mark.parametrize(
    ("name", "code"), [("token_limit_exceeded", "token_limit_exceeded"), ("file_not_found", "invalid_request")]
)
def test_transient_validation_failure_passes_after_its_times(
    emulator: Emulator, client: OpenAI, name: str, code: str
) -> None:
    outcome(emulator, {"outcome": name}, {"endpoint": "/v1/chat/*", "model": "gpt-4o-*"}, times=2)
    for _ in range(3):
        submit(client, [request(0)])
        emulator.advance(3)
    newest, *failed = emulator.batches()
    assert newest["status"] == "in_progress"
    assert [batch["errors"]["data"][0]["code"] for batch in failed] == [code, code]


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing"])
def test_stuck_batch_stays_and_can_be_cancelled(emulator: Emulator, client: OpenAI, status: str) -> None:
    outcome(emulator, {"outcome": "stuck", "status": status})
    batch = submit(client, [request(0)])
    emulator.advance(10 * 86_400)
    assert client.batches.retrieve(batch.id).status == status
    client.batches.cancel(batch.id)
    emulator.advance(2)
    assert client.batches.retrieve(batch.id).status == "cancelled"


def test_stuck_batch_goes_on_after_its_seconds(emulator: Emulator, client: OpenAI) -> None:
    outcome(emulator, {"outcome": "stuck", "status": "finalizing", "seconds": 3600})
    batch = submit(client, [request(0)])
    emulator.advance(123 + 3599)
    assert client.batches.retrieve(batch.id).status == "finalizing"
    emulator.advance(1)
    assert client.batches.retrieve(batch.id).status == "completed"


def test_states_are_skipped(emulator: Emulator, client: OpenAI) -> None:
    outcome(emulator, {"outcome": "skip_states"})
    batch = submit(client, [request(0)])
    emulator.advance(124)
    shown = client.batches.retrieve(batch.id)
    assert (shown.status, shown.in_progress_at) == ("validating", None)
    emulator.advance(1)
    assert client.batches.retrieve(batch.id).status == "completed"


def test_batch_expires_with_a_share_done(emulator: Emulator, client: OpenAI) -> None:
    outcome(emulator, {"outcome": "expire", "finished": 0.3})
    batch = submit(client, map(request, range(10)))
    emulator.advance(125)
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "expired"
    assert len(results(client, batch.output_file_id)) == 3
    assert len(results(client, batch.error_file_id)) == 7


def test_all_requests_fail(emulator: Emulator, client: OpenAI) -> None:
    outcome(emulator, {"outcome": "all_failed", "status": 503, "code": "overloaded"})
    batch = submit(client, map(request, range(3)))
    emulator.advance(125)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.output_file_id) == ("completed", None)
    lines = results(client, batch.error_file_id)
    assert {line["response"]["status_code"] for line in lines.values()} == {503}
    assert {line["response"]["body"]["error"]["code"] for line in lines.values()} == {"overloaded"}


# Rows


def run_rows(emulator: Emulator, client: OpenAI, *rules: dict[str, Any]) -> Any:
    for rule in rules:
        emulator.add_fault(rule)
    batch = submit(client, map(request, range(4)))
    emulator.advance(125)
    return client.batches.retrieve(batch.id)


def row(do: dict[str, Any], glob: str = "row-1", **rule: Any) -> dict[str, Any]:
    return {"on": {"custom_id": glob}, "do": do, **rule}


@pytest.mark.parametrize(
    ("do", "status", "code"),
    [
        ({"outcome": "error", "status": 429, "code": "rate_limit_exceeded", "message": "slow"}, 429, None),
        ({"outcome": "error"}, 400, "invalid_value"),
        ({"outcome": "server_error"}, 500, "server_error"),
    ],
)
def test_failed_row_is_in_the_error_file_and_counted(
    emulator: Emulator, client: OpenAI, do: dict[str, Any], status: int, code: str | None
) -> None:
    batch = run_rows(emulator, client, row(do))
    assert (batch.request_counts.completed, batch.request_counts.failed) == (3, 1)
    line = results(client, batch.error_file_id)["row-1"]
    assert (line["response"]["status_code"], line["error"]) == (status, None)
    assert line["response"]["body"]["error"]["code"] == (code or do["code"])


def test_timed_out_row_has_no_response(emulator: Emulator, client: OpenAI) -> None:
    batch = run_rows(emulator, client, row({"outcome": "timeout"}, times=None))
    line = results(client, batch.error_file_id)["row-1"]
    assert (line["response"], line["error"]["code"]) == (None, "request_timeout")
    assert batch.request_counts.failed == 1


def test_rows_are_missing_doubled_renamed_and_broken(emulator: Emulator, client: OpenAI) -> None:
    batch = run_rows(
        emulator,
        client,
        row({"outcome": "missing"}, "row-0"),
        row({"outcome": "duplicate"}, "row-1"),
        row({"outcome": "unknown"}, "row-2"),
        row({"outcome": "broken_line"}, "row-3"),
    )
    assert batch.request_counts.completed == 4
    ids = []
    broken = 0
    for line in client.files.content(batch.output_file_id).content.splitlines():
        try:
            ids.append(json.loads(line)["custom_id"])
        except ValueError:
            broken += 1
    assert (sorted(ids), broken) == (["row-1", "row-1", "unknown-row-2"], 1)


def test_rows_are_answered_but_useless(emulator: Emulator, client: OpenAI) -> None:
    batch = run_rows(
        emulator,
        client,
        row({"outcome": "length"}, "row-0"),
        row({"outcome": "refusal"}, "row-1"),
        row({"outcome": "invalid_output"}, "row-2"),
    )
    choice = {
        key: line["response"]["body"]["choices"][0] for key, line in results(client, batch.output_file_id).items()
    }
    assert choice["row-0"]["finish_reason"] == "length"
    assert choice["row-1"]["message"]["content"] is None
    assert "cannot assist" in choice["row-1"]["message"]["refusal"]
    assert "does not follow the schema" in choice["row-2"]["message"]["content"]


def test_row_rules_count_requests(emulator: Emulator, client: OpenAI) -> None:
    batch = run_rows(emulator, client, row({"outcome": "server_error"}, "row-*", skip=1, times=2))
    assert results(client, batch.error_file_id).keys() == {"row-1", "row-2"}


def test_batch_that_never_starts_uses_up_no_row_rule() -> None:
    with Emulator(speed=0, token_limits={"*": 4}, faults=[row({"outcome": "server_error"}, "row-1")]) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        refused = submit(client, map(request, range(4)))
        emulator.advance(125)
        assert client.batches.retrieve(refused.id).status == "failed"
        submit(client, [request(1, messages=[{"role": "user", "content": "short"}])])
        emulator.advance(125)
        assert results(client, emulator.batches()[0]["error_file_id"]).keys() == {"row-1"}


def test_decided_fate_survives_a_restart(tmp_path: Any) -> None:
    rule = row({"outcome": "server_error"}, "row-2")
    with Emulator(tmp_path, speed=0, faults=[rule]) as emulator:
        submit(OpenAI(base_url=emulator.base_url, api_key="any"), map(request, range(4)))
        emulator.advance(3)
    with Emulator(tmp_path, speed=0) as emulator:
        emulator.advance(122)
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        assert results(client, emulator.batches()[0]["error_file_id"]).keys() == {"row-2"}


# The rules themselves


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("text", "expected an object"),
        ({"on": {}, "do": {}}, "must say something"),
        ({"on": {}, "do": {"explode": True}}, "unknown member 'explode'"),
        ({"on": {"paht": "/"}, "do": {"status": 500}}, "unknown member 'paht'"),
        ({"when": {}, "do": {"status": 500}}, "unknown member 'when'"),
        ({"do": {"status": "500"}}, "no HTTP status"),
        ({"do": {"status": True}}, "not of type"),
        ({"do": {"drop": "during"}}, "do.drop"),
        ({"do": {"body": {}}}, "need do.status"),
        ({"do": {"status": 500}, "times": -1}, "times"),
        ({"do": {"status": 500}, "skip": None}, "skip"),
        ({"on": {"batch": {}}, "do": {"outcome": "explode"}}, "not one of failed"),
        ({"on": {"batch": {}}, "do": {"outcome": "stuck"}}, "stuck in"),
        ({"on": {"batch": {}}, "do": {"status": 500}}, "'outcome' is missing"),
        ({"on": {"custom_id": 5}, "do": {"outcome": "missing"}}, "on.custom_id"),
        ({"on": {"custom_id": "a"}, "do": {"outcome": "stuck"}}, "not one of error"),
    ],
)
def test_rule_that_cannot_be_understood_is_named(rule: Any, complaint: str) -> None:
    good = {"do": {"status": 500}}
    with pytest.raises(FaultError, match=r"^fault rule 2: ") as caught:
        parse_rules([good, rule])
    assert complaint in str(caught.value)
    with pytest.raises(FaultError):
        Emulator(faults=[rule])


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("/v1/batches/*", "/v1/batches/b1", True),
        ("/v1/batches/*", "/v1/batches/b1/cancel", False),
        ("/v1/batches/**", "/v1/batches/b1/cancel", True),
        ("/batches", "/v1/batches", True),
        ("/v1/files", "/v1/files/f", False),
    ],
)
def test_star_stays_within_a_path_segment(glob: str, path: str, matches: bool) -> None:
    faults = Faults([parse_rule({"on": {"path": glob}, "do": {"status": 500}})])
    assert (faults.for_call("GET", path) is not None) == matches


def test_first_rule_that_is_due_wins() -> None:
    first = parse_rule({"on": {"method": "post"}, "do": {"status": 500}, "skip": 1})
    second = parse_rule({"do": {"status": 503}, "times": None})
    faults = Faults([first, second])
    effects = [faults.for_call("POST", "/v1/batches") for _ in range(3)]
    assert [effect.status for effect in effects if effect is not None] == [503, 500, 503]


def test_sdk_retries_what_the_emulator_refuses_once(emulator: Emulator) -> None:
    emulator.add_fault({"on": {"path": "/v1/files"}, "do": {"status": 500, "headers": {"retry-after-ms": "1"}}})
    patient = OpenAI(base_url=emulator.base_url, api_key="any", max_retries=1)
    assert patient.files.list().data == []
    assert emulator.count("GET", "/v1/files") == 2
    with pytest.raises(openai.NotFoundError):
        patient.batches.retrieve("batch_x")
