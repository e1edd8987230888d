"""Requests become shards: files of one model each, under every limit of a batch, written as the source streams."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from airflow_provider_openai_batches.api.dialects import MOST_REQUESTS
from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import MAX_BYTES, MAX_EMBEDDING_INPUTS, MAX_REQUESTS
from airflow_provider_openai_batches.jobs.json_text import encode
from airflow_provider_openai_batches.jobs.requests import Request

_MAX_OPEN_SHARDS = 64
_REQUESTS_BUFFER = 1 << 17
_CONTEXT_BUFFER = 1 << 15


class ShardLimits(msgspec.Struct, frozen=True):
    """What one shard, and so one batch, may hold.

    :param max_requests: 1 to 100,000; most services take 50,000
    :param max_bytes: of the requests file, 1 to 200,000,000
    :param max_inputs: 1 to 50,000; counts for embeddings, where a request has several
    :param max_tokens: estimated prompt tokens by model, e.g. the queue's limit; other models have none
    :raises InvalidInputError: a limit is out of its range
    """

    max_requests: int = MAX_REQUESTS
    max_bytes: int = MAX_BYTES
    max_inputs: int = MAX_EMBEDDING_INPUTS
    max_tokens: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        for name, most in (
            ("max_requests", MOST_REQUESTS),
            ("max_bytes", MAX_BYTES),
            ("max_inputs", MAX_EMBEDDING_INPUTS),
        ):
            value = getattr(self, name)
            if not _is_count(value) or value > most:
                raise InvalidInputError(name, f"expected 1 to {most:,}, got {value!r}.")
        if not isinstance(self.max_tokens, (Mapping, type(None))):
            raise InvalidInputError("max_tokens", f"expected a dict of tokens by model, got {self.max_tokens!r}.")
        for model, tokens in (self.max_tokens or {}).items():
            if not isinstance(model, str) or not _is_count(tokens):
                raise InvalidInputError(
                    "max_tokens", f"expected {{model: tokens}}, at least 1, got {model!r}: {tokens!r}."
                )


class ShardFiles(msgspec.Struct, frozen=True):
    """A full shard: two local files, and what is in them."""

    index: int
    """Shards are numbered in the order in which they begin."""
    model: str
    requests_path: Path
    """What to upload: one API line per request."""
    context_path: Path
    """One line per request, in the same order: ``{"index", "custom_id", "context"}``, with context null for none."""
    first_index: int
    """The first request's position in the source."""
    requests: int
    bytes: int
    inputs: int
    tokens: int


def write_shards(requests: Iterable[Request], limits: ShardLimits, directory: Path) -> Iterator[ShardFiles]:
    """Write requests into shards, and give out each one when it is full and its files are closed.

    One shard per model is being filled at a time, so a model's shards follow each other without gaps. The rest comes at
    the end, in the order of index. The same requests and limits give the same files, byte by byte. Only bookkeeping is
    kept in memory: some hundred bytes per model, and the files of the 64 models used last stay open.

    :param requests: read one by one; the caller may delete the files of a shard it was given before it asks for more
    :param limits: what a shard may hold. A single request above ``max_tokens`` gets a shard of its own, since tokens
        are estimates
    :param directory: an existing local directory; files of the same names in it are replaced
    :raises InvalidInputError: a request is too large for any shard
    """
    most_tokens = limits.max_tokens or {}
    filling: dict[str, _Shard] = {}
    opened: OrderedDict[str, _Shard] = OrderedDict()
    latest: _Shard | None = None
    begun = 0
    try:
        for request in requests:
            model = request.model
            shard = filling.get(model)
            if shard is None or not shard.has_room(request, limits, most_tokens.get(model)):
                _check_size(request, limits)
                if shard is not None:
                    del filling[model]
                    yield shard.finished()
                shard = filling[model] = _Shard(begun, request, directory)
                begun += 1
            if shard is not latest:
                latest = opened[model] = shard
                opened.move_to_end(model)
                if len(opened) > _MAX_OPEN_SHARDS:
                    opened.popitem(last=False)[1].close()
                shard.open()
            shard.write(request)
        while filling:
            # Shards begin in the order of their indexes, and so do those in the dict.
            yield filling.pop(next(iter(filling))).finished()
    finally:
        for shard in filling.values():
            shard.close()


class _Shard:
    """A shard that is being filled."""

    def __init__(self, index: int, first: Request, directory: Path) -> None:
        self._index = index
        self._model = first.model
        self._first_index = first.index
        self._requests_path = directory / f"shard-{index:05}.requests.jsonl"
        self._context_path = directory / f"shard-{index:05}.context.jsonl"
        self._mode: Literal["wb", "ab"] = "wb"
        self._requests_file: BinaryIO | None = None
        self._context_file: BinaryIO | None = None
        self._requests = self._bytes = self._inputs = self._tokens = 0

    def has_room(self, request: Request, limits: ShardLimits, max_tokens: int | None) -> bool:
        return (
            self._requests < limits.max_requests
            and self._bytes + len(request.line) < limits.max_bytes
            and self._inputs + request.inputs <= limits.max_inputs
            and (max_tokens is None or self._tokens + request.tokens <= max_tokens)
        )

    def open(self) -> None:
        if self._requests_file is None:
            self._requests_file = self._requests_path.open(self._mode, buffering=_REQUESTS_BUFFER)
        if self._context_file is None:
            self._context_file = self._context_path.open(self._mode, buffering=_CONTEXT_BUFFER)
        self._mode = "ab"

    def write(self, request: Request) -> None:
        assert self._requests_file is not None
        assert self._context_file is not None
        self._requests_file.write(request.line + b"\n")
        context = b"null" if request.context is None else request.context
        self._context_file.write(
            b'{"index":%d,"custom_id":%b,"context":%b}\n' % (request.index, encode(request.custom_id), context)
        )
        self._requests += 1
        self._bytes += len(request.line) + 1
        self._inputs += request.inputs
        self._tokens += request.tokens

    def close(self) -> None:
        for file in (self._requests_file, self._context_file):
            if file is not None:
                file.close()
        self._requests_file = self._context_file = None

    def finished(self) -> ShardFiles:
        self.close()
        return ShardFiles(
            index=self._index,
            model=self._model,
            requests_path=self._requests_path,
            context_path=self._context_path,
            first_index=self._first_index,
            requests=self._requests,
            bytes=self._bytes,
            inputs=self._inputs,
            tokens=self._tokens,
        )


def _check_size(request: Request, limits: ShardLimits) -> None:
    if len(request.line) >= limits.max_bytes:
        raise InvalidInputError(
            "requests",
            f"row {request.index}: the request has {len(request.line) + 1:,} bytes with its newline, a batch may have "
            f"{limits.max_bytes:,}. Shorten it.",
        )
    if request.inputs > limits.max_inputs:
        raise InvalidInputError(
            "requests",
            f"row {request.index}: the request has {request.inputs:,} inputs, a batch may have {limits.max_inputs:,}. "
            "Split the row.",
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
