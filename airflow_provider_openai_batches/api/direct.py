"""Single requests to the models' own endpoints, without a batch: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

import msgspec

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.retry import DEFAULT_ATTEMPTS, is_retryable, retrying
from airflow_provider_openai_batches.api.session import ServiceSession
from airflow_provider_openai_batches.api.settings import ClientSettings

CLIENT_REQUEST_ID = "X-Client-Request-Id"
"""OpenAI takes a client's own name for a call under this header, and writes it into its logs:
https://platform.openai.com/docs/api-reference/debugging-requests."""

_LONGEST_ID = 512
_LONGEST_PAUSE_S = 20.0
"""A service that wants to be left alone for longer gets the error raised: whoever called does not hold a worker."""


class DirectAnswer(msgspec.Struct, frozen=True):
    """What a model's endpoint answered.

    :param status: 2xx
    :param request_id: the service's name for the call
    :param body: a JSON object on one line, as it came otherwise
    """

    status: int
    request_id: str | None
    body: bytes


class DirectClient:
    """Asks one request at a time. Not for use by several threads at once.

    :param settings: where the service is and who is calling
    :param attempts: calls made in all before a transient error is raised
    :param sleep: called with the seconds to pause between attempts
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        attempts: int = DEFAULT_ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._session = ServiceSession(settings)
        self._attempts = attempts
        self._sleep = sleep
        self.lost = 0
        """Calls so far whose answer was lost: they may have been billed all the same."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def ask(
        self, endpoint: str, body: bytes, *, request_id: str, go_on: Callable[[], bool] = lambda: True
    ) -> DirectAnswer:
        """Send one request and wait for its answer, for ten minutes if it takes that long.

        A call whose answer was lost is sent once more, and not if it was waited for until the end: there is no way to
        find out whether it was carried out and billed.

        :param endpoint: as in a batch's lines, such as ``/v1/chat/completions``
        :param body: the request
        :param request_id: names the call at the service; cut where it is too long
        :param go_on: whether the call may be repeated now
        :raises OpenAIBatchesError: no answer, or a refusal
        """
        path = [part for part in endpoint.split("/") if part]
        # The base URL ends with its version.
        path = path[1:] if path[:1] == ["v1"] else path
        headers = {CLIENT_REQUEST_ID: request_id[:_LONGEST_ID]}
        failed: OpenAIBatchesError | None = None
        lost = 0

        def attempt() -> DirectAnswer:
            nonlocal failed, lost
            if failed is not None and not go_on():
                raise failed
            try:
                response, answer = self._session.raw_json("POST", *path, body=body, headers=headers)
            except OpenAIBatchesError as error:
                failed = error
                lost += is_lost(error)
                raise
            return DirectAnswer(response.status_code, response.headers.get("x-request-id"), answer)

        def is_worth_repeating(error: BaseException) -> bool:
            if not isinstance(error, OpenAIBatchesError) or not is_retryable(error):
                return False
            once_too_often = is_lost(error) and (lost > 1 or error.timed_out)
            return not once_too_often and (error.retry_after_s or 0.0) <= _LONGEST_PAUSE_S and go_on()

        try:
            return retrying(attempts=self._attempts, sleep=self._sleep, retry_if=is_worth_repeating)(attempt)
        finally:
            self.lost += lost


def is_lost(error: OpenAIBatchesError) -> bool:
    """Whether a call may have been carried out, and billed, though there is no answer: a gateway's 5xx is none."""
    return error.maybe_applied and error.status in (None, 408, 502, 504)
