"""The Files API: https://platform.openai.com/docs/api-reference/files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from airflow_provider_openai_batches.emulator.clock import VirtualClock
from airflow_provider_openai_batches.emulator.http_faults import effect_on, json_response
from airflow_provider_openai_batches.emulator.pages import integer_query, page
from airflow_provider_openai_batches.emulator.store import Store, StoredFile
from airflow_provider_openai_batches.emulator.wire import ApiError, new_file_id

MAX_BATCH_BYTES = 200_000_000
MAX_FILE_BYTES = 512_000_000
BATCH_FILE_LIFE_S = 30 * 86_400
SHORTEST_LIFE_S, LONGEST_LIFE_S = 3_600, 2_592_000

_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_DOWNLOADABLE = ("batch", "batch_output", "fine-tune", "fine-tune-results")
_CHUNK = 1 << 18
_SMALL_FIELD = 10_000


class FileRoutes:
    """Upload, look up, list, delete and download files."""

    def __init__(self, store: Store, clock: VirtualClock) -> None:
        self._store = store
        self._clock = clock
        self._disk = ThreadPoolExecutor(4, thread_name_prefix="emulator-disk")

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """The routes, below ``prefix``."""
        return [
            web.post(f"{prefix}/files", self._create),
            web.get(f"{prefix}/files", self._list, allow_head=False),
            web.get(f"{prefix}/files/{{file_id}}", self._retrieve, allow_head=False),
            web.delete(f"{prefix}/files/{{file_id}}", self._delete),
            web.get(f"{prefix}/files/{{file_id}}/content", self._content, allow_head=False),
        ]

    async def close(self, _app: web.Application) -> None:
        """End the threads that touch the disk."""
        self._disk.shutdown(wait=True)  # no request is left by now; a test must find no thread of ours afterwards

    async def _create(self, request: web.Request) -> web.Response:
        if not request.content_type.startswith("multipart/"):
            raise ApiError(400, "Expected a multipart/form-data request.")
        file_id = new_file_id()
        draft = self._store.draft_path(file_id)
        try:
            filename, size, fields = await self._receive(request, draft)
            file = await self._accept(file_id, draft, filename, size, fields)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        self._store.add_file(file)
        return json_response(file.to_api())

    async def _receive(self, request: web.Request, draft: Path) -> tuple[str | None, int, dict[str, str]]:
        """Stream the parts in: the file to disk, the rest to a dict."""
        filename: str | None = None
        size = 0
        fields: dict[str, str] = {}
        try:
            async for part in await request.multipart():
                if not isinstance(part, BodyPartReader):
                    raise ApiError(400, "Nested multipart bodies are not accepted.")
                if part.name == "file":
                    filename = part.filename or "upload"
                    size = await self._save(part, draft)
                else:
                    value = await part.read_chunk(_SMALL_FIELD)
                    fields[part.name or ""] = value.decode("utf-8", "replace")
        except (
            ValueError,
            AssertionError,
            HttpProcessingError,
        ) as error:  # what aiohttp's parser raises for a malformed body
            raise ApiError(400, f"We could not parse the multipart body: {error}.") from error
        return filename, size, fields

    async def _save(self, part: BodyPartReader, draft: Path) -> int:
        """Write a part to disk in chunks; what is too large is read to its end, so that the client reads our answer."""
        loop = asyncio.get_running_loop()
        size = 0
        with draft.open("wb") as file:
            pending = bytearray()
            while chunk := await part.read_chunk(_CHUNK):
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    continue
                pending += chunk
                if len(pending) >= 4 * _CHUNK:
                    await loop.run_in_executor(self._disk, file.write, bytes(pending))
                    pending.clear()
            file.write(pending)
        return size

    async def _accept(
        self, file_id: str, draft: Path, filename: str | None, size: int, fields: dict[str, str]
    ) -> StoredFile:
        for name, value in (("file", filename), ("purpose", fields.get("purpose"))):
            if not value:
                raise ApiError(
                    400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
                )
        purpose = fields["purpose"]
        if purpose not in _PURPOSES:
            text = f"Invalid value: '{purpose}'. Supported values are: {', '.join(map(repr, _PURPOSES))}."
            raise ApiError(400, text, param="purpose", code="invalid_value")
        if size > (MAX_BATCH_BYTES if purpose == "batch" else MAX_FILE_BYTES):
            raise ApiError(400, "File is too large.")
        if purpose == "batch":
            loop = asyncio.get_running_loop()
            looks_right = await loop.run_in_executor(self._disk, _first_line_is_json, draft)
            if not (filename or "").endswith(".jsonl") or not looks_right:
                raise ApiError(400, "Invalid file format for Batch API. Must be .jsonl")
        now = self._clock.now()
        life = _life(fields) or (BATCH_FILE_LIFE_S if purpose == "batch" else None)
        return StoredFile(file_id, filename or "", purpose, size, now, now + life if life else None)

    async def _list(self, request: web.Request) -> web.Response:
        limit = integer_query(request, "limit", default=10_000, most=10_000)
        order = request.query.get("order", "desc")
        if order not in ("asc", "desc"):
            text = f"Invalid value: '{order}'. Supported values are: 'asc' and 'desc'."
            raise ApiError(400, text, param="order", code="invalid_value")

        def files(after: str | None, count: int) -> list[dict[str, Any]]:
            found = self._store.files(
                now=self._clock.now(),
                purpose=request.query.get("purpose"),
                after=after,
                ascending=order == "asc",
                limit=count,
            )
            return [file.to_api() for file in found]

        return json_response(page(request, limit, files))

    async def _retrieve(self, request: web.Request) -> web.Response:
        return json_response(self._file(request).to_api())

    async def _delete(self, request: web.Request) -> web.Response:
        file = self._file(request)
        self._store.delete_file(file.id)
        return json_response({"id": file.id, "object": "file", "deleted": True})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        file = self._file(request)
        if file.purpose not in _DOWNLOADABLE:
            raise ApiError(400, f"Not allowed to download files of purpose: {file.purpose}")
        effect = effect_on(request)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        start, end = 0, file.bytes
        if effect.ranges:
            etag = f'"{file.id}"'  # a content never changes under its id
            response.headers.update({"Accept-Ranges": "bytes", "ETag": etag})
            start, end = _asked_range(request, etag, file.bytes)
            if (start, end) != (0, file.bytes):
                response.set_status(206)
                response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
        if effect.gzip:
            response.enable_compression(web.ContentCoding.gzip)
        else:
            response.content_length = end - start
        sent_end = end if effect.truncate is None else min(end, start + effect.truncate)
        await response.prepare(request)
        with contextlib.closing(self._store.content_path(file.id).open("rb")) as content:
            await self._send(response, content, start, sent_end)
        if sent_end < end and request.transport is not None:
            request.transport.close()
            return response
        await response.write_eof()
        return response

    async def _send(self, response: web.StreamResponse, content: BinaryIO, start: int, end: int) -> None:
        loop = asyncio.get_running_loop()
        while start < end:
            read = await loop.run_in_executor(self._disk, os.pread, content.fileno(), min(_CHUNK, end - start), start)
            await response.write(read)
            start += len(read)

    def _file(self, request: web.Request) -> StoredFile:
        file_id = request.match_info["file_id"]
        file = self._store.file(file_id, now=self._clock.now())
        if file is None:
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return file


def life_in_range(anchor: Any, seconds: Any, param: str) -> int:
    """Check an ``expires_after`` or ``output_expires_after`` object's two members.

    :return: the seconds
    :raises ApiError: 400
    """
    if anchor != "created_at":
        text = f"Invalid value: '{anchor}'. Supported values are: 'created_at'."
        raise ApiError(400, text, param=f"{param}.anchor", code="invalid_value")
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        text = f"Invalid type for '{param}.seconds': expected an integer."
        raise ApiError(400, text, param=f"{param}.seconds", code="invalid_type")
    for bound, wrong, code in (
        (SHORTEST_LIFE_S, seconds < SHORTEST_LIFE_S, "integer_below_min_value"),
        (LONGEST_LIFE_S, seconds > LONGEST_LIFE_S, "integer_above_max_value"),
    ):
        if wrong:
            side = ">=" if code == "integer_below_min_value" else "<="
            text = f"Invalid '{param}.seconds': expected a value {side} {bound}, but got {seconds} instead."
            raise ApiError(400, text, param=f"{param}.seconds", code=code)
    return seconds


def _life(fields: dict[str, str]) -> int | None:
    """``expires_after`` in bracket notation (OpenAI) or dot notation (Azure)."""
    given = {}
    for name, value in fields.items():
        found = re.fullmatch(r"expires_after(?:\[(\w+)\]|\.(\w+))", name)
        if found:
            given[found[1] or found[2]] = value
    if not given:
        return None
    seconds = given.get("seconds", "")
    return life_in_range(
        given.get("anchor"), int(seconds) if seconds.isascii() and seconds.isdigit() else seconds, "expires_after"
    )


def _first_line_is_json(path: Path) -> bool:
    with path.open("rb") as file:
        line = file.readline()
    try:
        json.loads(line)  # takes a byte order mark, as the upload does; the batch fails on it later
    except (ValueError, RecursionError):
        return False
    return True


def _asked_range(request: web.Request, etag: str, size: int) -> tuple[int, int]:
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if found is None or request.headers.get("If-Range", etag) != etag:
        return 0, size
    start = int(found[1])
    end = min(size, int(found[2]) + 1) if found[2] else size
    if start >= end:
        raise ApiError(416, "The requested range cannot be satisfied.")
    return start, end
