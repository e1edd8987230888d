"""From a batch to the task that made it, its tab, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser.conftest import JOB_SECONDS
from tests.browser.dags.product_texts import ROWS
from tests.browser.ui import ARROW, Page

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator import Emulator
    from demo.airflow import Airflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect

DAG = "product_texts"


def test_a_batch_leads_to_its_task_whose_tab_shows_the_whole_job(
    sign_in: Callable[..., Page], airflow: Airflow, job_emulator: Emulator
) -> None:
    run_id = airflow.processes.wait_for(lambda: _deferred_run(airflow), timeout_s=60, what="the task to wait")
    job_emulator.advance(3 + JOB_SECONDS / 2)
    batches = [batch["id"] for batch in job_emulator.batches()]

    page = sign_in()
    page.open()
    expect(page.rows).to_have_count(3)
    page.row(batches[0]).get_by_role("link", name=f"{DAG} {ARROW} write").click()
    page.browser.wait_for_url(lambda url: unquote(urlsplit(url).path) == f"/dags/{DAG}/runs/{run_id}/tasks/write")
    page.browser.get_by_role("link", name="OpenAI Batch Job").click()
    tab = page.browser.locator(".oab")
    bar = tab.get_by_role("progressbar", name="Rows answered")
    expect(bar).to_have_attribute("aria-valuetext", f"{ROWS // 2} of {ROWS:,} done")
    expect(tab.get_by_role("row").filter(has_text="in progress")).to_have_count(3)
    expect(page.browser.get_by_text("Deferred", exact=True)).to_be_visible()
    page.picture("task-light")
    dark = sign_in(theme="dark")
    dark.go(page.browser.url.removeprefix(airflow.url))
    expect(dark.browser.locator(".oab").get_by_role("progressbar")).to_be_visible()
    expect(dark.browser.get_by_text("Deferred", exact=True)).to_be_visible()
    dark.picture("task-dark")

    tab.get_by_role("link", name=batches[0]).click()
    expect(page.detail.get_by_role("heading", name=batches[0])).to_be_visible()
    expect(page.detail.get_by_role("link", name=f"{DAG} {ARROW} write")).to_be_visible()

    job_emulator.advance(JOB_SECONDS)
    assert airflow.wait_for_run(DAG, run_id, timeout_s=60) == "success"
    page.browser.go_back()
    expect(bar).to_have_attribute("aria-valuetext", f"{ROWS:,} of {ROWS:,} done")
    expect(tab.get_by_role("listitem").filter(has_text="succeeded")).to_contain_text(f"{ROWS:,}")
    expect(tab.get_by_text("results fetched")).to_have_count(3)


def test_a_task_of_another_kind_has_no_job(sign_in: Callable[..., Page]) -> None:
    page = sign_in()

    page.go(f"/dags/{DAG}/runs/none/tasks/write/plugin/openai-batch-job")

    expect(page.browser.get_by_role("heading", name="No batch job here")).to_be_visible()


def _deferred_run(airflow: Airflow) -> str | None:
    """The run whose task waits for its batches."""
    for run in airflow.api("GET", "/dags/~/dagRuns", params={"dag_id": DAG})["dag_runs"]:
        if [task.state for task in airflow.task_instances(DAG, run["dag_run_id"])] == ["deferred"]:
            return str(run["dag_run_id"])
    return None
