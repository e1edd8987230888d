"""results and clean-files."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from airflow_provider_openai_batches.api.models import Batch, File
from airflow_provider_openai_batches.emulator import Emulator
from tests.cli.conftest import CHAT, Run, client_of, finished, submit
from tests.conftest import API_KEY

# --- results ---------------------------------------------------------------------------------------------------------


def contents(emulator: Emulator, batch: Batch, tmp_path: Path) -> bytes:
    """The files of a batch, one after the other."""
    assert batch.output_file_id
    assert batch.error_file_id
    with client_of(emulator) as client:
        client.download_file(batch.output_file_id, tmp_path / "a")
        client.download_file(batch.error_file_id, tmp_path / "b")
    return (tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes()


@pytest.fixture
def batch_with_one_error(emulator: Emulator) -> Batch:
    emulator.add_fault({"on": {"custom_id": "row-1"}, "do": {"outcome": "error"}})
    return finished(emulator, 10)


def test_results_are_the_answers_and_then_the_errors(
    cli: Run, emulator: Emulator, batch_with_one_error: Batch, tmp_path: Path
) -> None:
    batch = batch_with_one_error
    expected = contents(emulator, batch, tmp_path)
    printed = cli("results", batch.id)
    assert (printed.code, printed.content, printed.err) == (0, expected, "")
    target = tmp_path / "here" / "rows.jsonl"
    target.parent.mkdir()
    target.write_text("what was here before")
    ended = cli("results", batch.id, "-o", str(target))
    assert (ended.code, ended.content) == (0, b"")
    assert "9 answers and 1 error to" in ended.err
    assert target.read_bytes() == expected
    assert list(target.parent.iterdir()) == [target]


def test_results_tell_a_script_what_was_written(cli: Run, batch_with_one_error: Batch, tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    [line] = cli("results", batch_with_one_error.id, "-o", str(target), "--json").lines
    assert line == {
        "id": batch_with_one_error.id,
        "status": "completed",
        "output_path": str(target),
        "request_counts": {"total": 10, "completed": 9, "failed": 1},
        "output_lines": 9,
        "error_lines": 1,
    }


def test_a_last_line_without_an_end_does_not_run_into_the_next_file(
    cli: Run, emulator: Emulator, batch_with_one_error: Batch
) -> None:
    whole = cli("results", batch_with_one_error.id).content
    answers = whole.splitlines(keepends=True)[:9]
    cut = b"".join(answers).rstrip(b"\n").decode()
    path = f"/v1/files/{batch_with_one_error.output_file_id}/content"
    emulator.add_fault({"on": {"path": path}, "do": {"status": 200, "body": cut, "headers": {"content-type": "x"}}})
    assert cli("results", batch_with_one_error.id).content == whole


def test_results_of_a_batch_that_goes_on_are_refused(cli: Run, emulator: Emulator) -> None:
    batch = submit(emulator)
    ended = cli("results", batch.id)
    assert (ended.code, ended.content) == (1, b"")
    assert f"openai-batches show {batch.id} --watch" in ended.problem


def test_results_of_a_failed_batch_say_why_there_are_none(cli: Run, emulator: Emulator) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": [{"code": "bad", "message": "m"}]}})
    assert "failed validation" in cli("results", finished(emulator).id).problem


def test_results_of_an_expired_batch_are_what_it_finished(cli: Run, emulator: Emulator) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "expire", "finished": 0.4}})
    batch = submit(emulator, 10)
    emulator.advance(2 * 86_400)
    ended = cli("results", batch.id)
    assert ended.code == 0
    assert sum(line["error"] is None for line in ended.lines) == 4


def test_a_file_that_lacks_rows_replaces_nothing(cli: Run, emulator: Emulator, tmp_path: Path) -> None:
    emulator.add_fault({"on": {"custom_id": "row-1"}, "do": {"outcome": "missing"}})
    batch = finished(emulator, 3)
    target = tmp_path / "rows.jsonl"
    target.write_text("good")
    ended = cli("results", batch.id, "-o", str(target))
    assert ended.code == 1
    assert "the output file has 2 lines" in ended.problem
    assert (target.read_text(), list(tmp_path.iterdir())) == ("good", [target])
    assert cli("results", batch.id).content == b""


def test_a_place_that_is_not_there_costs_no_download(cli: Run, tmp_path: Path) -> None:
    assert "There is no directory" in cli("results", "batch_1", "-o", str(tmp_path / "no" / "rows")).problem


# --- clean-files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def in_40_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's clock, 40 days after what the emulator's says."""
    turn_clock(monkeypatch, 40 * 86_400)


def turn_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the user's clock be ahead of the emulator's."""
    later = time.time() + seconds
    monkeypatch.setattr("airflow_provider_openai_batches.cli.files.time", SimpleNamespace(time=lambda: later))


def file_ids(emulator: Emulator) -> set[str]:
    with client_of(emulator) as client:
        return {file.id for file in client.list_files()}


def test_only_files_of_batches_that_are_over_are_deleted(cli: Run, emulator: Emulator, in_40_days: None) -> None:
    over, active = finished(emulator), submit(emulator)
    ended = cli("clean-files", "--older-than", "30d", "--yes", "--json")
    assert ended.code == 0
    assert {line["id"] for line in ended.lines} == {over.input_file_id, over.output_file_id}
    assert all(line["deleted"] and line["error"] is None for line in ended.lines)
    assert file_ids(emulator) == {active.input_file_id}


def test_an_input_that_another_batch_still_reads_stays(cli: Run, emulator: Emulator, in_40_days: None) -> None:
    over = finished(emulator)
    with client_of(emulator) as client:
        client.create_batch(over.input_file_id or "", "/v1/chat/completions")
    cli("clean-files", "--older-than", "30d", "--yes")
    assert file_ids(emulator) == {over.input_file_id}


def test_what_is_not_old_enough_stays(cli: Run, emulator: Emulator, in_40_days: None) -> None:
    finished(emulator)
    before = file_ids(emulator)
    ended = cli("clean-files", "--older-than", "60d", "--yes")
    assert (ended.code, ended.err) == (0, "No files to delete.\n")
    assert file_ids(emulator) == before


def test_dry_run_deletes_nothing(cli: Run, emulator: Emulator, in_40_days: None) -> None:
    batch = finished(emulator)
    before = file_ids(emulator)
    ended = cli("clean-files", "--older-than", "30d", "--dry-run")
    assert batch.output_file_id
    assert batch.output_file_id in ended.out
    assert "Would delete 2 files" in ended.err
    lines = cli("clean-files", "--older-than", "30d", "--dry-run", "--json").lines
    assert [line["deleted"] for line in lines] == [False, False]
    assert file_ids(emulator) == before


def test_a_purpose_leaves_the_other_alone(cli: Run, emulator: Emulator, in_40_days: None) -> None:
    batch = finished(emulator)
    cli("clean-files", "--older-than", "30d", "--yes", "--purpose", "batch_output")
    assert file_ids(emulator) == {batch.input_file_id}


def list_everything_whatever_is_asked_for(emulator: Emulator) -> None:
    """Make a service of it that does not know the filter by purpose."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    whole = requests.get(f"{emulator.base_url}/files", headers=headers, timeout=10).json()
    fault = {"on": {"method": "GET", "path": "/v1/files"}, "do": {"status": 200, "body": whole}}
    emulator.add_fault({**fault, "times": None})


def test_a_purpose_is_kept_to_where_the_service_lists_all_files(cli: Run, emulator: Emulator, in_40_days: None) -> None:
    batch = finished(emulator)
    list_everything_whatever_is_asked_for(emulator)
    lines = cli("clean-files", "--older-than", "30d", "--yes", "--purpose", "batch_output", "--json").lines
    assert [line["id"] for line in lines] == [batch.output_file_id]
    assert emulator.count("DELETE", "/v1/files/{file_id}") == 1


def test_a_file_that_is_listed_twice_is_deleted_once(cli: Run, emulator: Emulator, in_40_days: None) -> None:
    batch = finished(emulator)
    list_everything_whatever_is_asked_for(emulator)
    ended = cli("clean-files", "--older-than", "30d", "--yes", "--json")
    assert sorted(line["id"] for line in ended.lines) == sorted([batch.input_file_id, batch.output_file_id])
    assert emulator.count("DELETE", "/v1/files/{file_id}") == 2


class Terminal(io.StringIO):
    """Stands in for a terminal with a user who answers, and does something else before."""

    def __init__(self, think: Callable[[], None]) -> None:
        super().__init__("y\n")
        self._think = think

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        self._think()
        return super().readline()


def test_an_input_that_is_used_again_stays_behind_a_hundred_younger_batches_and_a_clock_that_is_wrong(
    cli: Run, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = finished(emulator)
    turn_clock(monkeypatch, 6 * 3_600)

    def use_it_again() -> None:
        other = submit(emulator)
        with client_of(emulator) as client:
            client.create_batch(over.input_file_id or "", CHAT)
            for _ in range(100):
                client.create_batch(other.input_file_id or "", CHAT)

    monkeypatch.setattr("sys.stdin", Terminal(use_it_again))
    ended = cli("clean-files", "--older-than", "1h")
    assert (ended.code, "Deleted 1 file," in ended.err) == (0, True)
    assert over.input_file_id in file_ids(emulator)


def test_a_time_that_is_ahead_of_our_clock_is_no_age(cli: Run, emulator: Emulator) -> None:
    emulator.advance(3 * 86_400)
    batch = finished(emulator)
    ended = cli("clean-files", "--older-than", "0s", "--yes")
    assert ended.code == 0
    assert "2 files bear a time up to 3 d 0 h ahead of this machine's clock" in ended.err
    assert file_ids(emulator) == {batch.input_file_id, batch.output_file_id}
    assert "3 d 0 h ahead" in cli("list").out
    assert "ahead" not in cli("clean-files", "--older-than", "0s", "--purpose", "batch", "--json", "--yes").out


def test_without_a_terminal_it_has_to_be_told(cli: Run, emulator: Emulator, in_40_days: None) -> None:
    finished(emulator)
    before = file_ids(emulator)
    ended = cli("clean-files", "--older-than", "30d")
    assert ended.code == 2
    assert "--yes" in ended.err
    assert file_ids(emulator) == before


def test_a_file_that_cannot_be_deleted_saves_no_other(cli: Run, emulator: Emulator, in_40_days: None) -> None:
    batch = finished(emulator)
    fault = {"on": {"method": "DELETE", "path": f"/v1/files/{batch.output_file_id}"}, "do": {"status": 403}}
    emulator.add_fault({**fault, "times": None})
    ended = cli("clean-files", "--older-than", "30d", "--yes", "--json")
    assert ended.code == 1
    assert {line["id"]: line["deleted"] for line in ended.lines} == {
        batch.input_file_id: True,
        batch.output_file_id: False,
    }
    assert file_ids(emulator) == {batch.output_file_id}


def test_json_of_a_file_has_the_apis_names(cli: Run, emulator: Emulator, in_40_days: None) -> None:
    finished(emulator)
    line = json.loads(cli("clean-files", "--older-than", "30d", "--dry-run", "--json").content.splitlines()[0])
    assert set(line) == {*File.__struct_fields__, "deleted", "error"}


# --- files -----------------------------------------------------------------------------------------------------------


def test_how_much_of_the_room_is_used(cli: Run, emulator: Emulator) -> None:
    batch = finished(emulator)
    with client_of(emulator) as client:
        sizes = {file.purpose: file.bytes for file in client.list_files()}
    ended = cli("files", "--json")
    shelves = {line["purpose"]: line for line in ended.lines}
    assert {purpose: (shelf["files"], shelf["bytes"]) for purpose, shelf in shelves.items()} == {
        purpose: (1, size) for purpose, size in sizes.items()
    }
    assert batch.output_file_id
    shown = cli("files")
    assert shown.code == 0
    assert [line.split()[:2] for line in shown.out.splitlines()[1:]] == [["batch", "1"], ["batch_output", "1"]]
    assert "2 files" in shown.err
    assert "of the 2.5 TB that a project has at OpenAI" in shown.err


def test_no_files_are_no_error(cli: Run, emulator: Emulator) -> None:
    ended = cli("files")
    assert (ended.code, "0 files, 0 B: 0.0%" in ended.err) == (0, True)
