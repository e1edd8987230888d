"""A newcomer's first walk through `make airflow`, with nothing but what it says at the terminal and a browser.

It stands before the other tests of the page, so that its Airflow has ended when theirs starts.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
import requests

from demo.processes import Processes
from tests.browser.ui import ARROW, Page
from tests.system.demo_process import DemoRun

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator
    from playwright.sync_api import Page as BrowserPage

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect

JOB, ON_RESULTS = "label_tickets", "count_ticket_labels"
PATIENCE_MS = 60_000


@pytest.fixture
def said(chromium: Browser, tmp_path: Path) -> Iterator[str]:
    """What a running `make airflow` says."""
    with contextlib.ExitStack() as stack:
        demo = DemoRun.start(stack, tmp_path, "airflow")
        Processes(tmp_path / "none").wait_for(demo.says("Ctrl-C stops"), timeout_s=120, what="Airflow")
        yield demo.output.read_text()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[BrowserPage]:
    """A browser that nobody has used yet."""
    with chromium.new_context(viewport={"width": 1280, "height": 720}) as context:
        context.set_default_timeout(PATIENCE_MS)
        yield context.new_page()


def test_a_newcomer_runs_a_job_watches_its_bar_cancels_a_batch_and_sees_results_start_a_dag(
    said: str, browser: BrowserPage, tmp_path: Path
) -> None:
    url, user, password = _found(r"open (\S+) as user (\S+), password (\S+)", said)
    [emulator] = _found(r"emulator of the OpenAI Batch API: (\S+)/v1", said)
    page = Page(browser, url)

    browser.goto(url)
    browser.get_by_label("Username").fill(user)
    browser.get_by_label("Password").fill(password)
    browser.get_by_role("button", name="Sign in").click()

    browser.get_by_role("link", name="Dags", exact=True).first.click()
    switch = _card(browser, ON_RESULTS).locator("label")
    switch.click()
    expect(switch.get_by_role("checkbox")).to_be_checked()
    for name in ("one", "another"):
        _card(browser, JOB).get_by_role("button", name="Trigger Dag").click()
        form = browser.get_by_role("dialog")
        form.get_by_role("textbox").fill(str(tmp_path / name))
        form.get_by_role("button", name="Trigger", exact=True).click()
        expect(form).to_be_hidden()

    browser.get_by_role("button", name="Browse").click()
    browser.get_by_role("menuitem", name="OpenAI Batches").click()
    expect(page.rows).to_have_count(2, timeout=PATIENCE_MS)
    watched, cancelled = (page.rows.nth(place).locator("[title^=batch_]").get_attribute("title") for place in (1, 0))
    assert watched
    assert cancelled
    # Which of two jobs that begin together buys first is not said.
    made_by = page.row(watched).locator("a[href*='/runs/']").first.get_attribute("href") or ""
    run_id = unquote(made_by.partition("/runs/")[2].partition("/")[0])
    assert run_id
    bar = page.row(watched).get_by_role("progressbar")
    # Half of the 45 seconds that a batch takes.
    _let_pass(emulator, 23)
    expect(bar).to_have_attribute("aria-valuenow", re.compile("[1-9]"), timeout=PATIENCE_MS)

    page.show_detail(cancelled)
    page.button("Cancel batch").click()
    page.question.get_by_role("button", name="Cancel batch").click()
    expect(page.detail).to_contain_text("cancelling")

    page.detail.get_by_role("link", name=f"{JOB} {ARROW} label").click()
    browser.wait_for_url(f"**/dags/{JOB}/runs/*/tasks/label*")

    _let_pass(emulator, 60)
    browser.get_by_role("link", name="Dags", exact=True).first.click()
    browser.get_by_role("link", name=ON_RESULTS, exact=True).click()
    browser.get_by_role("link", name="Runs", exact=True).click()
    runs = browser.get_by_role("row").filter(has_text="Asset Triggered")
    expect(runs.filter(has_text="Success")).not_to_have_count(0, timeout=PATIENCE_MS)
    runs.last.get_by_role("link").first.click()
    browser.get_by_role("link", name="Asset Events").click()
    expect(browser.get_by_text(f"/{JOB}/{run_id}").first).to_be_visible()
    assert page.failures == []


def _card(browser: BrowserPage, dag_id: str) -> Locator:
    """What the list of DAGs shows of one."""
    name = browser.get_by_role("link", name=dag_id, exact=True)
    button = browser.get_by_role("button", name="Trigger Dag")
    return browser.locator("div").filter(has=name).filter(has=button).last


def _found(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    assert found, text
    return found.groups()


def _let_pass(emulator: str, seconds: float) -> None:
    requests.post(f"{emulator}/emulator/advance", json={"seconds": seconds}, timeout=30).raise_for_status()
