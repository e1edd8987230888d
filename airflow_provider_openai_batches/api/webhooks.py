"""Who sent this webhook, and what does it say: https://www.standardwebhooks.com, as OpenAI signs.

The signature is all that tells OpenAI's call from anybody's: an endpoint is open to the internet. Each refusal has a
class and a ``code`` of its own::

    OpenAIBatchesError
    └── WebhookError
        ├── WebhookSecretError        no_secret       our side: the secret is missing or cannot be read
        ├── WebhookUnsignedError      unsigned        a header is missing
        ├── WebhookMalformedError     malformed       a header, or the signed body, is not what the standard says
        ├── WebhookStaleError         stale           signed more than five minutes ago, or ahead
        └── WebhookSignatureError     bad_signature   no signature is made with this secret from these bytes

No message holds the secret or a signature that would have been accepted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import TERMINAL_STATUSES

TOLERANCE_S = 300
"""How far the sender's clock may be from ours; a call that is recorded and sent again later is refused."""

_SECRET_PREFIX = "whsec_"  # noqa: S105 - what stands before a secret
_BATCH_EVENT = "batch."
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_LONGEST_ID = 200


class WebhookError(OpenAIBatchesError):
    """A webhook call that must not be acted upon."""


class WebhookSecretError(WebhookError):
    """We have no secret that the call could be checked with."""

    code = "no_secret"


class WebhookUnsignedError(WebhookError):
    """The call lacks a header, so that nobody can tell who sent it."""

    code = "unsigned"


class WebhookMalformedError(WebhookError):
    """The call is not a webhook of this standard, or not about an object."""

    code = "malformed"


class WebhookStaleError(WebhookError):
    """The call was signed too long ago or too far in the future."""

    code = "stale"


class WebhookSignatureError(WebhookError):
    """The call was signed with another secret, or changed on its way."""

    code = "bad_signature"


class WebhookEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook whose signature is good: https://platform.openai.com/docs/guides/webhooks.

    Deliveries repeat and come in any order, and the event says little: who needs more retrieves the batch.

    :param webhook_id: the same for each delivery of an event: drop repetitions by it
    :param id: OpenAI's id of the event; ``""`` if it has none
    :param type: such as ``batch.completed``; a project's endpoint may receive others than a batch's
    :param created_at: unix seconds; None if the event does not say
    :param object_id: what it is about (``data.id``)
    """

    webhook_id: str
    id: str
    type: str
    created_at: int | None
    object_id: str

    @property
    def batch_id(self) -> str | None:
        """The batch it is about; None if it is about something else."""
        return self.object_id if self.type.startswith(_BATCH_EVENT) else None

    @property
    def status(self) -> str | None:
        """The status that the batch has reached; None if the event is not the end of a batch."""
        status = self.type.removeprefix(_BATCH_EVENT)
        return status if self.batch_id is not None and status in TERMINAL_STATUSES else None


def verify(secret: str | Callable[[], str], headers: Mapping[str, str], body: bytes, *, now: float) -> WebhookEvent:
    """Check that a call was signed with the secret within the last five minutes, and read it.

    :param secret: the endpoint's: ``whsec_`` and the key in base64, else the key itself. Or what looks it up: that is
        asked only about a call that has all headers and is fresh, since anybody can make one that is not
    :param headers: the request's, names in any spelling
    :param body: the request's raw body: the signature is for these bytes, not for what they mean
    :param now: unix time
    :raises WebhookError: do not act upon the call; see the classes above
    """
    by_name = {name.lower(): value for name, value in headers.items()}
    webhook_id, timestamp, signatures = (
        _header(by_name, name) for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
    )
    if len(webhook_id) > _LONGEST_ID or not webhook_id.isascii() or not webhook_id.isprintable():
        raise WebhookMalformedError(f"webhook-id: expected up to {_LONGEST_ID} printable ASCII characters.")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise WebhookMalformedError("webhook-timestamp: expected unix seconds.")
    age_s = now - int(timestamp)
    if not -TOLERANCE_S <= age_s <= TOLERANCE_S:
        when = f"{age_s:,.0f} seconds ago" if age_s > 0 else f"{-age_s:,.0f} seconds ahead of our clock"
        raise WebhookStaleError(f"The webhook was signed {when}; {TOLERANCE_S} are allowed. Is our clock right?")
    key = _key(secret if isinstance(secret, str) else secret())
    digest = hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256)
    expected = base64.b64encode(digest)
    # A sender that changes its secret signs with the old and the new one for a while.
    given = [signature.removeprefix("v1,").encode(errors="replace") for signature in signatures.split()]
    if not any(hmac.compare_digest(expected, each) for each in given):
        raise WebhookSignatureError(
            "No signature of the webhook fits. Is the connection's webhook_secret this endpoint's, and does a proxy "
            "change the body?"
        )
    return _event(webhook_id, body)


def check_secret(secret: str) -> None:
    """Refuse a secret with which nothing could be checked.

    :raises WebhookSecretError: there is nothing in it, or it cannot be read
    """
    _key(secret)


def _key(secret: str) -> bytes:
    secret = secret.strip()
    if not secret.startswith(_SECRET_PREFIX):
        key = secret.encode(errors="surrogatepass")
    else:
        encoded = secret.removeprefix(_SECRET_PREFIX).rstrip("=")
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError as error:
            raise WebhookSecretError(
                "The webhook_secret begins with 'whsec_', but base64 does not follow. Copy it again."
            ) from error
    if not key:
        # Anybody can sign with an empty key.
        raise WebhookSecretError("There is no webhook_secret. Put the endpoint's signing secret into the connection.")
    return key


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "").strip()
    if not value:
        raise WebhookUnsignedError(f"The call has no {name} header: it is not a signed webhook.")
    return value


class _Subject(msgspec.Struct):
    id: str


class _Payload(msgspec.Struct):
    type: str
    data: _Subject
    id: str = ""
    created_at: Any = None


def _event(webhook_id: str, body: bytes) -> WebhookEvent:
    try:
        payload = msgspec.json.decode(body, type=_Payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WebhookMalformedError(f"The webhook {webhook_id} is signed, but not an event: {error}") from error
    if not payload.data.id:
        raise WebhookMalformedError(f"The webhook {webhook_id} names no object it is about.")
    created_at = payload.created_at
    return WebhookEvent(
        webhook_id=webhook_id,
        id=payload.id,
        type=payload.type,
        created_at=int(created_at) if type(created_at) in (int, float) else None,
        object_id=payload.data.id,
    )
