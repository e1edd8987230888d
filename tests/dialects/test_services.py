"""What is true of one service only."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.providers.standard.triggers.temporal import DateTimeTrigger

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.dialects import DIALECTS
from airflow_provider_openai_batches.api.errors import (
    APIConnectionError,
    BadRequestError,
    FileNotReadyError,
    InvalidInputError,
    InvalidResponseError,
    QueueFullError,
)
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.emulator.dialects import DIALECTS as SPOKEN
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
from airflow_provider_openai_batches.operators.opening import open_job
from airflow_provider_openai_batches.testing import faults
from airflow_provider_openai_batches.testing.connection import EmulatorConnection
from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger
from tests.airflow.conftest import Attempts, Store, request_lines
from tests.conftest import API_KEY
from tests.dialects.conftest import CHAT, SERVICES, NewEmulator, new_batch

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("no_pauses")]

RunTrigger = Callable[..., list[Any]]


def service(*names: str) -> pytest.MarkDecorator:
    """Run a test at these services, rather than at all."""
    return pytest.mark.parametrize("emulator", names, indirect=True)


def connected(emulator: Emulator, pauses: list[float] | None = None) -> BatchClient:
    settings = ClientSettings(
        api_key=API_KEY,
        base_url=emulator.base_url,
        dialect=DIALECTS[emulator.dialect.removesuffix("-classic")],
    )
    return BatchClient(settings, sleep=(pauses if pauses is not None else []).append)


def uploaded(client: BatchClient, rows: int = 1, **options: Any) -> str:
    return client.upload_file(lambda: io.BytesIO(request_lines(rows)), filename="r.jsonl", **options).id


def test_every_dialect_is_spoken_by_the_emulator() -> None:
    assert {name.removesuffix("-classic") for name in SPOKEN} == set(DIALECTS)
    assert {name.removesuffix("-classic") for name in SERVICES} == set(DIALECTS) - {"openai"}


# --- Azure -----------------------------------------------------------------------------------------------------------


@service("azure", "azure-classic")
def test_azure_is_given_time_to_take_a_file_in(emulator: Emulator) -> None:
    pauses: list[float] = []
    with connected(emulator, pauses) as client:
        file_id = uploaded(client)
        assert client.retrieve_file(file_id).status == "processed"
        assert client.create_batch(file_id, CHAT).status == "validating"
    assert pauses == [1.0, 2.0]


@service("azure")
def test_azures_file_of_somebody_else_is_waited_for_before_a_create(emulator: Emulator) -> None:
    with connected(emulator) as client:
        emulator.add_fault({"on": {"path": "/files"}, "do": {"set": {"status": "processed"}}})
        file_id = uploaded(client)
        with pytest.raises(BadRequestError, match="is in 'pending' state"):
            client.create_batch(file_id, CHAT)
    assert OpenAIBatchesHook().create_batch(file_id, CHAT).status == "validating"


@service("azure")
def test_azures_file_that_never_gets_ready_is_named(emulator: Emulator) -> None:
    pauses: list[float] = []
    emulator.add_fault({"on": {"path": "/files/*"}, "do": {"set": {"status": "pending"}}, "times": None})
    with connected(emulator, pauses) as client, pytest.raises(FileNotReadyError) as raised:
        uploaded(client)
    [file] = emulator.files()
    assert f"File {file['id']} (r.jsonl) is still pending after" in str(raised.value)
    assert raised.value.transient
    assert 900 <= sum(pauses) <= 920
    emulator.clear_faults()
    emulator.add_fault({"on": {"path": "/files/*"}, "do": {"set": {"status": "error"}}, "times": None})
    with connected(emulator) as client, pytest.raises(FileNotReadyError, match="could not take in file") as raised:
        uploaded(client)
    assert not raised.value.transient


@service("azure")
def test_azures_full_queue_is_waited_for_with_the_same_file(emulator: Emulator, tmp_path: Path) -> None:
    message = "The number of enqueued tokens has surpassed the configured limit of 30K for the deployment 'm'."
    body = {"error": {"code": "token_limit_exceeded", "message": message}}
    emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": {"status": 400, "body": body}})
    with connected(emulator) as client, pytest.raises(QueueFullError):
        client.create_batch(uploaded(client), CHAT)
    emulator.add_fault({"on": {"method": "POST", "path": "/batches"}, "do": {"status": 400, "body": body}})
    files = len(emulator.files())
    operator = OpenAIBatchOperator(task_id="t", requests=["a"], output_path=str(tmp_path), model="m")
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(Attempts(store=Store()).next())
    assert isinstance(deferred.value.trigger, DateTimeTrigger)
    assert (len(emulator.batches()), len(emulator.files())) == (0, files + 1)


@service("azure")
def test_azure_takes_a_hundred_thousand_requests(emulator: Emulator, tmp_path: Path) -> None:
    hook = OpenAIBatchesHook()
    hook.upload_file(request_lines(50_001))
    with pytest.raises(InvalidInputError, match="line 100001: the file has more than 100,000 requests"):
        hook.upload_file(request_lines(100_001))


@service("azure")
def test_azures_files_expire_by_its_own_notation_and_range(emulator: Emulator) -> None:
    with connected(emulator) as client:
        file_id = uploaded(client, expires_after=20 * 86_400)
        file = client.retrieve_file(file_id)
        assert file.expires_at is not None
        assert file.created_at is not None
        assert file.expires_at - file.created_at == 20 * 86_400
        with pytest.raises(InvalidInputError, match=r"1,209,600 to 2,592,000 seconds \(14 days to 30 days\)"):
            uploaded(client, expires_after=3_600)


@service("azure")
def test_azures_batch_goes_on_after_its_window(emulator: Emulator, new_emulator: NewEmulator) -> None:
    emulator = new_emulator("azure", batch_seconds=72 * 3_600, seconds_per_look=0)
    batch_id = new_batch(OpenAIBatchesHook())
    emulator.advance(48 * 3_600)
    assert OpenAIBatchesHook().retrieve_batch(batch_id).status == "in_progress"
    emulator.advance(48 * 3_600)
    assert OpenAIBatchesHook().retrieve_batch(batch_id).status == "completed"


@service("azure-classic")
def test_azures_dated_api_can_have_another_version(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"dialect": "azure", "query": {"api-version": "2025-04-01-preview"}}
    EmulatorConnection(emulator, monkeypatch)(extra=extra)
    hook = OpenAIBatchesHook()
    assert hook.get_conn().settings.query == {"api-version": "2025-04-01-preview"}
    assert hook.test_connection()[0]


# --- Groq, Together, DashScope ---------------------------------------------------------------------------------------


@service("groq")
def test_groqs_list_that_starts_over_is_its_end_and_no_news(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    hook = OpenAIBatchesHook()
    made = [new_batch(hook) for _ in range(3)]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert [batch.id for batch in hook.list_batches()] == made[::-1]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@service("together")
def test_togethers_storage_is_not_told_the_key(emulator: Emulator) -> None:
    file_id = uploaded(connected(emulator), 3)
    assert [(call.method, call.route) for call in emulator.calls[:3]] == [
        ("POST", "/v1/files"),
        ("PUT", "/storage/{file_id}"),  # The emulator refuses it with a key.
        ("POST", "/v1/files/{file_id}/preprocess"),
    ]
    assert [file["id"] for file in emulator.files()] == [file_id]


@service("together")
def test_togethers_place_for_a_file_has_to_be_safe(emulator: Emulator) -> None:
    headers = {"Location": "ftp://somewhere/secret-grant", "X-Together-File-Id": "file-1"}
    emulator.add_fault({"on": {"path": "/files"}, "do": {"status": 302, "headers": headers}})
    with connected(emulator) as client, pytest.raises(InvalidResponseError, match="which is not safe") as raised:
        uploaded(client)
    assert "secret-grant" not in str(raised.value)


@service("together")
def test_togethers_storage_that_sends_the_file_on_has_not_taken_it(emulator: Emulator) -> None:
    emulator.add_fault({"on": {"path": "/storage/*"}, "do": {"status": 307, "headers": {"Location": "https://else"}}})
    with connected(emulator) as client, pytest.raises(InvalidResponseError, match="nothing is there"):
        uploaded(client)
    assert [call.method for call in emulator.calls] == ["POST", "PUT"], "what is not there is not reported"


@service("together")
def test_togethers_upload_is_tried_again(emulator: Emulator) -> None:
    emulator.add_fault({"on": {"path": "/storage/*"}, "do": {"status": 503}})
    emulator.add_fault({"on": {"path": "/storage/*"}, "do": {"drop": "before"}})
    emulator.add_fault({"on": {"path": "/files/*/preprocess"}, "do": {"status": 500}})
    file_id = uploaded(connected(emulator), 3)
    assert [file["id"] for file in emulator.files()] == [file_id]


@service("together", "dashscope")
def test_a_failed_batch_of_the_same_file_is_not_taken_for_the_one_whose_answer_was_lost(emulator: Emulator) -> None:
    emulator.add_fault(faults.queue_full())
    with connected(emulator) as client:
        file_id = uploaded(client)
        failed = client.create_batch(file_id, CHAT)
        assert client.retrieve_batch(failed.id).status == "failed"
        emulator.add_fault(faults.lost_call(on=faults.CREATE))
        creator = BatchClient(client.settings, attempts=1, sleep=lambda _: None)
        with creator, pytest.raises(APIConnectionError) as lost:
            creator.create_batch(file_id, CHAT)
        assert lost.value.maybe_applied


@service("groq", "together", "dashscope")
def test_an_expiry_that_a_service_does_not_have_is_refused(emulator: Emulator) -> None:
    with connected(emulator) as client:
        with pytest.raises(InvalidInputError, match=r"expires_after: .* does not let files expire by choice"):
            uploaded(client, expires_after=86_400)
        file_id = uploaded(client)
        with pytest.raises(InvalidInputError, match=r"output_expires_after: .* does not let files expire"):
            client.create_batch(file_id, CHAT, output_expires_after=86_400)
    assert emulator.batches() == []


@pytest.mark.parametrize(
    ("emulator", "good", "bad", "range_h"),
    [
        ("azure", "24h", "48h", "only 24h"),
        ("groq", "7d", "8d", "24h to 168h"),
        ("together", "24h", "1h", "only 24h"),
        ("dashscope", "336h", "15d", "24h to 336h"),
    ],
    indirect=["emulator"],
)
def test_a_window_that_a_service_does_not_have_is_refused(
    emulator: Emulator, good: str, bad: str, range_h: str
) -> None:
    with connected(emulator) as client:
        file_id = uploaded(client)
        assert client.create_batch(file_id, CHAT, completion_window=good).status == "validating"
        with pytest.raises(InvalidInputError, match=f"takes {range_h}, got"):
            client.create_batch(file_id, CHAT, completion_window=bad)
    assert len(emulator.batches()) == 1


@service("dashscope")
def test_dashscope_is_sent_its_own_metadata_alone(emulator: Emulator) -> None:
    with connected(emulator) as client:
        batch = client.create_batch(uploaded(client), CHAT, metadata={"ds_name": "nightly", "team": "search"})
        assert client.retrieve_batch(batch.id).metadata == {"ds_name": "nightly"}


@service("groq", "together", "dashscope", "doubleword")
def test_a_job_keeps_to_the_bytes_a_service_takes(emulator: Emulator, tmp_path: Path) -> None:
    operator = OpenAIBatchOperator(task_id="t", requests=["a"], output_path=str(tmp_path), model="m")
    job = open_job(operator, lambda: ["a"], Attempts(store=Store()).next(), resuming=False)
    assert job.settings.limits.max_bytes == 100_000_000


@service("groq", "together", "dashscope", "doubleword", "litellm")
def test_a_job_with_more_requests_than_a_service_takes_is_refused(emulator: Emulator, tmp_path: Path) -> None:
    operator = OpenAIBatchOperator(
        task_id="t", requests=["a"], output_path=str(tmp_path), model="m", max_requests_per_batch=60_000
    )
    with pytest.raises(InvalidInputError, match="takes at most 50,000 requests in a batch, not 60,000"):
        operator.execute(Attempts(store=Store()).next())
    assert emulator.calls == []


@service("groq", "together", "dashscope", "doubleword", "azure")
def test_a_job_with_an_expiry_that_a_service_does_not_take_is_refused_before_a_file_is_sent(
    emulator: Emulator, tmp_path: Path
) -> None:
    operator = OpenAIBatchOperator(
        task_id="t", requests=["a"], output_path=str(tmp_path), model="m", files_expire_after=3 * 86_400
    )
    reason = r"expected .* \(14 days to 30 days\)" if emulator.dialect == "azure" else ".* does not let files expire"
    with pytest.raises(InvalidInputError, match=f"files_expire_after: {reason}"):
        operator.execute(Attempts(store=Store()).next())
    assert emulator.calls == []


# --- LiteLLM ---------------------------------------------------------------------------------------------------------


@service("litellm")
def test_litellms_stale_list_is_not_believed(emulator: Emulator, run_trigger: RunTrigger) -> None:
    hook = OpenAIBatchesHook()
    batch_ids = [new_batch(hook) for _ in range(3)]
    emulator.advance(3_600)
    assert {batch.status for batch in hook.list_batches()} == {"validating"}
    looks = emulator.count("GET", "/v1/batches")
    trigger = OpenAIBatchTrigger(conn_id="openai_batches_default", batch_ids=batch_ids, poll_interval=0.05)
    [event] = run_trigger(trigger)
    assert {batch["status"] for batch in event["batches"].values()} == {"completed"}
    assert emulator.count("GET", "/v1/batches") == looks


@service("litellm")
def test_litellms_wrapped_errors_are_understood(emulator: Emulator) -> None:
    with connected(emulator) as client:
        file_id = uploaded(client)
        with pytest.raises(BadRequestError) as raised:
            client.create_batch(file_id, "/v1/no/such/endpoint")
        assert raised.value.code == "400"
        wrapped = json.dumps({"error": {"message": "Enqueued token limit reached for m. Limit: 5 enqueued tokens."}})
        emulator.add_fault(faults.refused(400, "400", wrapped, on=faults.CREATE))
        with pytest.raises(QueueFullError):
            client.create_batch(file_id, CHAT)


@service("litellm")
def test_litellms_batch_that_lost_its_metadata_is_known_by_its_file(emulator: Emulator) -> None:
    emulator.add_fault({"on": {"path": "/batches**"}, "do": {"set": {"metadata": None}}, "times": None})
    emulator.add_fault(faults.lost_create_response())
    with connected(emulator) as client:
        batch = client.create_batch(uploaded(client), CHAT)
        assert batch.metadata == {}
    assert len(emulator.batches()) == 1
