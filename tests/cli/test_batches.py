"""list, show and cancel."""

from __future__ import annotations

import datetime
import time
from types import SimpleNamespace

import pytest

from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.emulator import Emulator
from tests.cli.conftest import Run, client_of, finished, submit


def test_list_is_one_object_per_line_under_the_apis_names_newest_first(cli: Run, emulator: Emulator) -> None:
    first, second = finished(emulator), submit(emulator, team="search")
    ended = cli("list", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert [line["id"] for line in ended.lines] == [second.id, first.id]
    assert all(set(line) == set(Batch.__struct_fields__) for line in ended.lines)
    assert ended.lines[0]["metadata"]["team"] == "search"
    assert ended.lines[1]["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert ended.lines[1]["usage"]["output_tokens"] > 0


def test_list_shows_people_what_they_look_for(cli: Run, emulator: Emulator) -> None:
    batch = finished(emulator, 1_200, airflow_dag_id="labels", airflow_task_id="ask")
    ended = cli("list")
    head, row = ended.out.splitlines()
    assert head.split() == ["batch", "status", "done", "failed", "age", "left", "model", "endpoint", "task"]
    for text in (batch.id, "completed", "1,200/1,200", "gpt-4o-mini", "/v1/chat/completions", "labels.ask"):
        assert text in row


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["new", "mine", "old"]),
        (("--limit", "2"), ["new", "mine"]),
        (("--limit", "0"), ["new", "mine", "old"]),
        (("--status", "completed"), ["mine", "old"]),
        (("--status", "completed", "--status", "validating"), ["new", "mine", "old"]),
        (("--status", "completed", "-n", "1"), ["mine"]),
        (("--dag-id", "labels"), ["mine"]),
        (("--since", "1h"), ["new", "mine", "old"]),
        (("--status", "expired"), []),
    ],
)
def test_list_chooses(cli: Run, emulator: Emulator, options: tuple[str, ...], expected: list[str]) -> None:
    finished(emulator, name="old")
    finished(emulator, name="mine", airflow_dag_id="labels")
    submit(emulator, name="new")
    assert [line["metadata"]["name"] for line in cli("list", "--json", *options).lines] == expected


def test_list_leaves_out_what_is_too_old(cli: Run, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    old = finished(emulator)
    emulator.advance(86_400)
    new = submit(emulator)
    later = time.time() + 86_400
    monkeypatch.setattr("airflow_provider_openai_batches.cli.batches.time", SimpleNamespace(time=lambda: later))
    assert [line["id"] for line in cli("list", "--json", "--since", "12h").lines] == [new.id]
    assert [line["id"] for line in cli("list", "--json", "--since", "2d").lines] == [new.id, old.id]


def test_an_empty_list_is_no_error(cli: Run) -> None:
    ended = cli("list")
    assert (ended.code, ended.out, ended.err) == (0, "", "No batches.\n")
    assert cli("list", "--status", "failed").err == "No such batches.\n"
    assert cli("list", "--json").content == b""


def test_show_says_all_that_is_known(cli: Run, emulator: Emulator) -> None:
    batch = finished(emulator, team="search")
    ended = cli("show", batch.id)
    shown = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert {name: shown[name].strip() for name in ("batch", "status", "output_file_id", "metadata.team")} == {
        "batch": batch.id,
        "status": "completed",
        "output_file_id": batch.output_file_id,
        "metadata.team": "search",
    }
    assert "3 of 3 requests done" in shown["progress"]
    assert cli("show", batch.id, "--json").lines == cli("list", "--json").lines


def test_times_are_utc_and_say_so(cli: Run, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        batch = finished(emulator)
        shown = dict(line.split(maxsplit=1) for line in cli("show", batch.id).out.splitlines())
    finally:
        monkeypatch.undo()
        time.tzset()
    times = {name: shown[name].strip() for name in shown if name.endswith("_at")}
    assert {"created_at", "in_progress_at", "completed_at", "expires_at"} <= times.keys()
    for name, text in times.items():
        said = datetime.datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=datetime.UTC)
        assert said.timestamp() == getattr(batch, name)


def test_texts_of_others_cannot_command_the_terminal(cli: Run, emulator: Emulator) -> None:
    hostile = "\x1b]0;owned\x07[bold]hi[/bold]\x1b[2J\r\n:smiley:"
    batch = finished(emulator, team=hostile, airflow_dag_id=hostile, airflow_task_id="t")
    for ended in (cli("show", batch.id), cli("list")):
        assert not set(ended.out) & {"\x1b", "\x07", "\r"}
        assert "[bold]hi[/bold]" in ended.out
        assert ":smiley:" in ended.out


def test_show_lists_what_is_wrong_with_lines(cli: Run, emulator: Emulator) -> None:
    errors = [{"code": "invalid_json_line", "message": f"bad {n}", "line": n} for n in range(1, 31)]
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": errors}})
    batch = finished(emulator)
    ended = cli("show", batch.id)
    assert "line 20: invalid_json_line: bad 20" in ended.out
    assert "bad 21" not in ended.out
    assert "10 more" in ended.out
    assert len(cli("show", batch.id, "--json").lines[0]["errors"]) == 30


# --- watching --------------------------------------------------------------------------------------------------------


def test_watch_follows_a_batch_to_its_end(fast: Emulator, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", fast.base_url)
    batch = submit(fast, 100)
    ended = cli("show", batch.id, "--watch", "--interval", "0.05", "--json")
    assert (ended.code, ended.err) == (0, "")
    done = [line["request_counts"]["completed"] for line in ended.lines]
    assert done == sorted(done)
    assert done[-1] == 100
    assert len(set(done)) > 2
    assert ended.lines[-1]["status"] == "completed"
    # A line for what changed, and none for what did not.
    assert all(one != other for one, other in zip(ended.lines, ended.lines[1:], strict=False))


def test_watch_without_a_terminal_says_little(fast: Emulator, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", fast.base_url)
    batch = submit(fast, 100)
    ended = cli("show", batch.id, "--watch", "--interval", "0.02")
    assert ended.err.splitlines()[-1] == f"Batch {batch.id} is completed; 100 of 100 requests done"
    assert len(ended.err.splitlines()) <= 4
    assert "output_file_id" in ended.out


def test_watch_waits_an_outage_out(cli: Run, emulator: Emulator) -> None:
    batch = finished(emulator)
    emulator.add_fault({"on": {"path": "/v1/batches/*"}, "do": {"status": 503}, "times": 3})
    ended = cli("show", batch.id, "--watch", "--interval", "0.01")
    assert ended.code == 0
    assert ended.err.count("Trying again until the batch can be seen") == 1


def test_watch_ends_at_once_at_what_does_not_pass(cli: Run, emulator: Emulator) -> None:
    assert "HTTP 404" in cli("show", "batch_nope", "--watch", "--interval", "0.01").problem


def test_watch_of_a_batch_that_came_to_nothing_is_an_error(cli: Run, emulator: Emulator) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": [{"code": "bad", "message": "m"}]}})
    batch = finished(emulator)
    ended = cli("show", batch.id, "--watch")
    assert ended.code == 1
    assert "failed validation; nothing ran or was billed" in ended.err.splitlines()[-1]
    assert "bad: m" in ended.out
    assert cli("show", batch.id).code == 0


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_cancel_stops_what_it_can_whatever_becomes_of_the_others(cli: Run, emulator: Emulator) -> None:
    one, other = submit(emulator), submit(emulator)
    emulator.advance(10)
    ended = cli("cancel", one.id, "batch_nope", other.id, "--json")
    assert ended.code == 1
    assert "batch_nope: " in ended.err
    assert [(line["id"], line["status"]) for line in ended.lines] == [(one.id, "cancelling"), (other.id, "cancelling")]
    with client_of(emulator) as client:
        assert {batch.status for batch in client.list_batches()} == {"cancelling"}


def test_cancel_of_a_batch_that_is_over_changes_nothing(cli: Run, emulator: Emulator) -> None:
    batch = finished(emulator)
    ended = cli("cancel", batch.id)
    assert (ended.code, ended.out) == (0, f"{batch.id} is completed; 3 of 3 requests are answered\n")


def test_cancel_of_an_unknown_batch_is_one_line(cli: Run) -> None:
    ended = cli("cancel", "batch_nope")
    assert ended.code == 1
    assert "HTTP 404" in ended.problem
