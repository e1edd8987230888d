"""What a batch has answered so far: only what is an answer is taken for one, and all that are there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.api.dialects import DOUBLEWORD
from airflow_provider_openai_batches.api.download import Partial
from airflow_provider_openai_batches.api.errors import DownloadIncompleteError, InvalidResponseError
from tests.api.connecting import connect
from tests.api.scripted_server import Answer, ScriptedServer, as_json

BATCH = {
    "id": "batch_1",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-1",
    "output_file_id": "file-2",
    "created_at": 1,
    "completion_window": "24h",
}
FIRST, SECOND = b'{"custom_id": "a"}', b'{"custom_id": "b"}'
MORE, ALL = {"X-Incomplete": "true"}, {"X-Incomplete": "false"}


def partial(tmp_path: Path, *answers: Answer, status: str = "in_progress", offset: int = 0) -> tuple[Partial, bytes]:
    """What a client makes of these answers to its requests for the content."""
    destination = tmp_path / "part"
    with (
        ScriptedServer(as_json({**BATCH, "status": status}), *answers) as server,
        connect(server.base_url, attempts=len(answers), dialect=DOUBLEWORD) as client,
    ):
        found = client.download_partial("batch_1", destination, offset=offset)
    return found, destination.read_bytes()


@pytest.mark.parametrize(
    ("content", "headers", "status", "expected", "kept"),
    [
        (FIRST + b"\n" + SECOND, ALL, "completed", (2, 5, True), FIRST + b"\n" + SECOND + b"\n"),
        (FIRST + b"\n" + SECOND, {}, "completed", (2, 5, True), FIRST + b"\n" + SECOND + b"\n"),
        (FIRST + b"\n" + SECOND, MORE, "completed", (1, 4, False), FIRST + b"\n"),
        (FIRST + b"\n" + SECOND, {}, "in_progress", (1, 4, False), FIRST + b"\n"),
        (FIRST, MORE, "in_progress", (0, 3, False), b""),
        (b"", ALL, "completed", (0, 3, True), b""),
        (FIRST + b"\r\n\r\n\n" + SECOND + b"\n \n", ALL, "completed", (2, 5, True), None),
    ],
    ids=["all", "all unsaid", "more", "more unsaid", "half a line", "nothing", "blank lines"],
)
def test_each_whole_answer_counts_and_nothing_else(
    tmp_path: Path, content: bytes, headers: dict[str, str], status: str, expected: Any, kept: bytes | None
) -> None:
    found, written = partial(tmp_path, Answer(200, content, headers), status=status, offset=3)
    assert found == expected
    assert written == (content if kept is None else kept)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(200, b"<html>\nSign in\n</html>\n", {"Content-Type": "text/html"}), InvalidResponseError),
        (Answer(204), InvalidResponseError),
        (Answer(206, FIRST[:6], {"Content-Range": "bytes 0-5/100"}), DownloadIncompleteError),
        (Answer(200, FIRST + b"\n" + SECOND[:9], ALL), DownloadIncompleteError),
        (Answer(200, FIRST + b"\n" + SECOND + b"\n", ALL, cut_at=30), DownloadIncompleteError),
    ],
    ids=["page", "no content", "part", "cut off line", "cut off"],
)
def test_what_is_not_the_content_is_an_error_and_leaves_what_was_there(
    tmp_path: Path, answer: Answer, error: type[Exception]
) -> None:
    (tmp_path / "part").write_bytes(b"before")
    with pytest.raises(error):
        partial(tmp_path, answer, status="completed")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_after_a_cut_the_same_answers_are_asked_for_and_each_counts_once(tmp_path: Path) -> None:
    content = FIRST + b"\n" + SECOND + b"\n"
    found, written = partial(tmp_path, Answer(200, content, MORE, cut_at=30), Answer(200, content, ALL))
    assert (found, written) == ((2, 2, True), content)
