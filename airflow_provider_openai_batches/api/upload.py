"""A file to the service, streamed: in one form, or by way of a signed URL, as the dialect says."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, BinaryIO
from urllib.parse import urlencode

from requests_toolbelt import MultipartEncoder

from airflow_provider_openai_batches.api.dialects import Upload
from airflow_provider_openai_batches.api.errors import FileNotReadyError, InvalidInputError, InvalidResponseError
from airflow_provider_openai_batches.api.models import File
from airflow_provider_openai_batches.api.session import ServiceSession

READY_WITHIN_S = 900.0
"""How long a file may take until it is ``processed``. Azure names no limit; minutes have been seen for large files."""

_LOOKS_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses between looks at a file, the last one for all that follow."""

_NOT_READY = ("pending", "running", "uploaded")
"""github.com/Azure/azure-rest-api-specs, ``OpenAIFile.status``."""


def upload(
    session: ServiceSession,
    source: Callable[[], BinaryIO],
    *,
    filename: str,
    expiry: Mapping[str, Any],
    purpose: str,
) -> Mapping[str, Any]:
    """Upload a file; one attempt.

    :param session: where to
    :param source: opens the content anew, seekable; the stream is closed here
    :param filename: name the service shows
    :param expiry: the API's object, empty for the service's default
    :param purpose: what the file is for
    :return: the file, as the service shows it
    """
    with closing(source()) as content:
        if session.settings.dialect.upload is Upload.SIGNED_URL:
            return _by_signed_url(session, _Content(content), filename, purpose)
        part = session.settings.dialect.expiry_part or ""
        encoder = MultipartEncoder(
            [
                ("purpose", purpose),
                *((part.format(name), str(value)) for name, value in expiry.items()),
                ("file", (filename, _Content(content), "application/jsonl")),
            ]
        )
        return session.json("POST", "files", body=encoder, content_type=encoder.content_type, transfer=True)


def _by_signed_url(session: ServiceSession, content: _Content, filename: str, purpose: str) -> Mapping[str, Any]:
    """Upload in three steps: github.com/togethercomputer/together-python, filemanager.py."""
    form = {"purpose": purpose, "file_name": filename, "file_type": "jsonl"}
    with closing(
        session.send(
            "POST",
            "files",
            body=urlencode(form).encode(),
            content_type="application/x-www-form-urlencoded",
            takes_redirect=True,
        )
    ) as answer:
        place, file_id = answer.headers.get("location"), answer.headers.get("x-together-file-id")
    if not place or not file_id:
        raise InvalidResponseError(
            f"POST /files answered {answer.status_code} without a place to put the file at. Is the connection's "
            f"dialect right, and its host the base URL of {session.settings.dialect.service}?",
            maybe_applied=False,
        )
    session.put_elsewhere(place, content)
    return session.json("POST", "files", file_id, "preprocess", transfer=True)


def wait_until_processed(look: Callable[[], File], file: File, sleep: Callable[[float], None]) -> File:
    """Wait until the service has taken in a file.

    :param look: retrieves the file
    :param file: as it was seen last
    :param sleep: called with seconds between looks
    :raises FileNotReadyError: it takes too long, or the service could not read the file
    """
    waited, number = 0.0, 0
    while file.status in _NOT_READY:
        if waited >= READY_WITHIN_S:
            raise FileNotReadyError(
                f"File {file.id} ({file.filename}) is still {file.status} after {waited:,.0f} seconds, and no batch "
                "can be created before it is processed. A later try may find it ready.",
                transient=True,
            )
        pause = _LOOKS_S[min(number, len(_LOOKS_S) - 1)]
        sleep(pause)
        waited, number = waited + pause, number + 1
        file = look()
    if file.status == "error":
        raise FileNotReadyError(
            f"The service could not take in file {file.id} ({file.filename}): its status is {file.status}. Check that "
            "it is JSONL in UTF-8 without a byte order mark, and upload it again."
        )
    return file


class _Content:
    """A stream that knows how much is left of it, as the multipart encoder asks.

    Left to itself the encoder copies what is in memory, takes the packed size for that of a gzip stream, and waits
    for ever for the rest of a file that became shorter.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        start = stream.tell()
        self.len = stream.seek(0, io.SEEK_END) - start
        stream.seek(start)

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        if not block and size and self.len:
            raise InvalidInputError("source", f"the content became {self.len:,} bytes shorter while it was uploaded.")
        self.len -= len(block)
        return block
