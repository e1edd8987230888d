"""How batches end other than well: cancelled, expired, refused by a full queue, with failed requests."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from airflow_provider_openai_batches.emulator import Emulator

from .batches import request, results, submit


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def test_cancelled_batch_keeps_what_was_done(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, map(request, range(10)))
    emulator.advance(3 + 36)
    batch = client.batches.cancel(batch.id)
    assert (batch.status, counts(batch)) == ("cancelling", (10, 3, 0))
    assert client.batches.cancel(batch.id).status == "cancelling"
    emulator.advance(2)
    batch = client.batches.cancel(batch.id)
    assert (batch.status, counts(batch)) == ("cancelled", (10, 3, 0))
    done, rest = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert (len(done), len(rest), len(done.keys() | rest.keys())) == (3, 7, 10)
    assert all(line["response"] is None and line["error"]["code"] == "batch_cancelled" for line in rest.values())


def test_batch_cancelled_while_validating_has_no_files(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, map(request, range(3)))
    client.batches.cancel(batch.id)
    emulator.advance(5)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, counts(batch)) == ("cancelled", (0, 0, 0))
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_batch_cancelled_while_finalizing_keeps_everything(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, map(request, range(3)))
    emulator.advance(124)
    assert client.batches.retrieve(batch.id).status == "finalizing"
    client.batches.cancel(batch.id)
    emulator.advance(2)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.error_file_id, counts(batch)) == ("cancelled", None, (3, 3, 0))
    assert len(results(client, batch.output_file_id)) == 3
    assert len(client.files.list(purpose="batch_output").data) == 1


def test_ended_batch_cannot_be_cancelled(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, [request(0)])
    emulator.advance(125)
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        client.batches.cancel(batch.id)


def test_expired_batch_has_partial_output() -> None:
    with Emulator(speed=0, batch_seconds=4 * 86_400) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        batch = submit(client, map(request, range(8)))
        emulator.advance(86_399)
        assert client.batches.retrieve(batch.id).status == "in_progress"
        emulator.advance(3)
        batch = client.batches.retrieve(batch.id)
        assert batch.status == "expired"
        assert counts(batch) == (8, 1, 0)
        assert (batch.expired_at or 0) > (batch.expires_at or 0)
        rest = results(client, batch.error_file_id)
        assert len(results(client, batch.output_file_id)) == 1
        assert {line["error"]["code"] for line in rest.values()} == {"batch_expired"}
        assert len(rest) == 7


def test_requests_the_endpoint_rejects_go_to_the_error_file(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, [request(0), request(1, messages=[]), request(2)])
    emulator.advance(3 + 120)
    assert counts(client.batches.retrieve(batch.id)) == (3, 2, 1)
    emulator.advance(2)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, counts(batch)) == ("completed", (3, 2, 1))
    [line] = results(client, batch.error_file_id).values()
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("row-1", None, 400)
    assert line["response"]["body"]["error"].keys() == {"message", "type", "param", "code"}


def test_batch_whose_requests_all_fail_completes_without_output(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, [request(number, messages=[]) for number in range(2)])
    emulator.advance(125)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.output_file_id, counts(batch)) == ("completed", None, (2, 0, 2))
    assert len(results(client, batch.error_file_id)) == 2


def test_full_queue_fails_a_batch_until_another_has_ended() -> None:
    with Emulator(speed=0, token_limits={"gpt-4o-mini": 40}) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        big = [request(0, messages=[{"role": "user", "content": "x" * 120}])]  # 30 tokens
        first, second = submit(client, big), submit(client, big)
        other = submit(client, [request(0, model="gpt-4o", messages=big[0]["body"]["messages"] * 9)])
        emulator.advance(3)
        assert client.batches.retrieve(first.id).status == "in_progress"
        assert client.batches.retrieve(other.id).status == "in_progress"
        second = client.batches.retrieve(second.id)
        assert second.status == "failed"
        assert second.errors is not None
        [error] = second.errors.data or []
        assert (error.code, error.line) == ("token_limit_exceeded", None)
        assert "Enqueued token limit reached for gpt-4o-mini" in (error.message or "")
        emulator.advance(122)
        assert client.batches.retrieve(first.id).status == "completed"
        third = client.batches.create(
            input_file_id=second.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        emulator.advance(3)
        assert client.batches.retrieve(third.id).status == "in_progress"


def test_result_files_live_as_long_as_asked(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, [request(0)], output_expires_after={"anchor": "created_at", "seconds": 3600})
    emulator.advance(125)
    file_id = client.batches.retrieve(batch.id).output_file_id
    assert file_id is not None
    file = client.files.retrieve(file_id)
    assert file.expires_at == file.created_at + 3600
    emulator.advance(3600)
    with pytest.raises(openai.NotFoundError):
        client.files.content(file_id)
    assert client.batches.retrieve(batch.id).output_file_id == file_id


def test_running_batch_survives_the_deletion_of_its_input(emulator: Emulator, client: OpenAI) -> None:
    batch = submit(client, map(request, range(2)))
    emulator.advance(3)
    client.files.delete(batch.input_file_id)
    emulator.advance(122)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, len(results(client, batch.output_file_id))) == ("completed", 2)
