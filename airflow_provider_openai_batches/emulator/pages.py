"""Cursor pages, as every list of the API has them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from aiohttp import web

from airflow_provider_openai_batches.emulator.dialects import Dialect
from airflow_provider_openai_batches.emulator.http_faults import effect_on
from airflow_provider_openai_batches.emulator.wire import ApiError


def integer_query(request: web.Request, name: str, *, default: int, most: int, least: int = 1) -> int:
    """A whole number from the query, from ``least`` to ``most``.

    :raises ApiError: 400, it is anything else
    """
    given = request.query.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit()) or not least <= int(given) <= most:
        text = f"Invalid '{name}': expected an integer from {least} to {most}, but got '{given}' instead."
        raise ApiError(400, text, param=name, code="invalid_value")
    return int(given)


def page(
    request: web.Request, limit: int, objects: Callable[[str | None, int], list[dict[str, Any]]], dialect: Dialect
) -> dict[str, Any]:
    """Build the page a request asks for.

    :param objects: gives up to so many objects behind the id ``after``; raises KeyError if there is no such id
    :param dialect: whether there are pages at all
    :raises ApiError: 400, ``after`` is unknown
    """
    after = None if effect_on(request).ignore_after else request.query.get("after") or None
    if not dialect.has_cursor:
        after, limit = None, sys.maxsize - 1
    elif after is not None:
        after = dialect.inward(after)
    try:
        found = objects(after, limit + 1)
    except KeyError as error:
        raise ApiError(400, f"Invalid 'after': no object with id '{after}'.", param="after") from error
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
