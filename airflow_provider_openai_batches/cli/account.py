"""Whose batches: an Airflow connection's, or those of the key in the environment."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_openai_batches.api.errors import AuthenticationError, InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.api.settings import DEFAULT_BASE_URL, ClientSettings

if TYPE_CHECKING:
    from airflow_provider_openai_batches.api.client import BatchClient

KEY, BASE_URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"


def open_client(conn_id: str | None, *, attempts: int | None = None) -> BatchClient:
    """Return the client of an Airflow connection, or of what the environment says.

    :param conn_id: the connection; None reads the variables that OpenAI's own SDK reads, and leaves Airflow alone
    :param attempts: calls made in all before a transient error is raised; default: the client's
    :raises OpenAIBatchesError: there is no key, or a setting cannot be used
    """
    from airflow_provider_openai_batches.api.client import BatchClient

    settings = _from_environment() if conn_id is None else _from_airflow(conn_id)
    return BatchClient(settings) if attempts is None else BatchClient(settings, attempts=attempts)


def explained(error: OpenAIBatchesError, conn_id: str | None) -> str:
    """Return an error's message, with the remedy that fits where the key came from."""
    message = str(error)
    if conn_id is None and isinstance(error, AuthenticationError):
        message = f"{message.removesuffix(error.hint)}Check {KEY} (and OPENAI_ORG_ID, OPENAI_PROJECT_ID if set)."
    return message


def _from_environment() -> ClientSettings:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise OpenAIBatchesError(f"There is no key. Set {KEY}, or name an Airflow connection with --conn-id.")
    try:
        return ClientSettings(
            api_key=key,
            base_url=os.environ.get(BASE_URL) or DEFAULT_BASE_URL,
            organization=os.environ.get("OPENAI_ORG_ID") or None,
            project=os.environ.get("OPENAI_PROJECT_ID") or None,
        )
    except InvalidInputError as error:
        variable = (
            BASE_URL
            if error.param == "host"
            else KEY
            if error.param == "password"
            else "OPENAI_ORG_ID or OPENAI_PROJECT_ID"
        )
        raise InvalidInputError(variable, str(error).removeprefix(f"{error.param}: ")) from None


def _from_airflow(conn_id: str) -> ClientSettings:
    from airflow_provider_openai_batches.compat import read_metadata_database

    read_metadata_database()
    # Airflow logs to standard output, which is for results; its own deprecations are not for whoever reads ours.
    os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "CRITICAL")
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _read_connection(conn_id)


def _read_connection(conn_id: str) -> ClientSettings:
    from airflow.providers.common.compat.sdk import AirflowNotFoundException

    from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook

    try:
        with contextlib.closing(OpenAIBatchesHook(conn_id)) as hook:
            return hook.get_conn().settings
    except AirflowNotFoundException:
        if problem := _trouble_in_environment(conn_id, is_missing=True):
            raise OpenAIBatchesError(problem) from None
        raise OpenAIBatchesError(
            f"Airflow has no connection {conn_id!r}. Create it in the UI (Admin, Connections) or with "
            f"`airflow connections add {conn_id} --conn-type openai_batches --conn-password ...`."
        ) from None
    except OpenAIBatchesError:
        if problem := _trouble_in_environment(conn_id, is_missing=False):
            raise OpenAIBatchesError(problem) from None
        raise
    except Exception as error:
        if problem := _trouble_in_environment(conn_id, is_missing=False):
            raise OpenAIBatchesError(problem) from None
        # A secrets backend or a database can raise anything.
        raise OpenAIBatchesError(f"Airflow cannot read its connection {conn_id!r}: {error}") from error


def _trouble_in_environment(conn_id: str, *, is_missing: bool) -> str | None:
    """Say what is wrong with a connection's variable, never what is in it; None if nothing is, or there is none.

    Airflow passes over what it cannot read, or makes an empty connection of it.

    :param is_missing: whether Airflow found no connection anywhere
    """
    variable = f"AIRFLOW_CONN_{conn_id.upper()}"
    value = os.environ.get(variable)
    if value is None:
        return None
    problem = _malformed(value.strip())
    if problem is None and is_missing:
        problem = "has a field, or a value of a type, that no connection has"
    return problem and (
        f"The connection {conn_id!r} is malformed: {variable} {problem}. Expected JSON such as "
        '{"conn_type": "openai_batches", "password": "...", "extra": {}}, or a URI such as openai-batches://:KEY@.'
    )


def _malformed(value: str) -> str | None:
    if not value:
        return "is empty"
    if value.startswith("{"):
        try:
            json.loads(value)
        except ValueError as error:
            # The message of such an error has the place, and nothing of the text.
            return f"is not valid JSON ({error})"
        return None
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return "is no URI: a sign in its key, such as / or :, may have to be percent-encoded"
    return None if parts.scheme and "://" in value else "is neither JSON nor a URI"
