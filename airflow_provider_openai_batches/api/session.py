"""One HTTP exchange with the service: settings in, a response or one of our errors out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import msgspec
import requests
from urllib3.exceptions import HTTPError, LocationParseError, NewConnectionError

from airflow_provider_openai_batches.api.entra import TokenSource
from airflow_provider_openai_batches.api.error_answers import status_error
from airflow_provider_openai_batches.api.errors import (
    APIConnectionError,
    APIStatusError,
    InvalidInputError,
    InvalidResponseError,
    UnreachableError,
)
from airflow_provider_openai_batches.api.models import one_line
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.api.transport import NO_HEADERS, Session

_CONNECT_TIMEOUT_S = 10.0
_SEND_TIMEOUT_S = 60.0
"""For uploads: urllib3 holds each write on a new connection to the connect timeout."""

TRANSFER_TIMEOUT_S = 600.0
"""Shortest time that the server may be silent while a file goes either way, or while a model thinks."""

_CHUNK_BYTES = 65_536
_ERROR_BODY_BYTES = 65_536
_LARGEST_ANSWER_BYTES = 64 << 20
"""For JSON: a full page of 100 batches with all their metadata is below 1 MB."""

_SHORTEST_SECRET = 6
"""Shorter values (``1``, ``none``) hide nothing, and redacting them would make messages unreadable."""


_PUBLIC_QUERY = ("api-version", "provider")
"""No secrets: hiding "2024-10-21" or "openai" wherever they occur would make messages unreadable, too."""


def longest_call_s(settings: ClientSettings) -> float:
    """Return how many seconds a call that is a file's or a model's may take: to be sent, answered, and read to the end.

    :param settings: of the connection, whose timeout may be longer than ours
    """
    return _SEND_TIMEOUT_S + 2 * max(settings.timeout_s, TRANSFER_TIMEOUT_S)


class ServiceSession:
    """Sends one request and turns whatever goes wrong into this package's errors.

    :param settings: where the service is and who is calling
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._session = Session(settings.request_headers())
        self._tokens = TokenSource(settings.entra_scope) if settings.auth == "entra" else None
        self._token = ""
        self._token_is_good = False
        query = [value for name, value in settings.query.items() if name not in _PUBLIC_QUERY]
        values = [str(value) for value in (settings.api_key, *settings.headers.values(), *query)]
        # What refuses "Bearer KEY" may name the KEY alone.
        values += [value.split()[-1] for value in values if value.strip()]
        secrets = {value for value in values if len(value) >= _SHORTEST_SECRET}
        # Errors about URLs show the query as it is sent.
        secrets |= {quote(secret, safe="") for secret in secrets} | {quote_plus(secret) for secret in secrets}
        self._secrets = sorted(secrets, key=len, reverse=True)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()
        if self._tokens is not None:
            self._tokens.forget()

    def send(
        self,
        method: str,
        *path: str,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        follow_redirects: bool = False,
        takes_redirect: bool = False,
        transfer: bool = False,
    ) -> requests.Response:
        """Make one request. The body of the answer is unread; whoever calls reads or closes it.

        :param method: HTTP method
        :param path: segments below the base URL; each is quoted, so that no id can leave its place
        :param params: query parameters, beside the connection's
        :param body: bytes or a readable stream
        :param content_type: of the body
        :param headers: further headers
        :param follow_redirects: to other hosts too, without the connection's headers; for downloads
        :param takes_redirect: a redirect is an answer like any other
        :param transfer: a file goes either way, so the server may be silent for longer
        :raises CredentialError: there is no token to call with
        :raises APIStatusError: HTTP 400 and above
        :raises APIConnectionError: no complete answer
        :raises InvalidResponseError: a redirect where the API has none
        """
        route = "/" + "/".join(quote(segment, safe="") for segment in path)
        call = f"{method} {route}"
        timeout = self._timeout_s(transfer)
        connect_timeout = _SEND_TIMEOUT_S if transfer and body is not None else _CONNECT_TIMEOUT_S
        self._authorize()
        try:
            response = self._session.request(
                method,
                self.settings.url(*path),
                params={**self.settings.query, **(params or {})},
                data=body,
                headers={**({} if body is None else {"Content-Type": content_type}), **(headers or {})},
                timeout=(min(connect_timeout, timeout), timeout),
                stream=True,
                allow_redirects=follow_redirects,
            )
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, LocationParseError) as error:
            reason = self._redacted(str(error))
            raise InvalidInputError("host", f"{self.settings.base_url} is no usable URL: {reason}") from None
        except requests.RequestException as error:
            raise self.connection_error(call, error) from None
        if response.status_code >= 400:
            raise self._refused(call, response, within_s=timeout)
        self._token_is_good = True
        if response.is_redirect and not takes_redirect:
            response.close()
            raise InvalidResponseError(
                f"{call} was redirected to {self._redacted(response.headers.get('location', ''))}. "
                "Put the URL that serves the API itself into the connection's host.",
                maybe_applied=False,
            )
        return response

    def put_elsewhere(self, url: str, body: Any) -> None:
        """Put a file where the service has said to. Neither headers nor query of the connection go there.

        :param url: as the service gave it; it may grant access, so it is not shown
        :param body: a readable stream that knows its length
        :raises APIStatusError: HTTP 400 and above
        :raises APIConnectionError: no complete answer
        :raises InvalidResponseError: it is no place to put a file at, or less protected than the service itself
        """
        parts, call = urlsplit(url), "PUT /files/{id} at the service's storage"
        usable = ("https",) if self.settings.base_url.startswith("https:") else ("https", "http")
        if parts.scheme not in usable or not parts.hostname:
            raise InvalidResponseError(
                f"The service wants the file at {parts.scheme}://{self._redacted(parts.netloc)}, which is not safe."
            )
        timeout = self._timeout_s(True)
        try:
            response = self._session.request(
                "PUT",
                url,
                data=body,
                auth=NO_HEADERS,
                timeout=(min(_SEND_TIMEOUT_S, timeout), timeout),
                stream=True,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            # The cause names the URL.
            raise APIConnectionError(
                f"{call} to {self._redacted(parts.netloc)} got no complete answer: {type(error).__name__}."
            ) from None
        response.close()
        if response.status_code >= 400:
            # Without the body: storage likes to repeat what it was signed with.
            reason = b"it does not take the file"
            raise status_error(call, response.status_code, response.headers, reason, redacted=self._redacted)
        if response.status_code >= 300:
            raise InvalidResponseError(f"{call} was sent on elsewhere with {response.status_code}: nothing is there.")

    def json(
        self, method: str, *path: str, transfer: bool = False, list_as: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Make one request and decode the JSON object of its answer.

        :param list_as: takes a bare array, too, as the member of this name
        :param options: those of :meth:`send`
        :raises InvalidResponseError: the answer is something else, or endless
        """
        response = self.send(method, *path, transfer=transfer, **options)
        within_s = self._timeout_s(transfer)
        # The body is no variable here: it may repeat the key, and some show the variables of a traceback.
        decoded = _decoded(self._body(f"{method} /{'/'.join(path)}", response, within_s=within_s))
        if isinstance(decoded, list) and list_as is not None:
            return {list_as: decoded}
        if not isinstance(decoded, dict):
            raise self._no_json(f"{method} /{'/'.join(path)}", response)
        return decoded

    def raw_json(self, method: str, *path: str, **options: Any) -> tuple[requests.Response, bytes]:
        """Make one request and return the JSON object of its answer as it came, on one line.

        For answers of models: numbers keep their digits, whatever a reader would make of them. The server may be
        silent for as long as with files.

        :param options: those of :meth:`send`
        :raises InvalidResponseError: the answer is something else, or endless
        """
        response = self.send(method, *path, transfer=True, **options)
        call = f"{method} /{'/'.join(path)}"
        line = _one_line_object(self._body(call, response, within_s=self._timeout_s(transfer=True)))
        if line is None:
            raise self._no_json(call, response)
        return response, line

    def connection_error(self, call: str, error: requests.RequestException) -> APIConnectionError:
        """Describe an exchange that ended without a complete answer.

        The cause is cut off on purpose: what requests raises can hold the headers.
        """
        host = urlsplit(self.settings.base_url).netloc
        text = self._redacted(str(error)).rstrip(".")
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return APIConnectionError(
                f"{call}: no trusted connection to {host}: {text}. "
                "Check the connection's host and this machine's CA certificates.",
                transient=False,
                maybe_applied=False,
            )
        if _never_connected(error):
            return UnreachableError(
                f"{call}: no connection to {host}: {type(error).__name__}: {text}. "
                "Check the connection's host, the network and its proxy."
            )
        kind = "timed out" if isinstance(error, requests.Timeout) else "got no complete answer"
        failure = APIConnectionError(f"{call} to {host} {kind}: {type(error).__name__}: {text}")
        failure.timed_out = isinstance(error, requests.Timeout)
        return failure

    def _no_json(self, call: str, response: requests.Response) -> InvalidResponseError:
        kind = self._redacted(response.headers.get("content-type", "no content type"))
        return InvalidResponseError(
            f"{call} at {self.settings.base_url} answered {response.status_code} with {kind}, "
            "not a JSON object. Is the connection's host the base URL of the API, including '/v1'?"
        )

    def _authorize(self) -> None:
        """Take along a token that is still good; the source renews it in time, however long a wait lasts."""
        if self._tokens is None:
            return
        self._token = self._tokens.token()
        self._session.set_header("Authorization", f"Bearer {self._token}")

    def _timeout_s(self, transfer: bool) -> float:
        return max(self.settings.timeout_s, TRANSFER_TIMEOUT_S) if transfer else self.settings.timeout_s

    def _body(self, call: str, response: requests.Response, *, within_s: float) -> bytes:
        """Read an answer that has to fit into memory and to arrive in time, however slowly it drips."""
        body = bytearray()
        with contextlib.closing(response):
            try:
                for chunk in chunks(response, within_s=within_s):
                    body += chunk
                    if len(body) > _LARGEST_ANSWER_BYTES:
                        raise InvalidResponseError(
                            f"{call}: the answer is longer than {_LARGEST_ANSWER_BYTES:,} bytes. Is the connection's "
                            "host the base URL of the API?"
                        )
            except requests.RequestException as error:
                raise self.connection_error(call, error) from None
        return bytes(body)

    def _refused(self, call: str, response: requests.Response, *, within_s: float) -> APIStatusError:
        body = bytearray()
        # Whatever has come of it will do.
        with contextlib.closing(response), contextlib.suppress(requests.RequestException):
            for chunk in chunks(response, within_s=within_s):
                body += chunk
                if len(body) >= _ERROR_BODY_BYTES:
                    break
        # Some gateways repeat the whole key in their 401.
        error = status_error(
            call,
            response.status_code,
            response.headers,
            bytes(body),
            redacted=self._redacted,
            base_url=self.settings.base_url,
        )
        if response.status_code == 401 and self._tokens is not None:
            # One that worked may have been revoked before its time: the next one will do.
            error.transient = self._token_is_good
            self._token_is_good = False
            self._tokens.forget()
        return error

    def _redacted(self, text: str) -> str:
        """Take out of a text of others what nobody may see, and what would forge a line of a log."""
        for secret in (self._token, *self._secrets) if self._token else self._secrets:
            text = text.replace(secret, "***")
        return one_line(text)


def chunks(response: requests.Response, *, within_s: float) -> Iterator[bytes]:
    """Iterate over a body as it arrives, however slowly it drips.

    :param within_s: seconds in which it has to end
    :raises requests.RequestException: it did not, or the connection broke
    """
    until = time.monotonic() + within_s
    while True:
        try:
            chunk = response.raw.read1(_CHUNK_BYTES, decode_content=True)
        except (HTTPError, OSError) as error:
            raise requests.ConnectionError(error) from None
        if not chunk:
            return
        yield chunk
        if time.monotonic() > until:
            raise requests.ReadTimeout(f"the answer was not complete after {within_s:.0f} seconds")


def _decoded(body: bytes) -> Any:
    """Return what a body says in JSON, or None."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _one_line_object(body: bytes) -> bytes | None:
    """Return the JSON object that a body is without the blanks between its tokens, or None."""
    try:
        body.decode()  # The formatter does not look at the characters of a text.
        line = msgspec.json.format(body, indent=-1)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return line if line.startswith(b"{") else None


def _never_connected(error: requests.RequestException) -> bool:
    """Whether the request cannot have been sent, because there was nothing to send it through."""
    if isinstance(error, (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError)):
        return True
    cause = error.args[0] if error.args else None
    return isinstance(getattr(cause, "reason", None), NewConnectionError)
