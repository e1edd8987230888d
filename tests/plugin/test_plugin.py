"""What Airflow loads: in each of its processes, and in the one that serves the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches import get_provider_info
from tests.plugin.conftest import Browser

Browse = Callable[[str | None], Browser]

STATIC = Path(__file__).parents[2] / "airflow_provider_openai_batches/plugin/static"


def test_airflow_finds_it_by_its_entry_point() -> None:
    from airflow_provider_openai_batches.plugin import OpenAIBatchesPlugin

    (found,) = entry_points(group="airflow.plugins", name="openai_batches")
    assert found.load() is OpenAIBatchesPlugin
    (listed,) = get_provider_info()["plugins"]
    assert listed["name"] == OpenAIBatchesPlugin.name
    module, _, name = listed["plugin-class"].rpartition(".")
    assert (module, name) == (OpenAIBatchesPlugin.__module__, OpenAIBatchesPlugin.__name__)


def test_airflow_shows_it(browse: Browse) -> None:
    plugins = browse("admin")._http.get("/api/v2/plugins").json()["plugins"]
    (ours,) = (each for each in plugins if each["name"] == "openai_batches")
    page, tab = ours["react_apps"]
    assert (page["name"], page["destination"], page["url_route"]) == ("OpenAI Batches", "nav", "openai-batches")
    assert (tab["name"], tab["destination"], tab["url_route"]) == (
        "OpenAI Batch Job",
        "task_instance",
        "openai-batch-job",
    )
    assert page["bundle_url"] != tab["bundle_url"], "a module is evaluated once per URL"
    for url in (page["bundle_url"], tab["bundle_url"], page["icon"], page["icon_dark_mode"], tab["icon"]):
        answer = browse(None)._http.get(url)
        assert answer.status_code == 200, url
        assert answer.content == (STATIC / url.partition("?")[0].rpartition("/")[2]).read_bytes()


def in_new_process(code: str, **environment: str) -> Any:
    """What a fresh Python prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_loading_it_costs_other_processes_nothing(airflow_home: Path) -> None:
    heavy = in_new_process(
        "import json, sys, airflow.plugins_manager; before = set(sys.modules);"
        "import airflow_provider_openai_batches.plugin;"
        "print(json.dumps([name for name in ('fastapi', 'starlette', 'requests', 'tenacity', 'sqlalchemy',"
        "'airflow_provider_openai_batches.hooks', 'airflow_provider_openai_batches.api.client')"
        "if name in sys.modules and name not in before]))"
    )
    assert heavy == []


@pytest.mark.parametrize(
    ("base_url", "prefix"),
    [("", ""), ("http://localhost:8080", ""), ("https://host/team/airflow/", "/team/airflow")],
)
def test_its_files_are_found_wherever_airflow_is_served(base_url: str, prefix: str, airflow_home: Path) -> None:
    apps = in_new_process(
        "import json; from airflow_provider_openai_batches.plugin import OpenAIBatchesPlugin as plugin;"
        "print(json.dumps([[each['bundle_url'], each['icon']] for each in plugin.react_apps]))",
        AIRFLOW__API__BASE_URL=base_url,
    )
    assert apps == [
        [f"{prefix}/openai-batches/static/main.js", f"{prefix}/openai-batches/static/icon.svg"],
        [f"{prefix}/openai-batches/static/main.js?tab", f"{prefix}/openai-batches/static/icon.svg"],
    ]


@pytest.mark.parametrize("name", sorted(path.name for path in STATIC.iterdir()))
def test_each_file_has_its_type(name: str, browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "starlette.responses.guess_type", lambda *_, **__: ("text/plain", None)
    )  # as some machines have it
    answer = browse(None).get(f"/static/{name}")
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    assert answer.headers["content-type"] == kinds[Path(name).suffix]
    assert answer.headers["cache-control"] == "no-cache"
    again = browse(None)._http.get(f"/openai-batches/static/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    ("user", "path", "status"),
    [
        ("admin", "/api/connections", 200),
        (None, "/api/connections", 401),
        (None, "/static/main.js", 200),
        (None, "/x", 404),
    ],
)
def test_every_answer_has_the_security_headers(user: str | None, path: str, status: int, browse: Browse) -> None:
    answer = browse(user).get(path)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    if "static" not in path:
        assert answer.headers["cache-control"] == "no-store"


def test_a_defect_is_told_without_its_details(browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_openai_batches.plugin import batches

    def broken() -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(batches, "connections", broken)
    answer = browse("admin").get("/api/connections")
    assert (answer.status_code, answer.json()["detail"]["code"]) == (500, "defect")
    assert "secret detail" not in answer.text
