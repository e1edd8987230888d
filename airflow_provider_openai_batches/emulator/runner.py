"""A batch's life: one task per batch, from validation to its end, on the virtual clock.

    validating -> in_progress -> finalizing -> completed | expired
         \\-> failed    \\-> cancelling -> cancelled

Each status is one method; each writes the store before it goes on, so a restart enters the same method again.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import dataclasses
import itertools
import math
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from airflow_provider_openai_batches.emulator.clock import VirtualClock
from airflow_provider_openai_batches.emulator.dialects import DIALECTS, Dialect
from airflow_provider_openai_batches.emulator.faults import BatchOutcome, Faults, RowOutcome
from airflow_provider_openai_batches.emulator.progress import ClockedProgress, Progress, UpstreamProgress
from airflow_provider_openai_batches.emulator.results import Job, Plan, finish_order, write_results
from airflow_provider_openai_batches.emulator.store import Store, StoredBatch, StoredFile
from airflow_provider_openai_batches.emulator.validation import Stopping, Verdict, parse_line, validate
from airflow_provider_openai_batches.emulator.wire import ApiError, derived_id, new_file_id

VALIDATION_S = 3.0
FINALIZING_S = 2.0
CANCELLING_S = 2.0
COMPLETION_WINDOW_S = 86_400.0
RESULT_LIFE_S = 30 * 86_400

T = TypeVar("T")


class Upstream(Protocol):
    """Somebody who really answers requests."""

    async def answer_all(self, job: Job, progress: UpstreamProgress, enough: asyncio.Event) -> None:
        """Ask for every line that is not spooled yet, until done or ``enough`` is set."""
        ...


class BatchRunner:
    """Runs every unfinished batch of a store.

    :param batch_seconds: virtual seconds from the first request of a batch to its last
    :param token_limits: queued prompt tokens per model; ``*`` for models not named
    :param upstream: answers the requests; None lets the emulator make answers up
    :param ended: called with every batch that reaches a terminal state
    :param dialect: whose batches these are
    """

    def __init__(
        self,
        store: Store,
        clock: VirtualClock,
        faults: Faults,
        *,
        batch_seconds: float,
        token_limits: Mapping[str, int],
        upstream: Upstream | None = None,
        ended: Callable[[StoredBatch], None] = lambda _: None,
        dialect: Dialect = DIALECTS["openai"],
    ) -> None:
        self._dialect = dialect
        self._store = store
        self._clock = clock
        self._faults = faults
        self._batch_seconds = batch_seconds
        self._token_limits = token_limits
        self._upstream = upstream
        self._batch_ended = ended
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._turns: dict[str, int] = {}  # running batches, numbered by age: their keys on the clock
        self._next_turn = itertools.count()
        self._progress: dict[str, Progress] = {}
        self._stopping = threading.Event()
        # Two: the work holds the interpreter lock most of the time, more would only take turns.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="emulator-batch")

    def resume(self) -> None:
        """Go on with every batch the store knows as unfinished."""
        for batch in self._store.unfinished_batches():
            self._run(batch.id)

    def start(self, batch: StoredBatch) -> None:
        """Store a new batch and begin its life."""
        self._store.add_batch(batch)
        self._run(batch.id)

    def cancel(self, batch: StoredBatch) -> StoredBatch:
        """Ask a batch to stop: requests that had their turn keep their answers.

        :return: the batch, now ``cancelling``, or unchanged if it was that or ``cancelled``
        :raises ApiError: 409, it has ended otherwise
        """
        if batch.status in ("cancelling", "cancelled"):
            return batch
        if batch.is_terminal:
            raise ApiError(409, f"Cannot cancel a batch with status '{batch.status}'.")
        batch = self._halted(batch)
        batch = dataclasses.replace(batch, cancelling_at=self._clock.now(), ending="cancelled")
        self._enter(batch, "cancelling")
        self._clock.wake(self._turns[batch.id])
        return dataclasses.replace(batch, status="cancelling")

    def shown(self, batch: StoredBatch) -> dict[str, Any]:
        """The batch as the API shows it at this moment."""
        outcome = _outcome(batch)
        if outcome is not None and outcome.outcome == "skip_states" and not batch.is_terminal:
            hidden = dataclasses.replace(
                batch, status="validating", in_progress_at=None, finalizing_at=None, total=0, completed=0, failed=0
            )
            return hidden.to_api()
        if batch.status == "in_progress" and batch.id in self._progress:
            completed, failed = self._progress[batch.id].counts(self._clock.elapsed())
            batch = dataclasses.replace(batch, completed=completed, failed=failed)
            if self._dialect.streams and completed:
                batch = dataclasses.replace(batch, output_file_id=_output_id(batch))
        return batch.to_api()

    async def growing(self, file_id: str) -> Path | None:
        """Write what a batch that goes on has answered so far, for whoever may read its output file early.

        :return: a file that is the caller's; None if no such batch will have an output file of this id
        """
        running = (batch for batch in self._store.unfinished_batches() if batch.in_progress_at is not None)
        batch = next((batch for batch in running if _output_id(batch) == file_id), None)
        if batch is None:
            return None
        halted = self._halted(batch)
        job = dataclasses.replace(self._job(halted), ending="cancelled", billed=None)
        output, errors = (self._store.draft_path(new_file_id()) for _ in range(2))
        await self._in_thread(write_results, job, output, errors, self._stopping)
        errors.unlink()
        return output

    async def stop(self) -> None:
        """Leave every batch where it is."""
        self._stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=True)

    def _run(self, batch_id: str) -> None:
        task = asyncio.get_running_loop().create_task(self._live(batch_id))
        self._tasks[task] = batch_id
        self._turns[batch_id] = next(self._next_turn)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._turns[self._tasks.pop(task)]
        if not task.cancelled():
            task.result()  # a mistake of ours goes to the log, by way of the loop

    async def _live(self, batch_id: str) -> None:
        steps = {
            "validating": self._validate,
            "in_progress": self._work,
            "finalizing": self._wind_up,
            "cancelling": self._wind_up,
        }
        with self._clock.working(), contextlib.suppress(Stopping):
            while not (batch := self._load(batch_id)).is_terminal:
                await steps[batch.status](batch)
            self._store.remove_notes(batch_id)
            self._batch_ended(batch)

    # One method per status

    async def _validate(self, batch: StoredBatch) -> None:
        verdict = await self._verdict(batch)
        if not verdict.errors and batch.outcome is None:
            outcome = self._faults.for_batch(batch.endpoint, verdict.model, batch.metadata)
            if outcome is not None and self._load(batch.id).status == batch.status:
                batch = dataclasses.replace(batch, outcome=dataclasses.asdict(outcome))
                self._store.save_batch(batch)
        await self._stay(batch, _validation_s(batch))
        custom_ids: list[str] = []
        if self._faults.about_rows and not verdict.errors:
            custom_ids = await self._in_thread(_custom_ids, self._store.notes_path(batch.id, ".input"))
        batch = self._load(batch.id)
        if batch.status != "validating":
            return
        # From here to the store without an await: two batches must not both see the same free queue.
        errors = self._refusal(batch, verdict)
        if errors is not None:
            self._enter(dataclasses.replace(batch, errors=errors or None, failed_at=self._clock.now()), "failed")
            return
        self._plan(verdict, custom_ids).save(self._store.notes_path(batch.id, ".plan"))
        batch = dataclasses.replace(batch, total=verdict.total, model=verdict.model, tokens=verdict.tokens)
        self._enter(dataclasses.replace(batch, in_progress_at=self._clock.now()), "in_progress")

    async def _work(self, batch: StoredBatch) -> None:
        outcome = _outcome(batch)
        expiry = batch.born + self._dialect.window_s(batch.completion_window)
        if outcome is not None and outcome.outcome == "expire":
            expiry = batch.since + self._batch_seconds * outcome.finished
        stuck = _stuck_seconds(batch)
        if stuck:
            expiry = max(expiry, batch.since + stuck)
        job = self._job(batch)
        if self._upstream is not None:
            await self._ask_upstream(batch, job, expiry)
            all_done = sum(self._progress[batch.id].counts(0)) == batch.total
            await self._sleep(batch, batch.since + stuck)
        else:
            seconds = self._batch_seconds
            failing = await self._in_thread(_failing_positions, job, batch.total)
            self._progress[batch.id] = ClockedProgress(batch.since, seconds, batch.total, failing)
            due = batch.since + max(seconds, stuck)
            await self._sleep(batch, min(due, expiry))
            all_done = due <= expiry
        batch = self._load(batch.id)
        if batch.status != "in_progress":
            return
        batch = self._halted(batch)
        if not all_done:
            batch = dataclasses.replace(batch, ending="expired")
        else:
            batch = dataclasses.replace(batch, finished=None)
        self._enter(dataclasses.replace(batch, finalizing_at=self._clock.now()), "finalizing")

    async def _wind_up(self, batch: StoredBatch) -> None:
        """Write the files of a batch that is finalizing or cancelling, and end it."""
        output, errors = _output_id(batch) if self._dialect.streams else new_file_id(), new_file_id()
        paths = [self._store.draft_path(file_id) for file_id in (output, errors)]
        ran = batch.in_progress_at is not None
        tally = None
        if ran:
            tally = await self._in_thread(write_results, self._job(batch), *paths, self._stopping)
        await self._stay(batch, FINALIZING_S if batch.status == "finalizing" else CANCELLING_S)
        latest = self._load(batch.id)
        if latest.status != batch.status:  # cancelled while finalizing
            for path in paths:
                path.unlink(missing_ok=True)
            return
        now = self._clock.now()
        ended = dataclasses.replace(latest, status=latest.ending, since=self._clock.elapsed())
        ended = dataclasses.replace(ended, **cast("dict[str, Any]", {f"{latest.ending}_at": now}))
        with self._store.transaction():
            if tally is not None:
                ended = dataclasses.replace(
                    ended,
                    completed=tally.completed,
                    failed=tally.failed,
                    usage=tally.usage(),
                    output_file_id=self._add_results(ended, output, "output", tally.output_lines, now),
                    error_file_id=self._add_results(ended, errors, "error", tally.error_lines, now),
                )
            self._store.save_batch(ended)
        self._progress.pop(batch.id, None)

    # What they are made of

    async def _verdict(self, batch: StoredBatch) -> Verdict:
        source = self._store.notes_path(batch.id, ".input")
        if not source.exists():
            file = self._store.file(batch.input_file_id, now=self._clock.now())
            if file is None:
                return Verdict(0, None, 0, array.array("L"), [_file_not_found(batch.input_file_id)])
            # A link of our own: the file may be deleted or expire while the batch runs.
            os.link(self._store.content_path(file.id), source)
        return await self._in_thread(validate, source, batch.endpoint, self._stopping, self._dialect.max_requests)

    def _plan(self, verdict: Verdict, custom_ids: list[str]) -> Plan:
        fates = ((line, self._faults.for_row(custom_id)) for line, custom_id in enumerate(custom_ids))
        return Plan(verdict.rejected, {line: fate for line, fate in fates if fate is not None})

    async def _ask_upstream(self, batch: StoredBatch, job: Job, expiry: float) -> None:
        """Let the upstream answer until it is done, the window closes, or somebody cancels."""
        assert self._upstream is not None
        progress = UpstreamProgress()
        self._progress[batch.id] = progress
        enough = asyncio.Event()
        asking = asyncio.create_task(self._upstream.answer_all(job, progress, enough))
        turn = self._turns[batch.id]
        asking.add_done_callback(lambda _: self._clock.wake(turn))
        try:
            await self._sleep(batch, expiry)
            enough.set()
            with self._clock.outside():
                await asking
        finally:
            asking.cancel()

    def _job(self, batch: StoredBatch) -> Job:
        outcome = _outcome(batch)
        all_failed = None
        if outcome is not None and outcome.outcome == "all_failed":
            status = outcome.status if isinstance(outcome.status, int) else None
            all_failed = RowOutcome("server_error", status, outcome.code, outcome.message)
        spool = self._store.notes_path(batch.id, ".spool")
        return Job(
            batch_id=batch.id,
            url=batch.endpoint,
            source=self._store.notes_path(batch.id, ".input"),
            plan=Plan.load(self._store.notes_path(batch.id, ".plan")),
            finished=batch.finished,
            ending=batch.ending,
            created=batch.in_progress_at or batch.created_at,
            all_failed=all_failed,
            spool=spool if self._upstream is not None or spool.exists() else None,
            billed=self._store.notes_path(batch.id, ".billed") if self._store.keeps_requests else None,
            names_lines=self._dialect.names_lines,
        )

    def _halted(self, batch: StoredBatch) -> StoredBatch:
        """The batch with its counts as they are now, after which no request has its turn."""
        if batch.status != "in_progress":
            return batch
        progress = self._progress.get(batch.id)
        completed, failed = progress.counts(self._clock.elapsed()) if progress is not None else (0, 0)
        return dataclasses.replace(batch, completed=completed, failed=failed, finished=completed + failed)

    def _refusal(self, batch: StoredBatch, verdict: Verdict) -> list[dict[str, Any]] | None:
        """Why a validated batch fails, which can be an empty list; None if it may run."""
        if verdict.errors:
            return verdict.errors
        scripted = _scripted_errors(batch, verdict)
        return scripted if scripted is not None else self._quota_errors(verdict)

    def _quota_errors(self, verdict: Verdict) -> list[dict[str, Any]] | None:
        limit = self._token_limits.get(verdict.model or "", self._token_limits.get("*"))
        if limit is None or self._store.queued_tokens(verdict.model) + verdict.tokens <= limit:
            return None
        return [_queue_full(verdict.model, limit)]

    def _add_results(self, batch: StoredBatch, file_id: str, kind: str, lines: int, now: int) -> str | None:
        path = self._store.draft_path(file_id)
        outcome = _outcome(batch)
        scripted = outcome is not None and outcome.outcome == "empty_error_file"
        kept_empty = kind == "error" and (scripted or self._dialect.always_error_file)
        if lines == 0 and not kept_empty:
            path.unlink()
            return None
        life = batch.output_expires_after or RESULT_LIFE_S
        size = path.stat().st_size
        self._store.add_file(StoredFile(file_id, f"{batch.id}_{kind}.jsonl", "batch_output", size, now, now + life))
        return file_id

    async def _stay(self, batch: StoredBatch, seconds: float) -> None:
        """Remain in the batch's status for its usual time, or as long as a fault says."""
        await self._sleep(batch, batch.since + max(seconds, _stuck_seconds(batch)))

    async def _sleep(self, batch: StoredBatch, due: float) -> None:
        # A cancel that came while a thread worked on the batch found nobody asleep to wake.
        if self._load(batch.id).status == batch.status:
            await self._clock.sleep_until(due, key=self._turns[batch.id])

    def _enter(self, batch: StoredBatch, status: str) -> None:
        self._store.save_batch(dataclasses.replace(batch, status=status, since=self._clock.elapsed()))

    def _load(self, batch_id: str) -> StoredBatch:
        batch = self._store.batch(batch_id)
        assert batch is not None
        return batch

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)


def _output_id(batch: StoredBatch) -> str:
    """The id of a batch's output file, where it is known before there is a file."""
    return derived_id("file-", batch.id, "output")


def _outcome(batch: StoredBatch) -> BatchOutcome | None:
    return BatchOutcome(**batch.outcome) if batch.outcome is not None else None


def _validation_s(batch: StoredBatch) -> float:
    outcome = _outcome(batch)
    scripted = outcome.seconds if outcome is not None and outcome.outcome == "failed" else None
    return VALIDATION_S if scripted is None else scripted


def _stuck_seconds(batch: StoredBatch) -> float:
    outcome = _outcome(batch)
    if outcome is None or outcome.outcome != "stuck" or outcome.status != batch.status:
        return 0.0
    return math.inf if outcome.seconds is None else outcome.seconds


def _scripted_errors(batch: StoredBatch, verdict: Verdict) -> list[dict[str, Any]] | None:
    outcome = _outcome(batch)
    match outcome.outcome if outcome is not None else None:
        case "failed":
            return outcome.errors or [] if outcome is not None else None
        case "file_not_found":
            return [_file_not_found(batch.input_file_id)]
        case "token_limit_exceeded":
            return [_queue_full(verdict.model, verdict.tokens)]
    return None


def _file_not_found(file_id: str) -> dict[str, Any]:
    message = f"Cannot find file {file_id}, or organization org-emulator does not have access to it."
    return {"code": "invalid_request", "message": message, "param": "file_id", "line": None}


def _queue_full(model: str | None, limit: int) -> dict[str, Any]:
    message = (
        f"Enqueued token limit reached for {model} in organization org-emulator. Limit: {limit:,} enqueued tokens. "
        "Please try again once some in_progress batches have been completed."
    )
    return {"code": "token_limit_exceeded", "message": message, "param": None, "line": None}


def _failing_positions(job: Job, total: int) -> array.array[int]:
    if job.all_failed is not None:
        return array.array("L", range(total))
    return job.plan.failing_positions(finish_order(job.batch_id, total))


def _custom_ids(source: os.PathLike[str]) -> list[str]:
    with open(source, "rb") as lines:
        return [parse_line(line)["custom_id"] for line in lines]
