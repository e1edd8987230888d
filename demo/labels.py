"""The demo itself: run the DAG `demo_labels`, show how it goes, print what came out."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import Batch
from demo.airflow import Airflow, TaskInstance
from demo.openai_server import OpenAIServer
from demo.processes import DemoError, Interrupted

DAG_ID = "demo_labels"
TASKS = ("write_requests", "upload", "submit", "wait", "download", "join_answers")
SHOWN_ROWS = 15
EMULATED_TIMEOUT_S = 180.0
# A model on this machine takes seconds for a row.
LOCAL_TIMEOUT_S = 1_800.0
# OpenAI promises 24 hours; then there is something to download.
PAID_TIMEOUT_S = 25 * 3600.0
STYLES = {"success": "green", "failed": "red", "upstream_failed": "red", "deferred": "magenta", "running": "yellow"}


def run_demo(
    airflow: Airflow,
    server: OpenAIServer,
    directory: Path,
    model: str,
    console: Console,
    *,
    most_rows: int | None = None,
    most_failed: int = 0,
) -> None:
    """Run the DAG once and print its answers.

    :param server: the one behind Airflow's connection; asked for the batch's progress
    :param directory: where the DAG keeps its files
    :param model: model of the requests
    :param most_rows: label no more than these; default: all there are
    :param most_failed: rows that may be without an answer
    :raises DemoError: the run failed or too many rows have no answer
    """
    started = time.monotonic()
    run_id = airflow.trigger(DAG_ID, {"directory": str(directory), "model": model, "rows": most_rows})
    local_s = EMULATED_TIMEOUT_S if server.made_up else LOCAL_TIMEOUT_S
    timeout_s = PAID_TIMEOUT_S if server.costs_money else local_s
    with server.client() as client, _Display(airflow, client, run_id, console) as display:
        try:
            state = airflow.wait_for_run(DAG_ID, run_id, timeout_s=timeout_s, on_poll=display.update)
        except Interrupted:
            if server.costs_money:
                _cancel(client, display.batch, console)
            raise
    if state != "success":
        raise DemoError(_explain_failure(airflow, run_id))
    summary = airflow.xcom(DAG_ID, run_id, "join_answers")
    if not summary:
        raise DemoError(f"the run {run_id} succeeded but left no summary")
    rows = [json.loads(line) for line in Path(summary["results"]).read_text().split("\n") if line]
    console.print(_answers_table(rows, made_up=server.made_up))
    usage = summary["usage"] or {}
    console.print(
        f"[bold]{summary['requests']} requests, {summary['succeeded']} succeeded, {summary['failed']} failed[/bold]; "
        f"{usage.get('total_tokens', 0):,} tokens ({usage.get('input_tokens', 0):,} in, "
        f"{usage.get('output_tokens', 0):,} out); {time.monotonic() - started:.0f} s",
        highlight=False,
    )
    console.print(f"all answers: {summary['results']}", soft_wrap=True, highlight=False, markup=False)
    if not rows or summary["failed"] > most_failed or len(rows) != summary["requests"]:
        raise DemoError(f"too many rows have no answer: see the column `error` in {summary['results']}")


class _Display:
    """Shows tasks and batch: a table that updates itself on a terminal, one line per change elsewhere."""

    def __init__(self, airflow: Airflow, client: BatchClient, run_id: str, console: Console):
        self.batch: Batch | None = None
        self._airflow = airflow
        self._client = client
        self._run_id = run_id
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, tasks: list[TaskInstance]) -> None:
        """Show what changed.

        :param tasks: of the run, as they are now
        """
        by_id = {task.task_id: task for task in tasks}
        self._look_at_batch()
        if self._live:
            self._live.update(_progress_view(by_id, self.batch), refresh=True)
            return
        for task_id in TASKS:
            if task_id in by_id:
                state = by_id[task_id].state
                self._say(f"task {task_id}", state, news=state)
        if self.batch:
            counts = self.batch.request_counts
            quarter = 4 * counts.completed // counts.total if counts.total else 0
            self._say("batch", _describe(self.batch), news=f"{self.batch.status} {quarter}")

    def _look_at_batch(self) -> None:
        batch_id = self.batch.id if self.batch else self._airflow.xcom(DAG_ID, self._run_id, "submit")
        if batch_id and not (self.batch and self.batch.is_terminal):
            # Decoration: Airflow waits for the batch by itself, so a hiccup here is not worth a word.
            with contextlib.suppress(OpenAIBatchesError):
                self.batch = self._client.retrieve_batch(batch_id)

    def _say(self, subject: str, words: str, *, news: str) -> None:
        if self._said.get(subject, "none") != news:
            self._said[subject] = news
            self._console.print(f"  {subject}: {words}", soft_wrap=True, highlight=False)


def _cancel(client: BatchClient, batch: Batch | None, console: Console) -> None:
    """Stop what would otherwise go on, and go on costing, without us."""
    if batch is None or batch.is_terminal:
        return
    try:
        client.cancel_batch(batch.id)
    except OpenAIBatchesError as error:
        console.print(f"could not cancel {batch.id}, which goes on and is paid for: {error}", soft_wrap=True)
    else:
        console.print(f"cancelled {batch.id}; requests already answered are paid for", soft_wrap=True)


def _describe(batch: Batch) -> str:
    counts = batch.request_counts
    return f"{batch.id} {batch.status}, {counts.completed}/{counts.total} requests completed"


def _progress_view(tasks: Mapping[str, TaskInstance], batch: Batch | None) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for task_id in TASKS:
        task = tasks.get(task_id)
        state = task.state if task else "none"
        duration = f"{task.duration_s:.1f} s" if task and task.duration_s else ""
        table.add_row(f"  {task_id}", Text("" if state == "none" else state, STYLES.get(state, "dim")), duration)
    if batch is None:
        return table
    bar = ProgressBar(total=batch.request_counts.total or 1, completed=batch.request_counts.completed, width=40)
    return Group(table, Text(f"  {_describe(batch)}", "dim"), bar)


def _answers_table(rows: list[dict[str, Any]], *, made_up: bool) -> Table:
    # Rows spread over the whole list: the first fifteen of a sorted list are all alike.
    step = max(1, len(rows) // SHOWN_ROWS)
    title = f"{len(rows)} rows" + (f", one in {step} shown" if step > 1 else "")
    title += "; the emulator makes its answers up" if made_up else ""
    table = Table(title=title, title_justify="left")
    for heading in ("name", "summary", "label", "reason"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=44)
    for row in rows[::step][:SHOWN_ROWS]:
        cells = (row["name"], row["summary"], row["label"] or "-", row["reason"] or row["error"])
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _explain_failure(airflow: Airflow, run_id: str) -> str:
    broken = [task for task in airflow.task_instances(DAG_ID, run_id) if task.state == "failed"]
    logs = [
        f"--- log of task {task.task_id}\n"
        + "\n".join(airflow.task_log(DAG_ID, run_id, task.task_id, try_number=task.try_number).splitlines()[-25:])
        for task in broken
    ]
    return "\n".join([f"the run {run_id} failed at {', '.join(task.task_id for task in broken)}", *logs])
