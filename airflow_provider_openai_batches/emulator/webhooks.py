"""Tell a webhook endpoint that a batch has ended, signed as OpenAI signs: https://www.standardwebhooks.com."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time
from types import TracebackType
from typing import Self

import aiohttp

from airflow_provider_openai_batches.emulator.clock import VirtualClock
from airflow_provider_openai_batches.emulator.store import StoredBatch
from airflow_provider_openai_batches.emulator.wire import dump, new_hex_id

log = logging.getLogger(__name__)

_ATTEMPTS = 5
_FIRST_RETRY_S = 0.5
_TIMEOUT_S = 10.0
_USER_AGENT = "openai-batches-emulator (in the manner of OpenAI/1.0)"


class WebhookSender:
    """Sends ``batch.completed``, ``.failed``, ``.expired`` and ``.cancelled``; anything but 2xx is sent again.

    Events that are under way when the emulator stops are lost: a receiver must poll as well, as with OpenAI.

    :param url: the endpoint
    :param secret: ``whsec_`` and the key in base64, or any text
    :param clock: for the events' ``created_at``; the signature bears real time, which receivers check
    """

    def __init__(self, url: str, secret: str, clock: VirtualClock) -> None:
        self._url = url
        self._key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout, headers={"User-Agent": _USER_AGENT})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def batch_ended(self, batch: StoredBatch) -> None:
        """Send the event of a batch that has reached a terminal state."""
        event = {
            "id": new_hex_id("evt_"),
            "object": "event",
            "created_at": self._clock.now(),
            "type": f"batch.{batch.status}",
            "data": {"id": batch.id},
        }
        task = asyncio.get_running_loop().create_task(self._deliver(dump(event)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, body: bytes) -> None:
        webhook_id = new_hex_id("wh_")  # the same for each attempt: receivers drop repetitions by it
        for attempt in range(_ATTEMPTS):
            try:
                headers = self._signed(webhook_id, int(time.time()), body)
                async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                    if answer.ok and answer.status < 300:
                        return
                    problem = f"HTTP {answer.status}"
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = str(error) or type(error).__name__
            await asyncio.sleep(_FIRST_RETRY_S * 2**attempt)
        log.warning("Gave up on webhook %s after %d attempts: %s", webhook_id, _ATTEMPTS, problem)

    def _signed(self, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        content = f"{webhook_id}.{timestamp}.".encode() + body
        signature = base64.b64encode(hmac.digest(self._key, content, hashlib.sha256)).decode()
        return {
            "Content-Type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": f"v1,{signature}",
        }
