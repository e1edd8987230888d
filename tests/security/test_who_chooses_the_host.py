"""The key goes to the host of the connection, and only who may edit the connection chooses that."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import pytest

from airflow_provider_openai_batches import get_provider_info
from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.settings import ClientSettings
from tests.api.connecting import API_KEY

pytestmark = pytest.mark.airflow

NOT_FOR_OTHERS = re.compile(r"host|url|key|header|secret|password|verify|proxy|token(?!_limit)")


@pytest.mark.parametrize(
    "host",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "unix:///var/run/docker.sock",
        "http+unix://%2Fvar%2Frun%2Fdocker.sock/v1",
        "/var/run/docker.sock",
        "ftp://127.0.0.1/v1",
        "gopher://127.0.0.1:70/_x",
        "data:application/json,{}",
        "javascript:x",
        "//127.0.0.1/v1",
        "http:///v1",
        "http://",
        "http://user:secret-word@127.0.0.1/v1",
        "http://secret-word@127.0.0.1/v1",
        "http://127.0.0.1/v1?api-key=secret-word",
        "http://127.0.0.1/v1#secret-word",
        "http://127.0.0.1:0/v1",
        "http://127.0.0.1:99999/v1",
        "http://[::1/v1",
    ],
)
def test_a_host_that_is_no_plain_web_address_is_refused_without_showing_a_secret(host: str) -> None:
    with pytest.raises(InvalidInputError, match="host") as raised:
        ClientSettings(api_key=API_KEY, base_url=host)
    assert "secret-word" not in str(raised.value)


def public_classes() -> list[Any]:
    info = get_provider_info()
    groups = [group for kind in ("operators", "sensors", "triggers") for group in info[kind]]
    found = [
        value
        for name in sorted({name for group in groups for name in group["python-modules"]})
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value) and value.__name__.startswith("OpenAIBatch") and is_of(value, name)
    ]
    assert len(found) > 6
    return found


def is_of(kind: type, module: str) -> bool:
    """Whether a class belongs to a module, or to one of the same kind that it takes it from."""
    return kind.__module__.rpartition(".")[0] == module.rpartition(".")[0] and "Error" not in kind.__name__


@pytest.mark.parametrize("kind", public_classes(), ids=lambda kind: kind.__name__)
def test_no_task_or_trigger_takes_a_host_a_key_or_a_header(kind: Any) -> None:
    parameters = inspect.signature(kind.__init__).parameters
    assert "conn_id" in parameters or "kwargs" in parameters
    assert [name for name in parameters if NOT_FOR_OTHERS.search(name)] == []


def test_no_route_of_the_page_takes_one() -> None:
    from tests.security.test_routes import routes

    asked = {
        parameter.name
        for route in routes()
        for dependant in [route.dependant, *route.dependant.dependencies]
        for parameter in (*dependant.query_params, *dependant.path_params, *dependant.body_params)
    }
    assert "batch_id" in asked
    assert [name for name in asked if NOT_FOR_OTHERS.search(name)] == []
