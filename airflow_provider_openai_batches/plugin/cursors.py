"""Cursors of the batch list that tell nothing: where a page ends is the id of a batch that its reader may not see."""

from __future__ import annotations

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken

from airflow_provider_openai_batches.plugin.errors import PageError

LONGEST_CURSOR = 500
_PURPOSE = b"airflow-provider-openai-batches: cursors of the batch list: "


class Cursors:
    """The cursors of one connection's list. Each API server reads what another one wrote.

    :param api_key: all API servers have it, and who has it sees all batches anyway; the cipher's key is derived from it
    """

    def __init__(self, api_key: str) -> None:
        key = hashlib.sha256(_PURPOSE + api_key.encode(errors="surrogatepass")).digest()
        self._cipher = Fernet(base64.urlsafe_b64encode(key))

    def seal(self, batch_id: str) -> str:
        """Return a cursor to what comes after a batch."""
        return self._cipher.encrypt(batch_id.encode()).decode()

    def open(self, cursor: str) -> str:
        """Return the batch that a cursor stands behind.

        :raises PageError: it is none of this connection's with its present key
        """
        try:
            return self._cipher.decrypt(cursor).decode()
        except (InvalidToken, ValueError):
            raise PageError(
                400, "bad_cursor", "This place in the list is not known any more. Begin with the newest batches."
            ) from None
