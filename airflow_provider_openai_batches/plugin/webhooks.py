"""Where OpenAI says that a batch has ended: ``POST /openai-batches/webhooks/<conn_id>``.

Anybody on the internet can call it. The signature is the only login, and the answer to a call without a good one is the
same whether the connection exists or not.

An event counts once, however often it is delivered and to whichever of several API servers: :mod:`.events` looks for
its ``webhook-id`` among the asset's events while it holds the asset's row. The memory of one API server would not reach
that far, and a record apart from the events could be there without them.

It is answered as soon as that is written down. To wake the tasks that wait for the batch takes a call to OpenAI, which
may last ten seconds: two threads do that afterwards. A server that ends before they have done so loses these wake-ups,
and the tasks go on at their next poll.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from airflow_provider_openai_batches.api.webhooks import WebhookError, WebhookEvent, verify
from airflow_provider_openai_batches.plugin.access import CONN_ID, LONGEST_NAME
from airflow_provider_openai_batches.plugin.backlog import Backlog
from airflow_provider_openai_batches.plugin.errors import PageError
from airflow_provider_openai_batches.plugin.events import announce, wake
from airflow_provider_openai_batches.plugin.webhook_secrets import WebhookSecrets

log = logging.getLogger(__name__)

router = APIRouter()

LARGEST_BODY = 65_536
"""In bytes. A batch's event has about 200."""

_BODY_WITHIN_S = 10.0
_UNAUTHORIZED = {"unsigned", "bad_signature"}


async def _body(request: Request) -> bytes:
    """Read the body, unless it is too long or too slow."""
    content = bytearray()
    try:
        async with asyncio.timeout(_BODY_WITHIN_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > LARGEST_BODY:
                    raise PageError(413, "too_large", f"The body of a webhook has at most {LARGEST_BODY:,} bytes.")
    except TimeoutError:
        raise PageError(408, "too_slow", "The body did not arrive in time.") from None
    return bytes(content)


@router.post("/webhooks/{conn_id}")
def receive_webhook(
    request: Request,
    conn_id: Annotated[str, Path(pattern=CONN_ID, max_length=LONGEST_NAME)],
    body: Annotated[bytes, Depends(_body)],
) -> Response:
    """Take an event in. Answered with 204, also the second time; anything else makes OpenAI send it again."""
    event = _verified(request, conn_id, body)
    is_news = announce(event, conn_id)
    if is_news and not _wakings.add((event, conn_id)):
        log.warning("Too many webhooks at once: who waits for batch %s goes on at the next poll.", event.object_id)
    log.info("Webhook %s: %s %s%s", event.webhook_id, event.type, event.object_id, "" if is_news else " (nothing new)")
    return Response(status_code=204)


def _verified(request: Request, conn_id: str, body: bytes) -> WebhookEvent:
    try:
        return verify(lambda: _secrets.of(conn_id), request.headers, body, now=time.time())
    except WebhookError as error:
        code = error.code or "malformed"
        raise PageError(401 if code in _UNAUTHORIZED else 400, code, str(error)) from None


_secrets = WebhookSecrets()
_wakings: Backlog[tuple[WebhookEvent, str]] = Backlog(lambda piece: wake(*piece), threads=2, most=1_000)


def forget_all() -> None:
    """Read every connection's secret anew from now on."""
    _secrets.forget()
