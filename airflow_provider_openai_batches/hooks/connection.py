"""Reading an Airflow connection: what its fields and its extra say, checked, with the field named in errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_openai_batches.api.dialects import dialect_named
from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import shown
from airflow_provider_openai_batches.api.settings import ENTRA_SCOPE, ClientSettings

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_provider_openai_batches.jobs.pricing import Price

_LONGEST_TIMEOUT_S = 86_400.0
"""For one call. What is too large for the system's clock would end in an OverflowError at the first one."""


def connection_extra(conn: Connection) -> Mapping[str, Any]:
    """Return a connection's decoded extra.

    :raises InvalidInputError: it is no JSON object; names the connection
    """
    try:
        extra = conn.extra_dejson
    except ValueError as error:
        # Airflow refuses some of these itself when it reads one from its database.
        raise _no_object(conn, "something else") from error
    return _checked_extra(conn, extra)


def _checked_extra(conn: Connection, extra: object) -> Mapping[str, Any]:
    if not isinstance(extra, Mapping):
        raise _no_object(conn, f"of type {type(extra).__name__}")
    if not extra and conn.extra and not _is_json(conn.extra):
        # Airflow takes it for an empty one: the calls would go to another project than is meant.
        raise _no_object(conn, "not valid JSON")
    return extra


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _no_object(conn: Connection, found: str) -> InvalidInputError:
    # Without the value: there may be a secret in it.
    return InvalidInputError(
        f"connection {conn.conn_id}",
        f'its extra has to be a JSON object such as {{"timeout": 60}}, and is {found}. Change it, or leave it empty.',
    )


def connection_prices(conn: Connection) -> dict[str, Price]:
    """Return what tokens cost by model, from a connection's ``prices``; empty if it has none.

    :raises InvalidInputError: names the connection's field
    """
    from airflow_provider_openai_batches.jobs.pricing import parse_prices

    return parse_prices(_json_object(connection_extra(conn), "prices"), f"connection {conn.conn_id}: prices")


def connection_queue_limits(conn: Connection) -> dict[str, int]:
    """Return how many prompt tokens may be queued per model, from a connection's ``enqueued_token_limits``.

    :raises InvalidInputError: names the connection's field
    """
    limits = _json_object(connection_extra(conn), "enqueued_token_limits")
    for model, tokens in limits.items():
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise InvalidInputError(
                f"connection {conn.conn_id}", f"enqueued_token_limits: expected tokens for {model}, got {tokens!r}."
            )
    return limits


def client_settings(conn: Connection, extra: Mapping[str, Any]) -> ClientSettings:
    """Read a connection of type ``openai_batches``, or of the official provider's ``openai``.

    :param conn: the connection
    :param extra: its decoded extra; decoding is the caller's because it is asynchronous in the triggerer
    :raises InvalidInputError: names the connection's field
    """
    _checked_extra(conn, extra)
    try:
        # The official provider keeps the arguments of its SDK's client here.
        sdk = _json_object(extra, "openai_client_kwargs")
        base_url = str(conn.host or sdk.get("base_url") or "")
        dialect = dialect_named(extra.get("dialect"), base_url)
        base_url = base_url or dialect.base_url
        if not base_url:
            raise InvalidInputError("host", f"{dialect.service} has no common address: give the base URL of yours.")
        api_key = str(conn.password or sdk.get("api_key") or "")
        if not api_key and extra.get("auth_type") == "workload_identity":
            raise InvalidInputError(
                "auth_type",
                "'workload_identity' is the official provider's. Put a key into the password; Azure without a key is "
                "dialect 'azure' with auth 'entra'.",
            )
        return ClientSettings(
            api_key=api_key,
            base_url=base_url,
            organization=_text(extra.get("organization") or sdk.get("organization")),
            project=_text(extra.get("project") or sdk.get("project")),
            timeout_s=_seconds(extra.get("timeout") or sdk.get("timeout") or 60.0),
            headers=_json_object(sdk, "default_headers") | _json_object(extra, "headers"),
            query=_json_object(sdk, "default_query") | _json_object(extra, "query"),
            auth=extra.get("auth") or dialect.auth,
            dialect=dialect,
            entra_scope=_text(extra.get("entra_scope")) or ENTRA_SCOPE,
        )
    except InvalidInputError as error:
        raise InvalidInputError(f"connection {conn.conn_id}", str(error)) from None


def _text(value: object) -> str | None:
    """Read an id that the connection's JSON may hold as a number."""
    return None if value is None else str(value)


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_TIMEOUT_S:
        most = f"{_LONGEST_TIMEOUT_S:,.0f}"
        raise InvalidInputError("timeout", f"expected seconds, more than 0 and at most {most}, got {shown(value)}.")
    return seconds


def _json_object(extra: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Read an object field; the connection form stores what was typed as text."""
    value = extra.get(name) or {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping):
        raise InvalidInputError(name, "expected a JSON object.")
    return dict(value)
