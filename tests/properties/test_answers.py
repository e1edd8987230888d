"""Whatever the service answers: something that is understood, or an error of ours."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import Batch, File
from tests.api.connecting import connect
from tests.api.scripted_server import Answer, Request, ScriptedServer
from tests.properties.effort import TIMEOUT_S, effort
from tests.properties.odd_json import FRAGMENTS, VALUES, spelled, spoiled

pytestmark = pytest.mark.timeout(TIMEOUT_S)

BATCH = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/embeddings",
    "status": "completed",
    "created_at": 1774437191,
    "input_file_id": "file-in",
    "output_file_id": "file-out",
    "request_counts": {"total": 2, "completed": 1, "failed": 1},
    "errors": {"object": "list", "data": [{"code": "c", "message": "m", "line": 1, "param": None}]},
    "metadata": {"a": "b"},
    "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
}
PAGE = {"object": "list", "data": [BATCH], "has_more": False, "first_id": "batch_1", "last_id": "batch_1"}


def changed(value: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The same with other values here and there."""
    other = st.dictionaries(st.sampled_from([*value]), VALUES, max_size=3)
    return other.map(lambda changes: value | changes)


ANSWERS = st.one_of(
    (changed(BATCH) | changed(PAGE) | VALUES).flatmap(spelled).flatmap(spoiled),
    st.lists(changed(BATCH) | VALUES, max_size=3).map(lambda data: json.dumps(PAGE | {"data": data}).encode()),
    st.sampled_from(FRAGMENTS),
)


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[ScriptedServer, list[Answer]]]:
    """A server that gives one answer to all calls, until it is given another."""
    current: list[Answer] = []

    def forever() -> Iterator[Callable[[Request], Answer]]:
        while True:
            yield lambda _: current[-1]

    with ScriptedServer(endless=forever()) as server:
        yield server, current


def calls(client: BatchClient, path: Path) -> list[Callable[[], Any]]:
    return [
        lambda: client.retrieve_batch("batch_1"),
        lambda: list(islice(client.list_batches(), 250)),
        lambda: client.create_batch("file-in", "/v1/embeddings", idempotency_token="t"),
        lambda: client.cancel_batch("batch_1"),
        lambda: client.retrieve_file("file-in"),
        lambda: client.download_file("file-out", path),
    ]


@effort(120)
@given(body=ANSWERS, status=st.sampled_from([200, 200, 200, 201, 400, 404, 429, 500]), packed=st.booleans())
def test_any_answer_to_any_call_is_understood_or_an_error_of_ours(
    service: tuple[ScriptedServer, list[Answer]],
    tmp_path_factory: pytest.TempPathFactory,
    body: bytes,
    status: int,
    packed: bool,
) -> None:
    server, current = service
    headers = {"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if packed else {})
    current[:] = [Answer(status, gzip.compress(body, 1) if packed else body, headers)]
    path = tmp_path_factory.getbasetemp() / "downloaded"
    with connect(server.base_url, attempts=1) as client:
        for call in calls(client, path):
            try:
                result = call()
            except OpenAIBatchesError as error:
                assert len(str(error)) < 5_000, "an error is read by people"  # noqa: PT017 - either is right
                continue
            match result:
                case Batch() | File():
                    assert result.id
                case list():
                    assert all(batch.id for batch in result)
                case int():
                    assert path.read_bytes() == body
