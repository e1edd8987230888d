"""Answer requests by asking another OpenAI-compatible server: Ollama, vLLM, llama.cpp, OpenAI itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO, Self

import aiohttp

from airflow_provider_openai_batches.emulator.answers import Answer
from airflow_provider_openai_batches.emulator.progress import UpstreamProgress
from airflow_provider_openai_batches.emulator.results import TIMED_OUT, Job, Lines, Spooled, scripted_error
from airflow_provider_openai_batches.emulator.wire import error_body

_ATTEMPTS = 4
_LONGEST_WAIT_S = 30.0
_ANSWER_TIMEOUT_S = 600.0


class UpstreamServer:
    """A server that is asked with bounded concurrency, whatever the number of batches.

    :param base_url: requests go to this plus the line's url, without its ``/v1`` if the base already ends so
    :param api_key: sent as a bearer token; None sends none
    :param concurrency: requests under way at any time
    :param backoff_s: real seconds before the first retry; doubles with each
    """

    def __init__(self, base_url: str, *, api_key: str | None, concurrency: int, backoff_s: float) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._concurrency = concurrency
        self._turn = asyncio.Semaphore(concurrency)
        self._backoff_s = backoff_s

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def answer_all(self, job: Job, progress: UpstreamProgress, enough: asyncio.Event) -> None:
        """Ask for every line that is not spooled yet; each answer is on disk before the next is asked for.

        :param progress: counts the answers, including those of an earlier run
        :param enough: once set, nothing new is asked; what is under way is awaited
        """
        assert job.spool is not None
        loop = asyncio.get_running_loop()
        with job.source.open("rb") as source, job.spool.open("a+b") as spool:
            lines = await loop.run_in_executor(None, Lines, source)
            done = await loop.run_in_executor(None, _recover, spool, progress)
            left = (line for line in range(len(lines)) if line not in done)
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(self._work(job, lines, left, spool, progress, enough))

    async def ask(self, url: str, body: Mapping[str, Any]) -> tuple[Answer, float]:
        """Ask once for a request that belongs to no batch; whoever sent it repeats it.

        :return: the answer, and how many seconds the upstream wants to be left alone
        """
        async with self._turn:
            try:
                return await self._ask(url, body)
            except TimeoutError:
                return Answer(504, error_body("The upstream did not answer in time.", kind="server_error")), 0.0
            except aiohttp.ClientError as error:
                return Answer(502, _unreachable(error)), 0.0

    async def _work(
        self,
        job: Job,
        lines: Lines,
        left: Iterator[int],
        spool: BinaryIO,
        progress: UpstreamProgress,
        enough: asyncio.Event,
    ) -> None:
        while not enough.is_set():
            async with self._turn:
                line = None if enough.is_set() else next(left, None)
                if line is None:
                    return
                spooled = await self._answer(job, line, lines[line])
            spool.write(spooled.dump())
            spool.flush()
            progress.count(spooled)

    async def _answer(self, job: Job, line: int, text: bytes) -> Spooled:
        fate = job.fate(line)
        if fate is not None and fate.outcome == "timeout":
            return Spooled(line, None, TIMED_OUT)
        if fate is not None and fate.outcome in ("error", "server_error"):
            return Spooled(line, scripted_error(fate))
        request = json.loads(text)
        reply = Answer(500, error_body("The upstream was not asked.", kind="server_error"))
        for attempt in range(_ATTEMPTS):
            wait_s = self._backoff_s * 2**attempt
            try:
                reply, asked_wait_s = await self._ask(request["url"], request["body"])
            except TimeoutError:
                return Spooled(line, None, TIMED_OUT)
            except aiohttp.ClientError as error:
                reply = Answer(502, _unreachable(error))
            else:
                if reply.status != 429 and reply.status < 500:
                    break
                wait_s = max(wait_s, asked_wait_s)
            if attempt < _ATTEMPTS - 1:
                await asyncio.sleep(min(wait_s, _LONGEST_WAIT_S))
        return Spooled(line, reply)

    async def _ask(self, url: str, body: Mapping[str, Any]) -> tuple[Answer, float]:
        """One POST: the answer, and how many seconds the upstream asks to wait."""
        path = url.removeprefix("/v1") if self._base_url.endswith("/v1") else url
        async with self._session.post(self._base_url + path, json=body) as response:
            text = await response.read()
            retry_after = response.headers.get("Retry-After", "")
            wait_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
            return _reply(response.status, text), wait_s


def _unreachable(error: aiohttp.ClientError) -> dict[str, Any]:
    return error_body(f"The upstream cannot be reached: {error}", kind="server_error")


def _recover(spool: BinaryIO, progress: UpstreamProgress) -> set[int]:
    """Read what an earlier run spooled, and cut off a line torn by a kill."""
    spool.seek(0)
    kept = 0
    done: set[int] = set()
    for text in spool:
        if not text.endswith(b"\n"):
            break
        kept += len(text)
        spooled = Spooled.load(text)
        done.add(spooled.line)
        progress.count(spooled)
    spool.truncate(kept)
    return done


def _reply(status: int, text: bytes) -> Answer:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        shown = text[:200].decode("utf-8", "replace")
        message = f"The upstream answered {status} without a JSON object: {shown}"
        return Answer(status if status >= 400 else 502, error_body(message, kind="server_error"))
    usage = body.get("usage")
    if not isinstance(usage, dict):
        usage = {}
    tokens = [usage.get(new, usage.get(old)) for new, old in _TOKEN_NAMES]
    return Answer(status, body, *(number if isinstance(number, int) else 0 for number in tokens))


_TOKEN_NAMES = (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens"))
