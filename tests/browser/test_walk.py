"""A newcomer's first walk: a job's bar fills, another batch is cancelled, and results start the next DAG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import JOB_SECONDS
from tests.browser.ui import ARROW, Page

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator import Emulator
    from demo.airflow import Airflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect


def test_a_newcomer_watches_a_job_cancels_another_and_sees_results_start_the_next_dag(
    sign_in: Callable[..., Page], airflow: Airflow, job_emulator: Emulator, tmp_path: Path
) -> None:
    wait_for = airflow.processes.wait_for
    wait_for(lambda: airflow._knows("count_ticket_labels"), timeout_s=60, what="the DAG that waits for results")
    airflow.api("PATCH", "/dags/count_ticket_labels", {"is_paused": False})
    runs, batches = [], []
    for name in ("watched", "cancelled"):
        runs.append(airflow.trigger("label_tickets", {"outbox": str(tmp_path / name)}))
        batches.append(wait_for(lambda: _newest(job_emulator, batches), timeout_s=60, what="the job's batch"))
    page = sign_in()

    page.open()
    bar = page.row(batches[0]).get_by_role("progressbar")
    job_emulator.advance(3 + JOB_SECONDS / 2)
    page.refresh_until(lambda: bar.count() and bar.get_attribute("aria-valuenow") not in (None, "0"))

    page.show_detail(batches[1])
    page.button("Cancel batch").click()
    page.question.get_by_role("button", name="Cancel batch").click()
    expect(page.detail).to_contain_text("cancelling")

    page.detail.get_by_role("link", name=f"label_tickets {ARROW} label").click()
    page.browser.wait_for_url("**/dags/label_tickets/runs/*/tasks/label*")

    job_emulator.advance(JOB_SECONDS)
    assert airflow.wait_for_run("label_tickets", runs[0], timeout_s=90) == "success"
    started = wait_for(lambda: _runs(airflow, "count_ticket_labels"), timeout_s=60, what="the DAG that results start")
    assert airflow.wait_for_run("count_ticket_labels", started[0], timeout_s=60) == "success"
    assert airflow.xcom("count_ticket_labels", started[0], "count") == 3


def _newest(emulator: Emulator, known: list[str]) -> str | None:
    made = [
        batch["id"]
        for batch in emulator.batches()
        if (batch["metadata"] or {}).get("airflow_dag_id") == "label_tickets" and batch["id"] not in known
    ]
    return made[0] if made else None


def _runs(airflow: Airflow, dag_id: str) -> list[str]:
    return [run["dag_run_id"] for run in airflow.api("GET", f"/dags/{dag_id}/dagRuns")["dag_runs"]]
