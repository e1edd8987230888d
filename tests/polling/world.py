"""A batch service without work: thousands of batches in any state, any trouble, every call counted."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from tests.api.scripted_server import Answer, Request, ScriptedServer, as_json

PAGE_SIZE = 100
Trouble = Callable[[Request], Answer | None]


def error(status: int, message: str = "trouble", **headers: str) -> Answer:
    return as_json({"error": {"message": message, "type": "error", "param": None, "code": None}}, status, **headers)


class World:
    """Serves list, retrieve and cancel of batches that a test makes, changes and troubles.

    ``key`` is the bearer token it accepts (None: any); ``latency_s`` passes before each answer; ``trouble`` may answer
    a request in its place.
    """

    def __init__(self) -> None:
        self.key: str | None = None
        self.latency_s = 0.0
        self.trouble: Trouble | None = None
        self._batches: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count()
        self._server = ScriptedServer(endless=itertools.repeat(self._answer))
        self.base_url = self._server.base_url
        self.port = int(self._server.host.rpartition(":")[2])

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.__exit__(*exc)

    def add(self, count: int = 1, status: str = "in_progress", **fields: Any) -> list[str]:
        """Make batches, each newer than the one before."""
        made = [f"batch_{next(self._numbers):05d}" for _ in range(count)]
        for batch_id in made:
            self._batches[batch_id] = {"id": batch_id, "object": "batch", "created_at": 1_700_000_000}
        self.change(made, status, **fields)
        return made

    def change(self, batch_ids: Iterable[str], status: str, **fields: Any) -> None:
        """Put batches into a state; what is completed has an output file unless told otherwise."""
        for batch_id in batch_ids:
            files = {"output_file_id": f"file-{batch_id}"} if status == "completed" else {}
            self._batches[batch_id] = {**self._batches[batch_id], "status": status, **files, **fields}

    def forget(self) -> None:
        """Have no batch any more."""
        self._batches = {}

    def batch(self, batch_id: str) -> dict[str, Any]:
        """As the service answers."""
        return self._batches[batch_id]

    def status(self, batch_id: str) -> str:
        return str(self._batches[batch_id]["status"])

    @property
    def requests(self) -> list[Request]:
        return self._server.requests

    def count(self, path: str, method: str = "GET") -> int:
        """How many requests had this path: ``/v1/batches`` for the listing."""
        return sum(request.path == path and request.method == method for request in list(self.requests))

    @property
    def pages(self) -> int:
        return self.count("/v1/batches")

    @property
    def cancelled(self) -> list[str]:
        return [request.path.split("/")[-2] for request in self._server.calls("POST", "/cancel")]

    def _answer(self, request: Request) -> Answer:
        time.sleep(self.latency_s)
        if self.trouble is not None and (troubled := self.trouble(request)) is not None:
            return troubled
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return error(401, "Incorrect API key provided.")
        route = request.path.removeprefix("/v1/batches").strip("/").split("/")
        if route == [""]:
            return as_json(self._page(request.query.get("after"), int(request.query.get("limit", 20))))
        batch = self._batches.get(route[0])
        if batch is None:
            return error(404, f"No batch found with id '{route[0]}'.")
        if route[1:] == ["cancel"]:
            self.change([batch["id"]], "cancelling")
        return as_json(self._batches[batch["id"]])

    def _page(self, after: str | None, limit: int) -> dict[str, Any]:
        newest_first = list(reversed(self._batches))
        start = newest_first.index(after) + 1 if after else 0
        ids = newest_first[start : start + limit]
        return {
            "object": "list",
            "data": [self._batches[batch_id] for batch_id in ids],
            "has_more": start + limit < len(newest_first),
        }
