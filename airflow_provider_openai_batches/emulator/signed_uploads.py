"""Files that come by a URL of their own, as Together takes them: a place is asked for, filled, and reported."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from airflow_provider_openai_batches.emulator.store import Store, StoredFile
from airflow_provider_openai_batches.emulator.wire import ApiError, new_file_id

STORAGE = "/storage"
"""Where the places are. Not below the API's paths, and no key is welcome: storage refuses two credentials."""

Accept = Callable[[str, Path, str, int, dict[str, str]], Awaitable[StoredFile]]


class SignedUploads:
    """Places for files, until they are reported.

    :param store: where contents are kept
    :param accept: makes a file of an id, its draft, a name, a size and the fields of the form; or refuses it
    """

    def __init__(self, store: Store, accept: Accept) -> None:
        self._store = store
        self._accept = accept
        self._open: dict[str, dict[str, str]] = {}

    async def begin(self, request: web.Request) -> web.Response:
        """Name a place for a file."""
        form = await request.post()
        file_id = new_file_id()
        self._open[file_id] = {name: str(value) for name, value in form.items()}
        place = str(request.url.origin().with_path(f"{STORAGE}/{file_id}"))
        return web.Response(status=302, headers={"Location": place, "X-Together-File-Id": file_id})

    async def fill(self, request: web.Request) -> web.Response:
        """Take a content."""
        file_id = request.match_info["file_id"]
        if file_id not in self._open:
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
        if "Authorization" in request.headers or "api-key" in request.headers:
            return web.Response(status=400, text="<Error><Message>Only one auth mechanism allowed</Message></Error>")
        with self._store.draft_path(file_id).open("wb") as draft:
            async for chunk in request.content.iter_chunked(1 << 18):
                draft.write(chunk)
        return web.Response()

    async def report(self, file_id: str) -> StoredFile:
        """Make a file of what is in a place.

        :raises ApiError: there is no such place, or what is there is refused
        """
        draft, form = self._store.draft_path(file_id), self._open.get(file_id)
        if form is None or not draft.exists():
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        try:
            file = await self._accept(file_id, draft, form.get("file_name", ""), draft.stat().st_size, form)
        except ApiError:
            draft.unlink(missing_ok=True)
            raise
        finally:
            del self._open[file_id]
        return file
