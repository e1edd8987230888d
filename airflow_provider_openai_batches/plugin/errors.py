"""What went wrong, as the page is told: an HTTP status, a code to decide by and a text with the remedy.

A service that refuses our key is 502, never 401: that would be the user's own login.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from airflow_provider_openai_batches.api.errors import (
    AuthenticationError,
    ConflictError,
    InvalidInputError,
    InvalidResponseError,
    NotFoundError,
    OpenAIBatchesError,
    PermissionDeniedError,
    QuotaExhaustedError,
    RateLimitError,
    WrongPathError,
)

log = logging.getLogger(__name__)


class PageError(Exception):
    """A request that ends without what it asked for.

    :param status: HTTP status
    :param code: for the page to decide by
    :param message: for the user: what happened and what to do
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def page_error(error: OpenAIBatchesError) -> PageError:
    """Tell an error of the client to the page. Its message holds no secret: the client sees to that."""
    for kinds, status, code in _KINDS:
        if isinstance(error, kinds):
            return PageError(status, code, str(error))
    return PageError(HTTPStatus.BAD_GATEWAY, "service_down", str(error))


_KINDS: tuple[tuple[type[OpenAIBatchesError], int, str], ...] = (
    (AuthenticationError, HTTPStatus.BAD_GATEWAY, "unauthorized_key"),
    (PermissionDeniedError, HTTPStatus.BAD_GATEWAY, "forbidden_key"),
    (WrongPathError, HTTPStatus.BAD_GATEWAY, "wrong_host"),
    (InvalidResponseError, HTTPStatus.BAD_GATEWAY, "wrong_host"),
    (NotFoundError, HTTPStatus.NOT_FOUND, "not_found"),
    (ConflictError, HTTPStatus.CONFLICT, "conflict"),
    (RateLimitError, HTTPStatus.SERVICE_UNAVAILABLE, "rate_limited"),
    (QuotaExhaustedError, HTTPStatus.BAD_GATEWAY, "quota_exhausted"),
    (InvalidInputError, HTTPStatus.BAD_REQUEST, "bad_request"),
)
_CODES = {401: "unauthenticated", 403: "forbidden", 404: "not_found", 405: "method_not_allowed"}


def answer_errors(app: FastAPI) -> None:
    """Let every error of an app leave it as ``{"detail": {"code", "message"}}``."""

    @app.exception_handler(PageError)
    def problem(request: Request, error: PageError) -> JSONResponse:
        return _answer(error.status, error.code, str(error))

    @app.exception_handler(OpenAIBatchesError)
    def client_error(request: Request, error: OpenAIBatchesError) -> JSONResponse:
        return problem(request, page_error(error))

    @app.exception_handler(AirflowNotFoundException)
    def no_connection(request: Request, error: AirflowNotFoundException) -> JSONResponse:
        conn_id = request.query_params.get("conn_id", "")
        return _answer(404, "no_connection", f"No connection has the id {conn_id}. Create it in Admin, Connections.")

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "error")
        # The framework's own words; an id with a slash in it, say, is an address that no route has.
        nothing = error.status_code == HTTPStatus.NOT_FOUND and error.detail == HTTPStatus.NOT_FOUND.phrase
        message = "There is nothing at this address. Is the id complete, and of a batch?" if nothing else error.detail
        return _answer(error.status_code, code, str(message), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
        # Without the value: it may be long, and the caller has it.
        faults = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
        return _answer(400, "bad_request", f"The request is not understood: {faults}.")

    @app.exception_handler(Exception)
    def defect(request: Request, error: Exception) -> JSONResponse:
        # The server logs it with its traceback.
        return _answer(500, "defect", "The page's server failed. Its log, the API server's, says why.")


def _answer(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": {"code": code, "message": message}}, status, headers)
