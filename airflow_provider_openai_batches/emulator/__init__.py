"""A local server that speaks the OpenAI Batch API, for demos, tests, and batches on premises.

In a test::

    with Emulator(speed=0) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        ...
        emulator.advance(200)

On the command line: ``openai-batches-emulator --help``. Scripted faults: :mod:`.faults`.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator.receipts import ReceivedRequest
    from airflow_provider_openai_batches.emulator.server import Call
    from airflow_provider_openai_batches.emulator.service import Service, Settings

__all__ = ["Emulator"]

T = TypeVar("T")


class Emulator:
    """The emulator in a background thread of this process, while the context is open.

    :param data_dir: where files and batches are kept; a second emulator on it goes on where the first stopped.
        Default: a temporary directory that goes with the context
    :param api_key: the key every call must bring; None accepts any, and none
    :param speed: virtual seconds per real second; 0 stands still until :meth:`advance`
    :param seconds_per_look: virtual seconds that pass whenever a client retrieves or lists batches, before it is
        answered: with time that stands still otherwise, a task that polls comes to its end, at any real speed
    :param batch_seconds: virtual seconds the requests of a batch take, besides 3 for validation and 2 for finalizing
    :param token_limits: queued prompt tokens per model; ``*`` for models not named. Default: no limit
    :param faults: fault rules, as in :mod:`airflow_provider_openai_batches.emulator.faults`
    :param upstream: base URL of an OpenAI-compatible server that answers the requests; None makes answers up
    :param upstream_api_key: its key
    :param upstream_concurrency: requests under way there at any time
    :param upstream_backoff: real seconds before the first retry of a request there
    :param webhook_url: told of every batch that ends, as OpenAI's webhooks do; None tells nobody
    :param webhook_secret: signs what is sent there
    :param keep_requests: keep what was bought, for :meth:`requests` and :meth:`bought`, even if its files are deleted
    :param dialect: which service it stands in for: ``openai``, ``azure``, ``azure-classic``, ``groq``, ``together``,
        ``dashscope``, ``doubleword`` or ``litellm``
    :param host: the address to listen on
    :param port: 0 takes any free one
    :raises FaultError: a fault rule cannot be understood
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        api_key: str | None = None,
        speed: float = 1.0,
        batch_seconds: float = 120.0,
        token_limits: Mapping[str, int] | None = None,
        faults: Iterable[Mapping[str, Any]] = (),
        upstream: str | None = None,
        *,
        seconds_per_look: float = 0.0,
        upstream_api_key: str | None = None,
        upstream_concurrency: int = 8,
        upstream_backoff: float = 0.5,
        webhook_url: str | None = None,
        webhook_secret: str = "",
        keep_requests: bool = False,
        dialect: str = "openai",
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        from airflow_provider_openai_batches.emulator.dialects import DIALECTS
        from airflow_provider_openai_batches.emulator.faults import parse_rules

        if dialect not in DIALECTS:
            raise ValueError(f"dialect: expected one of {', '.join(DIALECTS)}, got {dialect!r}")
        self._data_dir = data_dir
        self._options: dict[str, Any] = {
            "host": host,
            "port": port,
            "api_key": api_key,
            "speed": speed,
            "seconds_per_look": seconds_per_look,
            "batch_seconds": batch_seconds,
            "token_limits": dict(token_limits or {}),
            "faults": tuple(parse_rules(list(faults))),
            "upstream": upstream,
            "upstream_api_key": upstream_api_key,
            "upstream_concurrency": upstream_concurrency,
            "upstream_backoff_s": upstream_backoff,
            "webhook_url": webhook_url,
            "webhook_secret": webhook_secret,
            "keep_requests": keep_requests,
            "dialect": dialect,
        }
        self._running: _Running | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        # Here, because aiohttp is only there with the extra and takes a while to import.
        from airflow_provider_openai_batches.emulator.service import Settings

        directory = self._data_dir
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="openai-batches-emulator-")
            directory = self._temporary.name
        self._running = _Running(Settings(data_dir=Path(directory), **self._options))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    @property
    def base_url(self) -> str:
        """What clients take as base URL: ``http://127.0.0.1:PORT/v1``, or where the dialect has it."""
        return self._open.service.base_url

    @property
    def api_key(self) -> str | None:
        """The key every call must bring; None: any, or none. It may be set, as keys are rotated."""
        key: str | None = self._options["api_key"]
        return key

    @api_key.setter
    def api_key(self, key: str | None) -> None:
        self._options["api_key"] = key
        self._open.run(lambda service: setattr(service.lock, "key", key))

    @property
    def dialect(self) -> str:
        """Which service it stands in for."""
        name: str = self._options["dialect"]
        return name

    def advance(self, seconds: float) -> None:
        """Move the virtual clock ahead and return when all that was due has happened.

        An upstream's answers are not due at any time: they are not waited for.

        :param seconds: virtual seconds
        """
        self._open.call(lambda service: service.clock.advance(seconds))

    @property
    def now(self) -> int:
        """The virtual time, in unix seconds; at first the real one."""
        return self._open.run(lambda service: service.clock.now())

    @property
    def seconds_per_look(self) -> float:
        """Virtual seconds that pass whenever a client retrieves or lists batches; may be set."""
        return self._open.run(lambda service: service.clock.per_look)

    @seconds_per_look.setter
    def seconds_per_look(self, seconds: float) -> None:
        self._open.run(lambda service: setattr(service.clock, "per_look", seconds))

    def add_fault(self, rule: Mapping[str, Any]) -> None:
        """Add a fault rule behind those in force.

        :raises FaultError: it cannot be understood
        """
        from airflow_provider_openai_batches.emulator.faults import parse_rule

        parsed = parse_rule(rule)
        self._open.run(lambda service: service.faults.add([parsed]))

    def clear_faults(self) -> None:
        """Forget all fault rules."""
        self._open.run(lambda service: service.faults.clear())

    @property
    def calls(self) -> list[Call]:
        """The calls to the API so far (the latest 100,000): (method, route, status), as in ``POST /v1/batches``.

        Ids in routes are shown as ``{batch_id}`` and ``{file_id}``; the status is 0 where a fault cut the connection.
        """
        return self._open.run(lambda service: list(service.calls.latest))

    def count(self, method: str, route: str) -> int:
        """How often a route has been called, such as ``count("POST", "/v1/batches")``."""
        return self._open.run(lambda service: service.calls.counts[f"{method} {route}"])

    def batches(self) -> list[dict[str, Any]]:
        """Every batch as the API shows it now, newest first."""
        return self._open.run(lambda service: [service.runner.shown(batch) for batch in service.store.batches()])

    def files(self) -> list[dict[str, Any]]:
        """Every file as the API shows it now, newest first: without those that were deleted or have expired."""

        def shown(service: Service) -> list[dict[str, Any]]:
            now = service.clock.now()
            found = service.store.files(now=now, purpose=None, after=None, ascending=False, limit=-1)
            return [file.to_api() for file in found]

        return self._open.run(shown)

    def requests(self) -> list[ReceivedRequest]:
        """Every request of every batch that passed validation, in the order in which they were sent.

        Behind them those that came to a model's own endpoint, without a batch: their ``batch_id`` is None.

        :raises RuntimeError: the emulator does not keep requests
        """
        from airflow_provider_openai_batches.emulator.receipts import received_requests

        if not self._options["keep_requests"]:
            raise RuntimeError("the emulator does not keep requests: start it with keep_requests=True")
        return self._open.run(lambda service: received_requests(service.store))

    def bought(self) -> Counter[str]:
        """How often each custom_id has been answered, and so billed; 2 is one too many.

        Jobs that number their rows have the same custom_ids: tell them apart by the metadata of :meth:`requests`.

        :raises RuntimeError: the emulator does not keep requests
        """
        return Counter(request.custom_id for request in self.requests() if request.billed)

    @property
    def _open(self) -> _Running:
        if self._running is None:
            raise RuntimeError("the emulator is not running: use it as a context manager")
        return self._running


class _Running:
    """A thread with an event loop that serves an emulator."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started: Future[Service] = Future()
        # A daemon: a test run that dies without leaving its context must not hang on it.
        self._thread = threading.Thread(target=self._serve, name="openai-batches-emulator", daemon=True)
        self._thread.start()
        self.service = self._started.result()

    def run(self, work: Callable[[Service], T]) -> T:
        """Run ``work`` in the emulator's loop and return what it returns."""

        async def in_loop(service: Service) -> T:
            return work(service)

        return self.call(in_loop)

    def call(self, work: Callable[[Service], Coroutine[Any, Any, T]]) -> T:
        """Run the coroutine ``work`` makes in the emulator's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work(self.service), self._loop).result()

    def stop(self) -> None:
        """End the server and the thread."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def _serve(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _main(self) -> None:
        from airflow_provider_openai_batches.emulator.service import serving

        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        async with serving(self._settings) as service:
            self._started.set_result(service)
            await self._stopped.wait()
