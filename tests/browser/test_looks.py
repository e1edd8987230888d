"""The page in Airflow's light and dark theme. SCREENSHOTS=1 saves what is to be seen for the documentation."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.settings import ClientSettings
from tests.browser.conftest import add_connection, made_by, new_batch
from tests.browser.ui import Page
from tests.conftest import API_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_openai_batches.emulator import Emulator
    from demo.airflow import Airflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect

CONN_ID = "openai_team"
DAY_S = 86_400
READABLE = 4.5  # WCAG AA
BATCH_S = 1_800


@pytest.fixture(scope="module")
def yesterday() -> Iterator[Emulator]:
    """An emulator that began 23 hours ago, so that its batches have ages."""
    from airflow_provider_openai_batches.emulator import Emulator, clock

    past = SimpleNamespace(time=lambda: time.time() - 23 * 3600, monotonic=time.monotonic)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", past)
        with Emulator(speed=0, api_key=API_KEY, batch_seconds=BATCH_S) as server:
            yield server


@pytest.fixture(scope="module")
def batches(airflow: Airflow, yesterday: Emulator) -> dict[str, str]:
    """A day of batches: one of each kind, by what is special about it."""
    add_connection(airflow, yesterday, CONN_ID)
    settings = ClientSettings(api_key=API_KEY, base_url=yesterday.base_url)
    with BatchClient(settings) as client:
        night = time.strftime("scheduled__%Y-%m-%dT02:00:00+00:00", time.gmtime(time.time() - DAY_S))

        def buy(rows: int, dag_id: str | None = None, *, model: str = "gpt-4o-mini", **metadata: str) -> str:
            place = made_by(dag_id, night) if dag_id else {}
            return new_batch(client, rows, model, {**place, **metadata})

        made: dict[str, str] = {}
        yesterday.add_fault(
            {"on": {"batch": {}}, "do": {"outcome": "stuck", "status": "in_progress", "seconds": DAY_S}}
        )
        made["at risk"] = buy(800, "product_texts")
        yesterday.advance(4.8 * 3600)
        yesterday.add_fault({"on": {"batch": {}}, "do": {"outcome": "expire", "finished": 0.7}})
        made["expired"] = buy(1200, "product_texts")
        yesterday.advance(5 * 3600)
        fault = {"code": "invalid_json_line", "message": "This line is not parseable as valid JSON.", "param": None}
        errors = [{**fault, "line": line} for line in (17, 402)]
        yesterday.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": errors}})
        made["failed"] = buy(500, team="search")
        yesterday.advance(10.25 * 3600)
        for number in range(12):
            yesterday.add_fault({"on": {"custom_id": f"row-{number}"}, "do": {"outcome": "error", "code": "refused"}})
        made["completed"] = buy(1500, "product_texts", team="search", purpose="nightly texts")
        yesterday.advance(2.5 * 3600)
        made["own"] = buy(2000, team="research", purpose="trial")
        made["running"] = buy(1000, "product_texts")
        yesterday.advance(1_200)
        made["cancelling"] = buy(600, "product_texts")
        yesterday.advance(90)
        client.cancel_batch(made["cancelling"])
        made["new"] = buy(700, "product_texts")
        return made


def test_every_text_is_readable_in_both_themes(
    sign_in: Callable[..., Page], yesterday: Emulator, batches: dict[str, str]
) -> None:
    backgrounds = []
    for theme in ("light", "dark"):
        page = sign_in(theme=theme)
        page.open(conn_id=CONN_ID)
        expect(page.rows).to_have_count(len(batches))
        expect(page.row(batches["at risk"])).to_contain_text("at risk")
        backgrounds.append(page.colours()["background"])
        _require_readable(page)
        page.picture(f"page-{theme}")

        for kind in ("failed", "running", "completed"):
            page.open(conn_id=CONN_ID, batch=batches[kind])
            expect(page.detail).to_contain_text("Timeline")
            _require_readable(page)
        page.button("Show the first rows").click()
        expect(page.detail.get_by_role("cell", name="row-")).not_to_have_count(0)
        page.detail.evaluate("panel => { panel.scrollTop = 0 }")
        page.picture(f"batch-{theme}")

        page.button("Delete files").click()
        expect(page.question).to_be_visible()
        _require_readable(page)

        page.browser.keyboard.press("Escape")
        page.open(conn_id=CONN_ID, text="nothing like this")
        expect(page.browser.get_by_role("heading", name="Scanned")).to_be_visible()
        _require_readable(page)
        page.open(conn_id="no_such_connection")
        expect(page.browser.get_by_role("heading", name="There is no such connection")).to_be_visible()
        _require_readable(page)
    assert sum(backgrounds[0]) > 600
    assert sum(backgrounds[1]) < 150


def test_a_narrow_window_scrolls_the_list_and_not_the_page(
    sign_in: Callable[..., Page], batches: dict[str, str]
) -> None:
    page = sign_in()
    usual = page.browser.viewport_size
    page.browser.set_viewport_size({"width": 420, "height": 800})
    try:
        page.open(conn_id=CONN_ID, batch=batches["completed"])
        expect(page.detail).to_contain_text("Timeline")
        assert page.browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.detail.evaluate("panel => panel.scrollWidth <= panel.clientWidth")
    finally:
        page.browser.set_viewport_size(usual)


def _require_readable(page: Page) -> None:
    texts: list[Any] = page.colours()["texts"]
    assert len(texts) > 3
    assert [(text, ratio) for text, ratio in texts if ratio < READABLE] == []
