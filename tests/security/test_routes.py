"""Routes of the page: one that is added later without a login, or a write without its guard, is found here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI

pytestmark = pytest.mark.airflow

OPEN = {("POST", "/webhooks/{conn_id}")}
"""Whose login is something else: a signature."""


def routes(app: FastAPI | None = None) -> list[Any]:
    """All routes of the page's app that run code of ours."""
    from fastapi.routing import APIRoute

    from airflow_provider_openai_batches.plugin.app import build_app

    found, left = [], list((app or build_app()).routes)
    while left:
        route = left.pop()
        if included := getattr(route, "original_router", None):  # as newer versions of FastAPI keep it
            left += included.routes
        elif isinstance(route, APIRoute):
            found.append(route)
        else:
            assert getattr(route, "path", "") == "/static", f"{route} is neither a route nor the page's files"
    return found


def calls(dependant: Any) -> Iterator[Any]:
    for each in dependant.dependencies:
        yield each.call
        yield from calls(each)


def faults(found: list[Any]) -> list[str]:
    from airflow_provider_openai_batches.plugin.access import from_our_page

    wrong = []
    for route in found:
        needed = set(calls(route.dependant))
        for method in route.methods:
            if (method, route.path) in OPEN:
                continue
            if get_user not in needed:
                wrong.append(f"{method} {route.path} asks for no login")
            if method not in ("GET", "HEAD") and from_our_page not in needed:
                wrong.append(f"{method} {route.path} can be sent by another site's page")
    return wrong


def test_every_route_asks_for_a_login_and_every_write_comes_from_our_page() -> None:
    found = routes()
    assert len(found) > 6
    assert faults(found) == []


def test_a_route_that_is_added_without_them_is_found() -> None:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.get("/api/secret")(lambda: None)
    app.post("/api/act")(lambda: None)
    assert sorted(faults(routes(app))) == [
        "GET /api/secret asks for no login",
        "POST /api/act asks for no login",
        "POST /api/act can be sent by another site's page",
    ]
