"""Commands about files: results, files, clean-files."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import (
    AuthenticationError,
    DownloadIncompleteError,
    OpenAIBatchesError,
    raise_for_outcome,
)
from airflow_provider_openai_batches.api.models import File
from airflow_provider_openai_batches.api.progress import duration
from airflow_provider_openai_batches.api.retention import (
    MAX_PROJECT_BYTES,
    PURPOSES,
    file_purposes,
    list_files,
    spent_files,
    still_spent,
)
from airflow_provider_openai_batches.cli.account import open_client
from airflow_provider_openai_batches.cli.batches import sightings
from airflow_provider_openai_batches.cli.screen import CLOCK_SKEW_S, Screen, age, clean, size
from airflow_provider_openai_batches.jobs.results import check_counts, count_lines

_COPY_BYTES = 1 << 20
_COUNT = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
_LOOK_EVERY_S = 5.0

# --- results ---------------------------------------------------------------------------------------------------------


def fetch_results(arguments: argparse.Namespace, screen: Screen) -> int:
    """Write a batch's rows, answers first and then errors, to a file or to standard output."""
    target = None if arguments.output in (None, "-") else Path(arguments.output)
    if target is not None and not target.parent.is_dir():
        raise OpenAIBatchesError(f"There is no directory {target.parent}. Create it first.")
    if arguments.partial:
        return _fetch_partial(arguments, target, screen)
    with open_client(arguments.conn_id) as client, ExitStack() as stack:
        batch = client.retrieve_batch(arguments.batch_id)
        if not batch.is_terminal:
            raise OpenAIBatchesError(
                f"Batch {batch.id} is {batch.status}: there are no results yet. "
                f"Wait for its end with: openai-batches show {batch.id} --watch"
            )
        if batch.files_pending:
            [*_, batch] = sightings(client, batch.id, _LOOK_EVERY_S, screen)
        if not (batch.output_file_id or batch.error_file_id):
            raise_for_outcome(batch)
            raise OpenAIBatchesError(f"Batch {batch.id} is {batch.status}, and the service names no result file.")
        # Beside the target, where there is room for it; and nothing is shown before all of it is verified.
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=".openai-batches-", dir=target and target.parent))
        )
        lines = {}
        for kind, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
            if file_id:
                _download(client, file_id, directory / kind, f"{kind} file", screen)
                lines[kind] = count_lines(directory / kind)
        answers, errors = lines.get("output", 0), lines.get("errors", 0)
        if problem := check_counts(batch, answers, errors):
            raise DownloadIncompleteError(f"{problem} Try again in a minute.")
        parts = [directory / kind for kind in lines]
        if target is None:
            _print(parts, screen)
            return 0
        _publish(parts, target)
    if screen.as_json:
        counts = msgspec.to_builtins(batch.request_counts)
        path = os.fsencode(target).decode(errors="replace")  # A path may be of any bytes, JSON may not.
        outcome = {"id": batch.id, "status": batch.status, "output_path": path, "request_counts": counts}
        screen.json({**outcome, "output_lines": answers, "error_lines": errors})
    else:
        what = f"{_plural(answers, 'answer')} and {_plural(errors, 'error')}"
        screen.note(f"Wrote {what} to {target}; the batch is {batch.status}.")
    return 0


def _fetch_partial(arguments: argparse.Namespace, target: Path | None, screen: Screen) -> int:
    """Write the answers that a batch has so far, and say where to go on."""
    with open_client(arguments.conn_id) as client, tempfile.TemporaryDirectory(prefix="openai-batches-") as directory:
        part = Path(directory, "output")
        partial = client.download_partial(arguments.batch_id, part, offset=arguments.offset)
        if target is None:
            _print([part], screen)
        else:
            _publish([part], target)
    if target is not None and screen.as_json:
        screen.json({"id": arguments.batch_id, **partial._asdict()})
        return 0
    end = "no more will come" if partial.is_complete else f"go on with --offset {partial.next_offset}"
    screen.note(f"{_plural(partial.lines, 'answer')} from number {arguments.offset} on; {end}.")
    return 0


def _print(parts: Iterable[Path], screen: Screen) -> None:
    for lines in _whole_lines(parts):
        screen.raw(lines)
    screen.flush()


def _publish(parts: Iterable[Path], target: Path) -> None:
    """Put the rows in place: the target appears whole or not at all."""
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as sink:
            for lines in _whole_lines(parts):
                sink.write(lines)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _whole_lines(parts: Iterable[Path]) -> Iterator[bytes]:
    """Iterate over the content of files in blocks; a last line without an end gets one, for another file follows."""
    for path in parts:
        with path.open("rb") as content:
            block = b""
            while following := content.read(_COPY_BYTES):
                yield (block := following)
            if block and not block.endswith(b"\n"):
                yield b"\n"


def _download(client: BatchClient, file_id: str, destination: Path, what: str, screen: Screen) -> None:
    if not screen.shows_bars:
        client.download_file(file_id, destination, by_lines=False)
        return
    total = client.retrieve_file(file_id).bytes
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with _Growth(destination.parent, *columns, console=screen.err) as progress:
        progress.add_task(what, total=total)
        client.download_file(file_id, destination, by_lines=False)


class _Growth(Progress):
    """Shows the size of the file on its way to a directory, whenever the bar is drawn."""

    def __init__(self, directory: Path, *columns: ProgressColumn, console: Console) -> None:
        super().__init__(*columns, console=console, transient=True)
        self._directory = directory

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            self.update(task.id, completed=sum(part.stat().st_size for part in self._directory.glob(".*.part")))
        return super().get_renderables()


# --- files -----------------------------------------------------------------------------------------------------------


def show_files(arguments: argparse.Namespace, screen: Screen) -> int:
    """Say what the project's files take of the room that it has."""
    now = time.time()
    with open_client(arguments.conn_id) as client:
        purposes: dict[str, _Shelf] = {}
        for file in client.list_files():
            purposes.setdefault(file.purpose or "", _Shelf()).add(file)
    total = _Shelf(sum(each.files for each in purposes.values()), sum(each.bytes for each in purposes.values()))
    if screen.as_json:
        for purpose, shelf in sorted(purposes.items()):
            screen.json({"purpose": purpose, **msgspec.to_builtins(shelf)})
        return 0
    numbers = [Column(name, justify="right") for name in ("files", "size")]
    table = Table("purpose", *numbers, "oldest", "never expire", pad_edge=False)
    table.box = box.SIMPLE_HEAD if screen.out.is_terminal else None
    for purpose, shelf in sorted(purposes.items()):
        kept = f"{shelf.without_expiry:,}" if shelf.without_expiry else ""
        table.add_row(clean(purpose), f"{shelf.files:,}", size(shelf.bytes), age(shelf.oldest_at, now), kept)
    screen.show(table)
    share = total.bytes / MAX_PROJECT_BYTES
    screen.note(
        f"{_plural(total.files, 'file')}, {size(total.bytes)}: {share:.1%} of the {size(MAX_PROJECT_BYTES)} that a "
        "project has at OpenAI."
    )
    return 0


class _Shelf(msgspec.Struct):
    """Files of one purpose.

    :param without_expiry: how many stay until somebody deletes them
    """

    files: int = 0
    bytes: int = 0
    oldest_at: int | None = None
    without_expiry: int = 0

    def add(self, file: File) -> None:
        self.files += 1
        self.bytes += file.bytes or 0
        self.without_expiry += file.expires_at is None
        if file.created_at is not None:
            self.oldest_at = min(file.created_at, self.oldest_at or file.created_at)


# --- clean-files -----------------------------------------------------------------------------------------------------


def clean_files(arguments: argparse.Namespace, screen: Screen) -> int:
    """Delete old files of batches that are over."""
    started = time.time()
    with open_client(arguments.conn_id) as client:
        purposes = file_purposes(client.settings.dialect, arguments.purpose or PURPOSES)
        files = list_files(client, purposes)
        old = spent_files(
            files,
            client.list_batches(),
            before=started - arguments.older_than,
            purposes=purposes,
            longest_life_s=client.settings.dialect.longest_life_s,
        )
        _tell_times_ahead(files, started, screen)
        if not old:
            if not screen.as_json:
                screen.note("No files to delete.")
            return 0
        if not screen.as_json:
            screen.show(_table(old, screen, started))
        if arguments.dry_run:
            for file in old if screen.as_json else ():
                screen.json({**_file_json(file), "deleted": False, "error": None})
            screen.note(f"Would delete {_amount(old)}.")
            return 0
        if not arguments.yes and not _confirmed(old, screen):
            screen.note("Nothing was deleted.")
            return 1
        # Somebody may have used one of them for a new batch while the user was thinking.
        return _delete(client, still_spent(client, old), screen)


def _tell_times_ahead(files: Iterable[File], now: float, screen: Screen) -> None:
    """Say why files that seem to be old are not: an emulator's time runs ahead, and clocks may be wrong."""
    ahead = [file.created_at - now for file in files if file.created_at and file.created_at - now >= CLOCK_SKEW_S]
    if ahead:
        screen.note(
            f"{_plural(len(ahead), 'file')} bear{'s' if len(ahead) == 1 else ''} a time up to {duration(max(ahead))} "
            "ahead of this machine's clock, and cannot be old before that has passed.",
            style="yellow",
        )


def _delete(client: BatchClient, files: list[File], screen: Screen) -> int:
    deleted: list[File] = []
    with Progress(*_COUNT, console=screen.err, transient=True, disable=not screen.shows_bars) as progress:
        for file in progress.track(files, description="Deleting"):
            problem = None
            try:
                client.delete_file(file.id)
            except AuthenticationError:
                raise
            except OpenAIBatchesError as error:
                problem = str(error)
                screen.note(f"{file.id}: {problem}", style="red")
            else:
                deleted.append(file)
            if screen.as_json:
                screen.json({**_file_json(file), "deleted": problem is None, "error": problem})
    if not screen.as_json:
        screen.note(f"Deleted {_amount(deleted)}.")
    return 0 if len(deleted) == len(files) else 1


def _confirmed(files: list[File], screen: Screen) -> bool:
    screen.err.print(f"Delete {_amount(files)}? They cannot be brought back. [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _amount(files: Sequence[File]) -> str:
    return f"{_plural(len(files), 'file')}, {size(sum(file.bytes or 0 for file in files))}"


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _file_json(file: File) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(file)
    return fields


def _table(files: Iterable[File], screen: Screen, now: float) -> Table:
    bars = screen.out.is_terminal
    table = Table("file", "purpose", Column("size", justify="right"), "age", "filename", pad_edge=False)
    table.box = box.SIMPLE_HEAD if bars else None
    for file in files:
        made = age(file.created_at, now)
        table.add_row(clean(file.id), clean(file.purpose), size(file.bytes), made, clean(file.filename or ""))
    return table
