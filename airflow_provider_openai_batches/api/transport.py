"""The HTTP session below :mod:`.session`: what requests leaves open to a server that is hostile, or broken.

- Headers that drip, and "100 Continue" without end, would hold the caller for ever: a timeout is for each byte.
- The body of a redirect would be read into memory, however long it is.
- A redirect to another host would take all headers along but ``Authorization``.
"""

from __future__ import annotations

import functools
import http.client
import io
import math
import time
from collections.abc import Mapping
from socket import socket
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse
from urllib3.connection import HTTPConnection


class ServiceAuth(requests.auth.AuthBase):
    """Sets our headers, and as an explicit auth keeps requests from looking into ``~/.netrc``."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the headers."""
        request.headers.update(self.headers)
        return request


NO_HEADERS = ServiceAuth({})
"""For calls to other hosts."""


class Session(requests.Session):
    """Drops every header of the connection when a redirect leaves the service's host, not only ``Authorization``.

    :param headers: for the service's host only
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__()
        self.auth = ServiceAuth(headers)
        self.mount("http://", _Adapter())
        self.mount("https://", _Adapter())
        self.headers["Accept-Encoding"] = "identity"

    def set_header(self, name: str, value: str) -> None:
        """Send another header from now on, for the service's host only."""
        assert isinstance(self.auth, ServiceAuth)
        self.auth.headers = {**self.auth.headers, name: value}

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Decide what goes along to where a redirect leads."""
        if self.should_strip_auth(response.request.url, prepared_request.url):  # type: ignore[no-untyped-call]
            assert isinstance(self.auth, ServiceAuth)
            for name in self.auth.headers:
                prepared_request.headers.pop(name, None)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where a redirect leads. Its body is not read: it may be endless."""
        target: str | None = super().get_redirect_target(resp)
        if target is not None:
            # Requests would take in all of it, to use the connection again.
            resp.raw.close()
            resp.raw = HTTPResponse(io.BytesIO(), preload_content=False)
        return target


class _Adapter(HTTPAdapter):
    def __init__(self) -> None:
        # Retries are tenacity's alone: two layers would multiply, and urllib3 would repeat a POST.
        super().__init__(max_retries=0)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _prompt(pool.ConnectionCls)
        return pool


class _PromptResponse(http.client.HTTPResponse):
    """An answer whose head has to be there within the timeout, however slowly it drips."""

    def __init__(self, sock: socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        timeout = sock.gettimeout()
        self._paced = _Paced(self.fp.detach(), math.inf if timeout is None else time.monotonic() + timeout)
        self.fp = io.BufferedReader(self._paced)

    def begin(self, *args: Any, **kwargs: Any) -> None:
        super().begin(*args, **kwargs)  # Newer versions of Python pass limits.
        # A body may take as long as it likes, as far as this is concerned.
        self._paced.until = math.inf


@functools.cache
def _prompt(connection: type[HTTPConnection]) -> type[HTTPConnection]:
    """Return a pool's class of connections with prompt answers. A SOCKS proxy's pool has a class of its own."""
    if issubclass(connection.response_class, _PromptResponse):  # The pool was here before.
        return connection
    return type(connection.__name__, (connection,), {"response_class": _PromptResponse})


class _Paced(io.RawIOBase):
    """What comes from a socket until a moment.

    :param raw: the socket's stream, unbuffered
    :param until: on the monotonic clock
    """

    def __init__(self, raw: io.RawIOBase, until: float) -> None:
        self._raw, self.until = raw, until

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self.until:
            raise TimeoutError("the head of the answer was not complete in time")
        return self._raw.readinto(buffer)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()
