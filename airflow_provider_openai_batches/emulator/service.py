"""One emulator: its store, clock, batches and HTTP server, within one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from aiohttp import web

from airflow_provider_openai_batches.emulator.clock import VirtualClock
from airflow_provider_openai_batches.emulator.dialects import DIALECTS
from airflow_provider_openai_batches.emulator.faults import Faults, Rule
from airflow_provider_openai_batches.emulator.model_routes import ModelRoutes
from airflow_provider_openai_batches.emulator.runner import BatchRunner
from airflow_provider_openai_batches.emulator.server import Calls, Lock, create_app
from airflow_provider_openai_batches.emulator.store import Store
from airflow_provider_openai_batches.emulator.upstream import UpstreamServer
from airflow_provider_openai_batches.emulator.webhooks import WebhookSender

_SHUTDOWN_S = 0.5
_CLOCK_SAVED_EVERY_S = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How an emulator behaves; see :class:`airflow_provider_openai_batches.emulator.Emulator`."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    api_key: str | None = None
    speed: float = 1.0
    seconds_per_look: float = 0.0
    batch_seconds: float = 120.0
    token_limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    faults: tuple[Rule, ...] = ()
    upstream: str | None = None
    upstream_api_key: str | None = None
    upstream_concurrency: int = 8
    upstream_backoff_s: float = 0.5
    webhook_url: str | None = None
    webhook_secret: str = ""
    keep_requests: bool = False
    dialect: str = "openai"


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """A running emulator. Its parts belong to the event loop that runs it."""

    base_url: str
    store: Store
    clock: VirtualClock
    runner: BatchRunner
    faults: Faults
    calls: Calls
    lock: Lock


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Service]:
    """Run an emulator for as long as the context is open.

    :raises OSError: the port is taken
    :raises DataDirInUseError: another emulator uses the data directory
    """
    async with contextlib.AsyncExitStack() as stack:
        store = Store(settings.data_dir, keep_requests=settings.keep_requests)
        stack.callback(store.close)
        elapsed, now = store.load_clock()
        clock = VirtualClock(
            elapsed=elapsed,
            now=now,
            speed=settings.speed,
            per_look=settings.seconds_per_look,
            moved=store.save_clock,
        )
        store.follow_clock(clock.reading)
        store.delete_expired_files(now=clock.now())
        stack.callback(clock.stop)
        faults = Faults(settings.faults)
        upstream = None
        if settings.upstream is not None:
            upstream = await stack.enter_async_context(
                UpstreamServer(
                    settings.upstream,
                    api_key=settings.upstream_api_key,
                    concurrency=settings.upstream_concurrency,
                    backoff_s=settings.upstream_backoff_s,
                )
            )
        webhook = None
        if settings.webhook_url is not None:
            sender = WebhookSender(settings.webhook_url, settings.webhook_secret, clock)
            webhook = await stack.enter_async_context(sender)
        dialect = DIALECTS[settings.dialect]
        runner = BatchRunner(
            store,
            clock,
            faults,
            batch_seconds=settings.batch_seconds,
            token_limits=settings.token_limits,
            upstream=upstream,
            ended=webhook.batch_ended if webhook is not None else lambda _: None,
            dialect=dialect,
        )
        stack.push_async_callback(runner.stop)
        calls, lock = Calls(), Lock(settings.api_key)
        models = ModelRoutes(store, clock, upstream)
        app = create_app(store, clock, runner, models, faults, calls, lock=lock, dialect=dialect)
        server = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        stack.push_async_callback(server.cleanup)
        await server.setup()
        site = web.TCPSite(server, settings.host, settings.port)
        await site.start()
        runner.resume()
        saving = asyncio.create_task(_save_clock(store, clock))
        stack.callback(saving.cancel)
        stack.callback(store.save_clock)
        port = server.addresses[0][1]
        base_url = f"http://{settings.host}:{port}{dialect.prefix}"
        yield Service(base_url, store, clock, runner, faults, calls, lock)


async def _save_clock(store: Store, clock: VirtualClock) -> None:
    """Keep the saved reading fresh: after a kill, time goes on from there."""
    saved = -1.0
    while True:
        if clock.elapsed() != saved:
            saved = clock.elapsed()
            store.save_clock()
        await asyncio.sleep(_CLOCK_SAVED_EVERY_S)
