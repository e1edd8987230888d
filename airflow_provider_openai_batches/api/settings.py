"""Where the service is and who is calling. Apart from the session, so that reading a connection loads no HTTP."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import check_base_url

DEFAULT_BASE_URL = "https://api.openai.com/v1"
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Where the service is and who is calling.

    :param api_key: sent as bearer token or ``api-key`` header; never shown
    :param base_url: the service's URL up to and including its version
    :param organization: sent as ``OpenAI-Organization``
    :param project: sent as ``OpenAI-Project``
    :param timeout_s: longest silence of the server in seconds; file transfers get at least ten minutes
    :param headers: further headers of every request
    :param query: query parameters of every request
    :param auth: ``bearer`` or ``api-key``
    """

    api_key: str = dataclasses.field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    organization: str | None = None
    project: str | None = None
    timeout_s: float = 60.0
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    query: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    auth: str = "bearer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", check_base_url(self.base_url))
        # A newline at the end is what `echo key > secret` leaves behind.
        object.__setattr__(self, "api_key", (self.api_key or "").strip())
        if not self.api_key:
            raise InvalidInputError("password", "the API key is missing. Put it into the connection's password.")
        if not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key:
            raise InvalidInputError("password", "the API key has characters that no key has. Copy it again.")
        if self.auth not in ("bearer", "api-key"):
            raise InvalidInputError("auth", f"expected 'bearer' or 'api-key', got {self.auth!r}.")
        if self.timeout_s <= 0:
            raise InvalidInputError("timeout", f"expected a positive number of seconds, got {self.timeout_s!r}.")
        if (name := _unsendable(self.request_headers())) is not None:
            # Checked here because http.client's own error would show the value.
            raise InvalidInputError("headers", f"{name!r} or its value has characters that no header can hold.")

    def request_headers(self) -> dict[str, str]:
        """Headers of every request; all of them are for this host only."""
        headers = {str(name).strip(): str(value).strip() for name, value in self.headers.items()}
        headers |= {"api-key": self.api_key} if self.auth == "api-key" else {"Authorization": f"Bearer {self.api_key}"}
        if self.organization:
            headers["OpenAI-Organization"] = self.organization.strip()
        if self.project:
            headers["OpenAI-Project"] = self.project.strip()
        return headers


def _unsendable(headers: Mapping[str, str]) -> str | None:
    """Name a header that HTTP cannot carry. Apart, so that a traceback with local variables holds no value."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not value.isprintable() or max(value, default="") > "\xff":
            return name
    return None
