"""What people and scripts get to see: tables and bars on a terminal, JSON lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from rich import box
from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from airflow_provider_openai_batches.api.models import Batch, BatchStatus
from airflow_provider_openai_batches.api.progress import duration, time_left_s
from airflow_provider_openai_batches.jobs.queue import MODEL_KEY

_STYLES = {
    BatchStatus.COMPLETED: "green",
    BatchStatus.FAILED: "red",
    BatchStatus.EXPIRED: "red",
    BatchStatus.CANCELLED: "yellow",
    BatchStatus.CANCELLING: "yellow",
    BatchStatus.IN_PROGRESS: "cyan",
}
CLOCK_SKEW_S = 60
"""How far clocks differ without anybody having to hear of it."""

_NO_LIMIT = 10_000
"""Columns of what is no terminal: a table in a file or pipe is as wide as its content."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich itself would exit here, with 1.
        raise BrokenPipeError


class Screen:
    """Standard output for results, standard error for everything said about them.

    :param as_json: results as one JSON object per line
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = _console()
        self.err = _console(stderr=True)

    def json(self, value: Any) -> None:
        """Print one JSON object, at once."""
        self.raw(msgspec.json.encode(value) + b"\n")
        self.flush()

    def raw(self, content: bytes) -> None:
        """Write bytes to standard output as they are."""
        sys.stdout.buffer.write(content)

    def flush(self) -> None:
        """Let what was written leave this process."""
        sys.stdout.flush()

    def show(self, thing: RenderableType) -> None:
        """Print something for people."""
        self.out.print(thing)

    def note(self, message: str, style: str = "") -> None:
        """Say something beside the results, as one line."""
        self.err.print(Text(clean(message), style=style), soft_wrap=True)

    @property
    def shows_bars(self) -> bool:
        """Whether there is a terminal for what moves."""
        return self.err.is_terminal and not self.as_json


def _console(*, stderr: bool = False) -> _Console:
    stream = sys.stderr if stderr else sys.stdout
    # Texts of the service are data: no markup, no links, no numbers picked out in colour.
    width = None if stream.isatty() else _NO_LIMIT
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=width)


def clean(value: object) -> str:
    """Return a text as one line that cannot command a terminal: metadata and errors are others' texts."""
    line = " ".join(str(value).split())
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


def size(count: int | None) -> str:
    """Return a number of bytes as people read it."""
    if count is None:
        return ""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def age(created_at: int | None, now: float) -> str:
    """Return how long ago something was made, or how far its time is ahead of our clock.

    :param created_at: unix time by the service's clock, None if it does not say
    :param now: unix time by ours
    """
    if created_at is None:
        return ""
    return duration(now - created_at) if created_at - now < CLOCK_SKEW_S else f"{duration(created_at - now)} ahead"


# --- batches ---------------------------------------------------------------------------------------------------------


def batch_json(batch: Batch) -> dict[str, Any]:
    """Return a batch under the API's names, as its XComs have it, with all its errors."""
    fields: dict[str, Any] = msgspec.to_builtins(batch)
    return fields


def batch_table(batches: Iterable[Batch], screen: Screen, now: float) -> Table:
    """Return batches as a table, one a line.

    :param now: unix time
    """
    width, bars = screen.out.width, screen.out.is_terminal
    # What a narrow terminal has no room for is in `show`.
    columns: dict[str, Column] = {
        "batch": Column("batch", no_wrap=True),
        "status": Column("status", no_wrap=True),
        "progress": Column("" if bars else "done", no_wrap=True, justify="left" if bars else "right"),
        **({"done": Column("done", no_wrap=True, justify="right")} if bars else {}),
        "failed": Column("failed", justify="right"),
        **({"age": Column("age", no_wrap=True), "left": Column("left", no_wrap=True)} if width >= 100 else {}),
        **({"model": Column("model", overflow="ellipsis", no_wrap=True)} if width >= 120 else {}),
        **({"endpoint": Column("endpoint", no_wrap=True)} if width >= 150 else {}),
        **({"task": Column("task", overflow="ellipsis", no_wrap=True)} if width >= 170 else {}),
    }
    table = Table(*columns.values(), box=box.SIMPLE_HEAD if bars else None, pad_edge=False)
    for batch in batches:
        counts = batch.request_counts
        # Some services never count, and none does before it has read the file.
        answered = f"{counts.completed + counts.failed:,}/{counts.total:,}" if counts.total else ""
        left_s = time_left_s(batch, now)
        cells: Mapping[str, RenderableType] = {
            "batch": clean(batch.id),
            "status": status_text(batch),
            "progress": bar(batch, 12) if bars else answered,
            "done": answered,
            "failed": f"{counts.failed:,}" if counts.failed else "",
            "age": age(batch.created_at, now),
            "left": "" if left_s is None else f"~{duration(left_s)}",
            "model": clean(model_of(batch)),
            "endpoint": clean(batch.endpoint or ""),
            "task": clean(task_of(batch)),
        }
        table.add_row(*(cells[name] for name in columns))
    return table


def bar(batch: Batch, width: int) -> ProgressBar:
    """Return how far a batch is, as a bar."""
    counts = batch.request_counts
    return ProgressBar(
        total=max(counts.total, 1), completed=counts.completed + counts.failed, width=width, finished_style="green"
    )


def status_text(batch: Batch) -> Text:
    """Return a batch's status in its colour."""
    return Text(clean(batch.status), style=_STYLES.get(batch.status, ""))  # type: ignore[call-overload]


def model_of(batch: Batch) -> str:
    """Return the model, from our metadata where the service tells only at the end."""
    return batch.model or batch.metadata.get(MODEL_KEY, "")


def task_of(batch: Batch) -> str:
    """Return the Airflow task that made a batch, as ``dag.task``; empty for one made elsewhere."""
    said = batch.metadata
    return ".".join(said[key] for key in ("airflow_dag_id", "airflow_task_id") if said.get(key))
