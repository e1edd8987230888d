"""Answers that are read while their batch goes on, where the service streams them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.cli.__main__ import main
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.testing import faults
from tests.dialects.conftest import NewEmulator, new_batch

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("no_pauses")]


@pytest.fixture(params=["doubleword"])
def emulator(request: pytest.FixtureRequest, new_emulator: NewEmulator) -> Emulator:
    return new_emulator(request.param, seconds_per_look=0)


@pytest.fixture
def hook(emulator: Emulator) -> OpenAIBatchesHook:
    return OpenAIBatchesHook()


def custom_ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]


def test_each_answer_is_read_once_while_the_batch_goes_on(
    hook: OpenAIBatchesHook, emulator: Emulator, tmp_path: Path
) -> None:
    batch_id = new_batch(hook, rows=12)
    part = tmp_path / "part"
    assert hook.download_partial(batch_id, part) == (0, 0, False)
    emulator.advance(3 + 40)
    first = hook.download_partial(batch_id, part)
    assert first == (4, 4, False)
    read = custom_ids(part)
    emulator.advance(40)
    second = hook.download_partial(batch_id, part, offset=first.next_offset)
    assert second == (4, 8, False)
    read += custom_ids(part)
    emulator.advance(60)
    last = hook.download_partial(batch_id, part, offset=second.next_offset)
    assert last == (4, 12, True)
    read += custom_ids(part)
    assert sorted(read) == sorted(f"row-{number}" for number in range(12))
    batch = hook.retrieve_batch(batch_id)
    assert batch.output_file_id is not None
    assert [json.loads(line)["custom_id"] for line in hook.iter_lines(batch.output_file_id)] == read


def test_a_read_that_is_cut_is_repeated_and_a_half_line_is_left_for_later(
    hook: OpenAIBatchesHook, emulator: Emulator, tmp_path: Path
) -> None:
    batch_id = new_batch(hook, rows=4)
    emulator.advance(3 + 60)
    emulator.add_fault(faults.truncated_download(100))
    assert hook.download_partial(batch_id, tmp_path / "part").lines == 2
    assert len(custom_ids(tmp_path / "part")) == 2
    content = (tmp_path / "part").read_text()
    half = content[: len(content) - 20]
    answer = {"status": 200, "body": half, "headers": {"Content-Type": "application/x-ndjson"}}
    emulator.add_fault({"on": {"path": "/files/*/content"}, "do": answer})
    partial = hook.download_partial(batch_id, tmp_path / "half")
    assert (partial.lines, partial.next_offset) == (1, 1)
    assert (tmp_path / "half").read_text() == content[: content.index("\n") + 1]


def test_the_command_prints_what_is_answered_and_where_to_go_on(
    hook: OpenAIBatchesHook, emulator: Emulator, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    batch_id = new_batch(hook, rows=4)
    emulator.advance(3 + 60)
    capfdbinary.readouterr()
    command = ["results", batch_id, "--conn-id", "openai_batches_default", "--partial"]
    assert main(command) == 0
    out, err = capfdbinary.readouterr()
    assert len(out.splitlines()) == 2
    assert b"2 answers from number 0 on; go on with --offset 2." in err
    emulator.advance(200)
    assert main([*command, "--offset", "2", "-o", str(tmp_path / "rest"), "--json"]) == 0
    out, _ = capfdbinary.readouterr()
    assert json.loads(out) == {"id": batch_id, "lines": 2, "next_offset": 4, "is_complete": True}
    assert len(custom_ids(tmp_path / "rest")) == 2


@pytest.mark.parametrize("name", ["openai", "azure", "groq", "together", "dashscope", "litellm"])
def test_other_services_say_that_results_come_at_the_end(new_emulator: NewEmulator, name: str, tmp_path: Path) -> None:
    emulator = new_emulator(name)
    with pytest.raises(InvalidInputError, match="hands out results when a batch is over"):
        OpenAIBatchesHook().download_partial("batch_1", tmp_path / "part")
    assert emulator.calls == []
