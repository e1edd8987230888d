"""Download: what was paid for is on disk, whole, before anything is judged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_openai_batches.api.errors import (
    BatchFailedError,
    BatchUnfinishedError,
    DownloadIncompleteError,
    InvalidInputError,
    NoRequestSucceededError,
    NotFoundError,
    OpenAIBatchesError,
)
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchDownloadOperator
from tests.airflow.conftest import Attempts, EmulatorTime, new_batch

pytestmark = pytest.mark.usefixtures("connection", "clock", "memory_storage")

DONE_AFTER_S = 200


@pytest.fixture
def batch_id(connection: Any, emulator: Emulator) -> str:
    return new_batch(emulator)


def download(batch_id: Any, output_path: Any) -> dict[str, Any]:
    operator = OpenAIBatchDownloadOperator(task_id="download", batch_id=batch_id, output_path=output_path)
    return operator.execute(Attempts(store=None).next())


def custom_ids(path: Any) -> set[str]:
    return {json.loads(line)["custom_id"] for line in ObjectStoragePath(path).read_bytes().splitlines()}


@pytest.fixture(params=["local", "local uri", "object storage"])
def output_path(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return {
        "local": str(tmp_path / "out"),
        "local uri": (tmp_path / "out").as_uri(),
        "object storage": ObjectStoragePath(f"memory://{tmp_path.name}/out"),
    }[request.param]


def test_both_files_are_written(batch_id: str, emulator: Emulator, output_path: Any) -> None:
    emulator.add_fault({"on": {"custom_id": "row-1"}, "do": {"outcome": "error"}})
    emulator.advance(DONE_AFTER_S)
    found = download(batch_id, output_path)
    assert found["output_path"].endswith(f"out/{batch_id}.output.jsonl")
    assert found["error_path"].endswith(f"out/{batch_id}.errors.jsonl")
    assert custom_ids(found["output_path"]) == {"row-0", "row-2"}
    assert custom_ids(found["error_path"]) == {"row-1"}
    assert found["batch_id"] == batch_id
    assert found["status"] == "completed"
    assert found["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert found["usage"]["total_tokens"] > 0


def test_prices_that_cannot_be_read_lose_no_download(
    batch_id: str, connection: Callable[..., None], emulator: Emulator, tmp_path: Path
) -> None:
    emulator.advance(DONE_AFTER_S)
    connection(extra={"prices": {"gpt-4o-mini": {"input": "ten"}}})
    assert download(batch_id, tmp_path)["status"] == "completed"


def test_local_paths_are_plain(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(DONE_AFTER_S)
    assert download(batch_id, str(tmp_path))["output_path"] == str(tmp_path / f"{batch_id}.output.jsonl")


LONG_ID = "batch_" + "bGl0ZWxsbV9wcm94eT" * 13


@pytest.mark.parametrize(
    ("service_id", "name"),
    [
        ("../../../evil/batch_1", "_________evil_batch_1-[0-9a-f]{12}"),
        (LONG_ID, LONG_ID[:128] + "-[0-9a-f]{12}"),
        ("batch_1.output", "batch_1_output-[0-9a-f]{12}"),
        ("Batch-1_a", "Batch-1_a"),
    ],
)
def test_files_stay_in_the_directory_whatever_the_id_is(
    batch_id: str, emulator: Emulator, output_path: Any, service_id: str, name: str
) -> None:
    emulator.advance(DONE_AFTER_S)
    emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"set": {"id": service_id}}, "times": None})
    found = download(batch_id, output_path)
    assert re.fullmatch(rf".*/out/{name}\.output\.jsonl", found["output_path"])
    assert ObjectStoragePath(found["output_path"]).exists()
    assert [path.name for path in ObjectStoragePath(str(output_path)).iterdir()] == [Path(found["output_path"]).name]


def test_ids_that_differ_get_files_that_differ(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(DONE_AFTER_S)
    for service_id in (f"{LONG_ID}a", f"{LONG_ID}b", "a/b", "a.b", "a_b"):
        emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"set": {"id": service_id}}})
        download(batch_id, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_missing_file_is_none(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(DONE_AFTER_S)
    assert download(batch_id, tmp_path)["error_path"] is None


def test_empty_file_id_is_no_file(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(DONE_AFTER_S)
    emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"set": {"error_file_id": ""}}, "times": None})
    found = download(batch_id, tmp_path)
    assert (found["error_path"], custom_ids(found["output_path"])) == (None, {"row-0", "row-1", "row-2"})


def test_again_writes_the_same_files(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(DONE_AFTER_S)
    assert download(batch_id, tmp_path) == download(batch_id, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_lost_line_is_noticed(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(DONE_AFTER_S)
    counts = {"total": 4, "completed": 4, "failed": 0}
    emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"patch": {"request_counts": counts}}, "times": None})
    with pytest.raises(DownloadIncompleteError, match="4 requests completed, but the output file has 3 lines"):
        download(batch_id, tmp_path)


def answered(emulator: Emulator, file_id: str, body: str) -> None:
    """Let a file have another content."""
    on = {"path": f"/files/{file_id}/content"}
    emulator.add_fault({"on": on, "do": {"status": 200, "body": body, "headers": JSONL}, "times": None})


@pytest.mark.parametrize("body", ['{"custom_id": "a"}\n', "\n\n\n", ""], ids=["short", "blank lines", "empty"])
def test_output_that_is_not_whole_leaves_the_good_one_in_place(
    batch_id: str, emulator: Emulator, output_path: Any, body: str
) -> None:
    emulator.advance(DONE_AFTER_S)
    good = download(batch_id, output_path)["output_path"]
    answered(emulator, emulator.batches()[0]["output_file_id"], body)
    with pytest.raises(DownloadIncompleteError):
        download(batch_id, output_path)
    assert custom_ids(good) == {"row-0", "row-1", "row-2"}


def test_output_that_is_not_whole_is_kept_under_another_name(
    batch_id: str, emulator: Emulator, output_path: Any
) -> None:
    emulator.advance(DONE_AFTER_S)
    answered(emulator, emulator.batches()[0]["output_file_id"], '{"custom_id": "a"}\n')
    with pytest.raises(DownloadIncompleteError, match=rf"is in \S+/{batch_id}.output.incomplete.jsonl"):
        download(batch_id, output_path)
    [kept] = ObjectStoragePath(str(output_path)).iterdir()
    assert kept.name == f"{batch_id}.output.incomplete.jsonl"
    assert custom_ids(str(kept)) == {"a"}


def test_whole_output_takes_the_place_of_one_that_was_not(batch_id: str, emulator: Emulator, output_path: Any) -> None:
    emulator.advance(DONE_AFTER_S)
    answered(emulator, emulator.batches()[0]["output_file_id"], '{"custom_id": "a"}\n')
    with pytest.raises(DownloadIncompleteError):
        download(batch_id, output_path)
    emulator.clear_faults()
    good = download(batch_id, output_path)["output_path"]
    assert [path.name for path in ObjectStoragePath(str(output_path)).iterdir()] == [f"{batch_id}.output.jsonl"]
    assert custom_ids(good) == {"row-0", "row-1", "row-2"}


def test_lost_error_line_is_noticed(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    for custom_id in ("row-1", "row-2"):
        emulator.add_fault({"on": {"custom_id": custom_id}, "do": {"outcome": "error"}})
    emulator.advance(DONE_AFTER_S)
    [batch] = emulator.batches()
    assert batch["request_counts"]["failed"] == 2
    answered(emulator, batch["error_file_id"], '{"custom_id": "row-1"}\n')
    with pytest.raises(DownloadIncompleteError, match="2 requests failed, but the error file has 1 lines"):
        download(batch_id, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{batch_id}.output.jsonl", f"{batch_id}.errors.incomplete.jsonl"}


def test_errors_in_the_output_file_count(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.add_fault({"on": {"custom_id": "row-1"}, "do": {"outcome": "error"}})
    emulator.advance(DONE_AFTER_S)
    counts = {"total": 3, "completed": 1, "failed": 2}
    emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"set": {"request_counts": counts}}, "times": None})
    found = download(batch_id, tmp_path)
    assert [len(custom_ids(found[name])) for name in ("output_path", "error_path")] == [2, 1]


def test_empty_output_without_counts_is_not_a_success(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(DONE_AFTER_S)
    emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"set": {"request_counts": None}}, "times": None})
    answered(emulator, emulator.batches()[0]["output_file_id"], "")
    with pytest.raises(OpenAIBatchesError, match="names no output file, or an empty one"):
        download(batch_id, tmp_path)
    assert not list(tmp_path.iterdir())


def test_last_line_needs_no_newline(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(DONE_AFTER_S)
    unended = b"\n".join([b'{"custom_id": "a"}'] * 3).decode()
    emulator.add_fault({"on": {"path": "/files/*/content"}, "do": {"status": 200, "body": unended, "headers": JSONL}})
    assert custom_ids(download(batch_id, tmp_path)["output_path"]) == {"a"}


JSONL = {"Content-Type": "application/jsonl"}


def test_all_failed_raises_with_the_reasons_written(emulator: Emulator, tmp_path: Path) -> None:
    batch_id = new_batch(emulator, {"outcome": "all_failed"})
    emulator.advance(DONE_AFTER_S)
    with pytest.raises(NoRequestSucceededError, match="all 3 requests failed"):
        download(batch_id, tmp_path)
    assert custom_ids(tmp_path / f"{batch_id}.errors.jsonl") == {"row-0", "row-1", "row-2"}


def test_failed_batch_raises_its_errors(emulator: Emulator, tmp_path: Path) -> None:
    batch_id = new_batch(emulator, {"outcome": "token_limit_exceeded"})
    emulator.advance(DONE_AFTER_S)
    with pytest.raises(BatchFailedError, match="token_limit_exceeded"):
        download(batch_id, tmp_path)


def test_expired_batch_gives_what_was_finished(emulator: Emulator, tmp_path: Path) -> None:
    batch_id = new_batch(emulator, {"outcome": "expire", "finished": 0.7})
    emulator.advance(2 * 86_400)
    found = download(batch_id, tmp_path)
    assert found["status"] == "expired"
    assert found["request_counts"]["completed"] == 2
    assert len(custom_ids(found["output_path"])) == 2
    assert custom_ids(found["output_path"]) | custom_ids(found["error_path"]) == {"row-0", "row-1", "row-2"}


def test_expired_batch_with_nothing_finished_raises(emulator: Emulator, tmp_path: Path) -> None:
    batch_id = new_batch(emulator, {"outcome": "expire", "finished": 0})
    emulator.advance(2 * 86_400)
    with pytest.raises(BatchUnfinishedError, match="Nothing was finished"):
        download(batch_id, tmp_path)


def test_files_that_are_named_late_are_waited_for(
    batch_id: str, emulator: Emulator, tmp_path: Path, clock: EmulatorTime
) -> None:
    emulator.advance(DONE_AFTER_S)
    emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"set": {"output_file_id": None}}, "times": 4})
    assert download(batch_id, tmp_path)["output_path"]
    assert 0 < clock.slept <= 30


@pytest.mark.parametrize("counts", [{"total": 3, "completed": 3, "failed": 0}, None])
def test_completed_batch_that_never_names_its_output_is_not_a_success(
    batch_id: str, emulator: Emulator, tmp_path: Path, clock: EmulatorTime, counts: Any
) -> None:
    emulator.advance(DONE_AFTER_S)
    lost = {"output_file_id": None, "request_counts": counts}
    emulator.add_fault({"on": {"path": "/batches/*"}, "do": {"set": lost}, "times": None})
    with pytest.raises(OpenAIBatchesError, match="the service names no output file"):
        download(batch_id, tmp_path)
    assert clock.slept <= 610


def test_deleted_file_is_named(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(DONE_AFTER_S)
    output_file_id = emulator.batches()[0]["output_file_id"]
    OpenAIBatchesHook().delete_file(output_file_id)
    with pytest.raises(NotFoundError, match=output_file_id):
        download(batch_id, tmp_path)


def test_batch_that_is_not_over_is_refused(batch_id: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(10)
    with pytest.raises(InvalidInputError, match=f"batch_id: batch {batch_id} is still in_progress. Put an OpenAIBatch"):
        download(batch_id, tmp_path)


@pytest.mark.parametrize("missing", [None, "", "None"])
def test_missing_id_is_refused(missing: Any, emulator: Emulator, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="batch_id: expected an id"):
        download(missing, tmp_path)
    assert emulator.calls == []


@pytest.mark.parametrize("wrong", [None, "", "None", 5, {}, [], b"labels"])
def test_what_is_no_path_is_refused(batch_id: str, wrong: Any, emulator: Emulator) -> None:
    emulator.advance(DONE_AFTER_S)
    with pytest.raises(InvalidInputError, match="output_path: expected a directory"):
        download(batch_id, wrong)


def test_path_in_a_storage_without_a_provider_is_refused(batch_id: str, emulator: Emulator) -> None:
    emulator.advance(DONE_AFTER_S)
    with pytest.raises(InvalidInputError, match=r"output_path: nosuch:.*Install the Airflow provider"):
        download(batch_id, "nosuch://bucket/answers")


@pytest.mark.parametrize("char", ["\0", "\ud800"])
def test_path_that_no_file_can_have_is_refused(batch_id: str, char: str, emulator: Emulator, tmp_path: Path) -> None:
    emulator.advance(DONE_AFTER_S)
    with pytest.raises(InvalidInputError, match=r"output_path: .* Take it out"):
        download(batch_id, f"{tmp_path}/{char}")
