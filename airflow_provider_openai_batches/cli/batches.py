"""Commands about batches: list, show, cancel."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import OpenAIBatchesError, raise_for_outcome
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.api.progress import Progress, describe
from airflow_provider_openai_batches.api.retry import LONGEST_WAIT_S, Patience
from airflow_provider_openai_batches.cli.account import open_client
from airflow_provider_openai_batches.cli.screen import Screen, bar, batch_json, batch_table, clean, status_text

_FILES_NAMED_WITHIN_S = 600.0
_ERRORS_SHOWN = 20
_TIMES = ("created", "in_progress", "finalizing", "cancelling", "completed", "failed", "expired", "cancelled")


def list_batches(arguments: argparse.Namespace, screen: Screen) -> int:
    """Print batches, newest first."""
    statuses, now = arguments.status or (), time.time()
    with open_client(arguments.conn_id) as client:
        since = None if arguments.since is None else now - arguments.since
        found = client.list_batches() if since is None else client.batches_since(since)
        chosen = (
            batch
            for batch in found
            if (not statuses or batch.status in statuses)
            and (arguments.dag_id is None or batch.metadata.get("airflow_dag_id") == arguments.dag_id)
            and (since is None or (batch.created_at or now) >= since)
        )
        first = islice(chosen, arguments.limit or None)
        if screen.as_json:
            for batch in first:
                screen.json(batch_json(batch))
            return 0
        table = batch_table(first, screen, now)
    if table.row_count:
        screen.show(table)
    else:
        screen.note("No batches." if not statuses and arguments.dag_id is None else "No such batches.")
    return 0


def show_batch(arguments: argparse.Namespace, screen: Screen) -> int:
    """Print one batch; follow it to its end if asked to."""
    with open_client(arguments.conn_id, attempts=1 if arguments.watch else None) as client:
        if not arguments.watch:
            batch = client.retrieve_batch(arguments.batch_id)
            _show(batch, screen)
            return 0
        batch = _watched(client, arguments.batch_id, arguments.interval, screen)
    if not screen.as_json:
        _show(batch, screen)
    raise_for_outcome(batch)
    return 0


def cancel_batches(arguments: argparse.Namespace, screen: Screen) -> int:
    """Cancel batches. One that is over already stays as it is."""
    failures = 0
    with open_client(arguments.conn_id) as client:
        for batch_id in arguments.batch_ids:
            try:
                batch = client.cancel_batch(batch_id)
            except OpenAIBatchesError as error:
                # The others are to be stopped all the same; a single one's error is the command's.
                if len(arguments.batch_ids) == 1:
                    raise
                failures += 1
                screen.note(f"{batch_id}: {error}", style="red")
                continue
            if screen.as_json:
                screen.json(batch_json(batch))
            else:
                counts = batch.request_counts
                done = f"{counts.completed:,} of {counts.total:,} requests are answered"
                screen.show(Text(f"{clean(batch.id)} is {clean(batch.status)}; {done}"))
    return 1 if failures else 0


# --- following a batch -----------------------------------------------------------------------------------------------


def sightings(client: BatchClient, batch_id: str, interval: float, screen: Screen) -> Iterator[Batch]:
    """Look at a batch until it is over and its files are named. Outages of the service are waited out.

    :param client: one that tries once: the next look is the retry
    :param interval: seconds between looks
    """
    patience = Patience()
    over_since: float | None = None
    while True:
        now, pause = time.monotonic(), interval
        try:
            batch = client.retrieve_batch(batch_id)
        except OpenAIBatchesError as error:
            is_news = patience.outage_since is None
            # Somebody is looking: what does not pass by itself is told at once.
            if not error.transient or not patience.outlasts(error, now):
                raise
            if is_news:
                screen.note(f"Trying again until the batch can be seen: {error}", style="yellow")
            pause = max(pause, min(error.retry_after_s or 0, LONGEST_WAIT_S))
        else:
            patience.recovered()
            yield batch
            if batch.is_terminal:
                over_since = now if over_since is None else over_since
                if not batch.files_pending or now - over_since > _FILES_NAMED_WITHIN_S:
                    return
        time.sleep(pause)


def _watched(client: BatchClient, batch_id: str, interval: float, screen: Screen) -> Batch:
    """Follow a batch before the user's eyes; return it as it ended."""
    seen = sightings(client, batch_id, interval, screen)
    last = next(seen)
    if screen.shows_bars:
        # On standard error, so that what is printed at the end can be kept in a file.
        with Live(_line(last), console=screen.err, transient=True, refresh_per_second=2) as live:
            for last in seen:
                live.update(_line(last))
        return last
    progress = Progress()
    shown: Batch | None = None
    while True:
        if screen.as_json and last != shown:
            screen.json(batch_json(last))
        elif not screen.as_json and (line := progress.line(last)):
            screen.note(line)
        shown = last
        following = next(seen, None)
        if following is None:
            return last
        last = following


def _line(batch: Batch) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    line.add_row(bar(batch, 30), Text(clean(describe(batch, time.time()))))
    return line


# --- one batch in full -----------------------------------------------------------------------------------------------


def _show(batch: Batch, screen: Screen) -> None:
    if screen.as_json:
        screen.json(batch_json(batch))
        return
    now = time.time()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _fields(batch, now):
        grid.add_row(name, value)
    errors = [Text(f"  {clean(error)}", style="red") for error in batch.errors[:_ERRORS_SHOWN]]
    if len(batch.errors) > len(errors):
        errors.append(Text(f"  ... and {len(batch.errors) - len(errors):,} more: --json has them all", style="red"))
    screen.show(Group(grid, *([Text("errors", style="dim"), *errors] if errors else [])))


def _fields(batch: Batch, now: float) -> Iterator[tuple[str, RenderableType]]:
    yield "batch", clean(batch.id)
    yield "status", status_text(batch)
    _, *progress = describe(batch, now).split("; ")
    if progress:
        yield "progress", Text("; ".join(progress))
    texts = ("endpoint", "model", "completion_window", "input_file_id", "output_file_id", "error_file_id")
    for name in texts:
        if value := getattr(batch, name):
            yield name, clean(value)
    for name in (*_TIMES, "expires"):
        if at := getattr(batch, f"{name}_at"):
            yield f"{name}_at", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    if batch.usage is not None:
        tokens = batch.usage
        cached, thought = (
            f" ({count:,} {what})" if count else ""
            for count, what in ((tokens.cached_tokens, "cached"), (tokens.reasoning_tokens, "reasoning"))
        )
        yield "tokens", f"{tokens.input_tokens:,} in{cached}, {tokens.output_tokens:,} out{thought}"
    for key, value in batch.metadata.items():
        yield f"metadata.{clean(key)}", clean(value)
