"""Where the service is and who is calling. Apart from the session, so that reading a connection loads no HTTP."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from airflow_provider_openai_batches.api.dialects import OPENAI, Dialect, is_azure
from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import check_base_url

DEFAULT_BASE_URL = OPENAI.base_url
ENTRA_SCOPE = "https://cognitiveservices.azure.com/.default"
"""What a token is for, unless the connection says otherwise: learn.microsoft.com/azure/ai-services/authentication."""

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
    :param auth: ``bearer``, ``api-key``, or ``entra`` for tokens of the machine's identity instead of a key
    :param dialect: where the service differs from OpenAI
    :param entra_scope: what such a token is for
    """

    api_key: str = dataclasses.field(repr=False, default="")
    base_url: str = DEFAULT_BASE_URL
    organization: str | None = None
    project: str | None = None
    timeout_s: float = 60.0
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    query: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    auth: str = "bearer"
    dialect: Dialect = OPENAI
    entra_scope: str = ENTRA_SCOPE

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", check_base_url(self.base_url))
        object.__setattr__(self, "query", {**self.dialect.placed(self.base_url), **self.query})
        # A newline at the end is what `echo key > secret` leaves behind.
        object.__setattr__(self, "api_key", (self.api_key or "").strip())
        self._check_auth()
        if not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key:
            raise InvalidInputError("password", "the API key has characters that no key has. Copy it again.")
        if self.timeout_s <= 0:
            raise InvalidInputError("timeout", f"expected a positive number of seconds, got {self.timeout_s!r}.")
        if (name := _unsendable(self.request_headers())) is not None:
            # Checked here because http.client's own error would show the value.
            raise InvalidInputError("headers", f"{name!r} or its value has characters that no header can hold.")

    def _check_auth(self) -> None:
        choices = ("bearer", "api-key", "entra") if self.dialect.has_entra else ("bearer", "api-key")
        if self.auth not in choices:
            hint = " Tokens of Microsoft Entra are for dialect 'azure'." if self.auth == "entra" else ""
            expected = " or ".join(map(repr, choices))
            raise InvalidInputError("auth", f"expected {expected}, got {self.auth!r}.{hint}")
        if self.auth != "entra":
            if not self.api_key:
                raise InvalidInputError("password", "the API key is missing. Put it into the connection's password.")
            return
        if self.api_key:
            raise InvalidInputError(
                "password", "there is a key, but auth is 'entra', which has none. Empty the password, or change auth."
            )
        host = urlsplit(self.base_url).hostname or ""
        # Unlike a key, a token is not the connection's but the machine's, and good for all resources that this may use:
        # whoever may edit a connection must not be able to send it somewhere else.
        is_safe = self.base_url.startswith("https:") and is_azure(self.base_url)
        if not is_safe and not _is_loopback(host):
            raise InvalidInputError(
                "host", f"a token of this machine's identity goes to hosts of Azure over https alone, not to {host}."
            )

    def url(self, *path: str) -> str:
        """Return the URL of a path below the base URL. Nothing else joins the two.

        :param path: segments; each is quoted, so that no id can leave its place
        """
        return "/".join((self.base_url, *(quote(segment, safe="") for segment in path)))

    def request_headers(self) -> dict[str, str]:
        """Headers of every request; all of them are for this host only. A token of Entra is no part of them."""
        headers = {str(name).strip(): str(value).strip() for name, value in self.headers.items()}
        if self.auth == "api-key":
            headers["api-key"] = self.api_key
        elif self.auth == "bearer":
            headers["Authorization"] = f"Bearer {self.api_key}"
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
