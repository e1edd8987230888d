"""Files of batches at the services: gone where a batch says whose it is, and an error where none can."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.cli.__main__ import main
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchCleanupOperator
from tests.dialects.conftest import SERVICES, NewEmulator, new_batch

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("no_pauses")]

WITHOUT_METADATA = ("together", "dashscope")
OWNER = {"airflow_dag_id": "labels", "airflow_run_id": "run"}


@pytest.fixture(autouse=True)
def in_90_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of operator and command is far ahead of the emulator's."""
    later = time.time() + 90 * 86_400
    clock = SimpleNamespace(time=lambda: later)
    for module in ("operators.cleanup", "cli.files"):
        monkeypatch.setattr(f"airflow_provider_openai_batches.{module}.time", clock)


def files_of_a_batch(hook: OpenAIBatchesHook) -> set[str]:
    """Buy a batch as a DAG does; return the ids of its files."""
    hook.wait_for_batch(new_batch(hook, metadata=OWNER), poll_interval=1)
    return {file.id for file in hook.list_files()}


@pytest.mark.parametrize("service", [name for name in SERVICES if name not in WITHOUT_METADATA])
def test_files_of_a_batch_that_says_whose_it_is_go(
    new_emulator: NewEmulator, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    new_emulator(service)
    hook = OpenAIBatchesHook()
    files = files_of_a_batch(hook)
    deleted = OpenAIBatchCleanupOperator(task_id="clean", only_succeeded=False).execute({})
    assert deleted["files"] == len(files) >= 2
    assert list(hook.list_files()) == []
    assert ("may drop the metadata" in caplog.text) == (service == "litellm")


@pytest.mark.parametrize("service", WITHOUT_METADATA)
def test_service_whose_batches_say_nothing_is_refused_and_told_what_does_it(
    new_emulator: NewEmulator, service: str
) -> None:
    new_emulator(service)
    hook = OpenAIBatchesHook()
    files = files_of_a_batch(hook)
    with pytest.raises(
        InvalidInputError, match=r"conn_id: .* keeps no metadata.*delete_remote_files=True.*clean-files"
    ):
        OpenAIBatchCleanupOperator(task_id="clean", only_succeeded=False).execute({})
    assert {file.id for file in hook.list_files()} == files
    assert main(["clean-files", "--conn-id", "openai_batches_default", "--older-than", "30d", "--yes"]) == 0
    assert list(hook.list_files()) == []
