"""The Files API: https://platform.openai.com/docs/api-reference/files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from airflow_provider_openai_batches.emulator.clock import VirtualClock
from airflow_provider_openai_batches.emulator.dialects import Dialect, Intake
from airflow_provider_openai_batches.emulator.http_faults import effect_on, json_response
from airflow_provider_openai_batches.emulator.pages import integer_query, page
from airflow_provider_openai_batches.emulator.signed_uploads import STORAGE, SignedUploads
from airflow_provider_openai_batches.emulator.store import Store, StoredFile
from airflow_provider_openai_batches.emulator.wire import ApiError, new_file_id

Growing = Callable[[str], Awaitable[Path | None]]
"""Gives the output so far of the batch that goes on and will have a file of this id; None if there is none."""

MAX_FILE_BYTES = 512_000_000
BATCH_FILE_LIFE_S = 30 * 86_400
SHORTEST_LIFE_S, LONGEST_LIFE_S = 3_600, 2_592_000

_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_DOWNLOADABLE = ("batch", "batch_output", "fine-tune", "fine-tune-results")
_CHUNK = 1 << 18
_SMALL_FIELD = 10_000


class FileRoutes:
    """Upload, look up, list, delete and download files."""

    def __init__(self, store: Store, clock: VirtualClock, dialect: Dialect, intake: Intake, growing: Growing) -> None:
        self._store = store
        self._clock = clock
        self._dialect = dialect
        self._intake = intake
        self._growing = growing
        self._signed = SignedUploads(store, self._accept)
        self._disk = ThreadPoolExecutor(4, thread_name_prefix="emulator-disk")

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """The routes, below ``prefix``."""
        signed = [
            web.post(f"{prefix}/files", self._signed.begin),
            web.put(f"{STORAGE}/{{file_id}}", self._signed.fill),
            web.post(f"{prefix}/files/{{file_id}}/preprocess", self._report),
        ]
        return [
            *(signed if self._dialect.signed_upload else [web.post(f"{prefix}/files", self._create)]),
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
        return self._added(file)

    async def _report(self, request: web.Request) -> web.Response:
        return self._added(await self._signed.report(request.match_info["file_id"]))

    def _added(self, file: StoredFile) -> web.Response:
        self._store.add_file(file)
        self._intake.arrived(file.id)
        return json_response(self._shown(file))

    def _shown(self, file: StoredFile) -> dict[str, Any]:
        return self._dialect.file(self._dialect.outward({**file.to_api(), "status": self._intake.status(file.id)}))

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
        purposes = [self._dialect.purpose if each == "batch" else each for each in _PURPOSES]
        if purpose not in purposes:
            text = f"Invalid value: '{purpose}'. Supported values are: {', '.join(map(repr, purposes))}."
            raise ApiError(400, text, param="purpose", code="invalid_value")
        is_input = purpose == self._dialect.purpose
        if size > (self._dialect.max_bytes if is_input else MAX_FILE_BYTES):
            raise ApiError(400, "File is too large.")
        if is_input:
            loop = asyncio.get_running_loop()
            looks_right = await loop.run_in_executor(self._disk, _first_line_is_json, draft)
            if not (filename or "").endswith(".jsonl") or not looks_right:
                raise ApiError(400, "Invalid file format for Batch API. Must be .jsonl")
        now = self._clock.now()
        life = _life(fields, self._dialect) or (BATCH_FILE_LIFE_S if is_input else None)
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
            return [self._shown(file) for file in found]

        return json_response(self._dialect.page(page(request, limit, files, self._dialect)))

    async def _retrieve(self, request: web.Request) -> web.Response:
        file = self._file(request)
        self._intake.seen(file.id)
        return json_response(self._shown(file))

    async def _delete(self, request: web.Request) -> web.Response:
        file = self._file(request)
        self._store.delete_file(file.id)
        return json_response({"id": file.id, "object": "file", "deleted": True})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        if self._dialect.streams:
            growing = await self._growing(request.match_info["file_id"])
            if growing is not None:
                try:
                    return _lines_from(request, growing, is_complete=False)
                finally:
                    growing.unlink()
            if "offset" in request.query:
                return _lines_from(request, self._store.content_path(self._file(request).id), is_complete=True)
        file = self._file(request)
        if file.purpose not in (*_DOWNLOADABLE, self._dialect.purpose):
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
        file_id = self._dialect.inward(request.match_info["file_id"])
        file = self._store.file(file_id, now=self._clock.now())
        if file is None:
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return file


def _lines_from(request: web.Request, content: Path, *, is_complete: bool) -> web.Response:
    """The lines of a content behind the offset that is asked for."""
    offset = integer_query(request, "offset", default=0, least=0, most=sys.maxsize)
    lines = content.read_bytes().splitlines(keepends=True)
    headers = {"X-Incomplete": str(not is_complete).lower(), "X-Last-Line": str(len(lines))}
    return web.Response(body=b"".join(lines[offset:]), headers=headers, content_type="application/x-ndjson")


def life_in_range(anchor: Any, seconds: Any, param: str, shortest_s: int = SHORTEST_LIFE_S) -> int:
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
        (shortest_s, seconds < shortest_s, "integer_below_min_value"),
        (LONGEST_LIFE_S, seconds > LONGEST_LIFE_S, "integer_above_max_value"),
    ):
        if wrong:
            side = ">=" if code == "integer_below_min_value" else "<="
            text = f"Invalid '{param}.seconds': expected a value {side} {bound}, but got {seconds} instead."
            raise ApiError(400, text, param=f"{param}.seconds", code=code)
    return seconds


def _life(fields: dict[str, str], dialect: Dialect) -> int | None:
    """``expires_after`` in bracket notation (OpenAI) or dot notation (Azure)."""
    given = {}
    if dialect.expiry != "[]" and (name := next((name for name in fields if "expires" in name and "[" in name), None)):
        raise ApiError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    for name, value in fields.items():
        found = re.fullmatch(r"expires_after(?:\[(\w+)\]|\.(\w+))", name)
        if found:
            given[found[1] or found[2]] = value
    if not given:
        return None
    seconds = given.get("seconds", "")
    return life_in_range(
        given.get("anchor"),
        int(seconds) if seconds.isascii() and seconds.isdigit() else seconds,
        "expires_after",
        dialect.shortest_life_s,
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
