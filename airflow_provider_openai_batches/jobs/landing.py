"""The end of a round: what its batch left is fetched, and decides what the next round sends."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_openai_batches.api.error_answers import is_queue_full
from airflow_provider_openai_batches.api.errors import (
    BatchFailedError,
    DownloadIncompleteError,
    NotFoundError,
    OpenAIBatchesError,
)
from airflow_provider_openai_batches.api.models import Batch, BatchStatus
from airflow_provider_openai_batches.api.tracing import traced
from airflow_provider_openai_batches.jobs.finish import open_shard
from airflow_provider_openai_batches.jobs.ledger import Round, Shard
from airflow_provider_openai_batches.jobs.queue import postpone, refused_as_full
from airflow_provider_openai_batches.jobs.requests import estimated_tokens
from airflow_provider_openai_batches.jobs.results import check_counts, count_lines
from airflow_provider_openai_batches.jobs.rounds import Oddities

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.job import Job

log = logging.getLogger(__name__)

MOST_IDLE_ROUNDS = 3
"""Rounds in a row that answer nothing before a shard is given up."""

MISCOUNTED_TRIES = 6
"""Fetches, within half an hour, after which a file that is shorter than its batch claims is all there is."""

MISSING_TRIES = 3
"""Looks, within some minutes, after which a file or batch that the service does not know is gone."""

FILE_MISSING_TRIES = 4
"""Creates that do not find their input file before it is uploaded anew; a new one gets as many."""


class AnswersGoneError(OpenAIBatchesError):
    """The service does not know a batch or a file that the ledger says is paid for."""


@traced("openai_batches.land")
def land(job: Job, shard: Shard) -> None:
    """Deal with the end of a batch: fetch its files, or find out why there are none."""
    current = shard.round
    assert current.batch_id is not None
    # Once: if this does not work out, the batch is looked at anew.
    try:
        batch = job.seen.pop(current.batch_id, None) or job.client.retrieve_batch(current.batch_id)
    except NotFoundError as error:
        lost(job, shard, error)
        return
    if batch.status == BatchStatus.FAILED:
        _refused(job, shard, batch)
        return
    if batch.files_pending and not _given_up(job, current, MISCOUNTED_TRIES):
        raise DownloadIncompleteError(
            f"Batch {batch.id} is completed, but does not name all its files yet. Should it never do so, clear the "
            "task with replan='always': then its rows are bought again."
        )
    fetched: dict[str, int] = {}
    with job.directory.staging() as staging:
        for kind, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
            if file_id and _fetch(job, current, file_id, staging / kind):
                fetched[kind] = count_lines(staging / kind)
        lines = fetched.get("output", 0), fetched.get("errors", 0)
        if problem := check_counts(batch, *lines, current.requests):
            if current.troubles < MISCOUNTED_TRIES:
                raise DownloadIncompleteError(problem)
            log.error("%s Its length is right, though, each time: the rest counts as missing.", problem)
        for kind in fetched:
            job.directory.publish(staging / kind, shard.file(kind, current.number))
    current.has_output, current.has_errors = "output" in fetched, "errors" in fetched
    current.output_file_id, current.error_file_id = batch.output_file_id, batch.error_file_id
    current.status = batch.status
    current.landed, current.landed_at = True, job.now()
    current.troubles = 0
    job.save()
    job.landed(batch, shard.model)
    log.info("Batch %s is %s: landed %d answers and %d errors.", batch.id, batch.status, *lines)


def lost(job: Job, shard: Shard, error: NotFoundError) -> None:
    """Deal with a batch that the service does not know.

    :raises AnswersGoneError: unless a user has said to plan anew all the same
    """
    current = shard.round
    if not _given_up(job, current, MISSING_TRIES):
        raise _gone(current, f"Batch {current.batch_id} is not known to the service any more", error)
    log.error("Batch %s is not known to the service any more: its rows are planned anew.", current.batch_id)
    current.status = "unknown"
    current.landed = True
    job.save()


def review(job: Job, shard: Shard) -> None:
    """Decide what becomes of each row of a landed round, and write the next round if some are worth one."""
    with open_shard(job, shard) as rows:
        report = rows.report
        shard.idle_rounds = 0 if report.ran else shard.idle_rounds + 1
        if report.oddities != Oddities():
            log.warning("Shard %d, round %d: %s", shard.index, shard.round.number, report.oddities)
        if not report.retries or shard.idle_rounds >= MOST_IDLE_ROUNDS:
            if report.retries:
                log.warning("Shard %d is given up: %d rounds in a row answered nothing.", shard.index, MOST_IDLE_ROUNDS)
            shard.finished = True
            job.save()
            return
        number = max(shard.round.number, shard.dropped_round) + 1
        with job.directory.staging() as staging:
            limits = job.settings.limits
            queue_limit = (limits.max_tokens or {}).get(shard.model, math.inf)
            written = rows.write_next_round(
                staging / "requests",
                estimated_tokens,
                max_bytes=limits.max_bytes,
                max_tokens=queue_limit if shard.max_tokens is None else shard.max_tokens,
            )
            job.directory.publish(staging / "requests", shard.file("requests", number))
        left_out = report.retries - written.requests
    shard.rounds.append(Round(number, written.requests, written.bytes, written.tokens, left_out))
    job.save()
    log.info("Shard %d: %d rows go into round %d.", shard.index, written.requests, number)


def _refused(job: Job, shard: Shard, batch: Batch) -> None:
    """Deal with a batch that failed validation: nothing ran, nothing is billed."""
    current = shard.round
    current.forget_batch()
    job.save()
    job.landed(batch, shard.model)
    texts = [(entry.code, entry.message or "") for entry in batch.errors]
    full = next((message for code, message in texts if is_queue_full(code, message)), None)
    if full is not None:
        refused_as_full(job, shard, full)
        return
    if any("cannot find file" in message.lower() for _, message in texts):
        # Known to happen for hours to files uploaded a moment ago; first the same file again, then a fresh upload.
        current.times_file_missing += 1
        if current.times_file_missing <= 2 * FILE_MISSING_TRIES:
            postpone(job, current, f"the service does not find file {current.file_id} yet")
            if current.times_file_missing % FILE_MISSING_TRIES == 0 and current.file_id is not None:
                job.ledger.unused_files.append(current.file_id)
                current.file_id = None
                job.save()
            return
    # A later attempt of the task may try again: nothing was bought, and a model may have been allowed by then.
    raise BatchFailedError(batch)


def _fetch(job: Job, current: Round, file_id: str, path: Path) -> bool:
    """Fetch a file; return whether there is one."""
    try:
        job.client.download_file(file_id, path)
    except NotFoundError as error:
        if not _given_up(job, current, MISSING_TRIES):
            raise _gone(current, f"File {file_id} with answers of batch {current.batch_id} is gone", error) from error
        log.error("File %s with answers of batch %s is gone: its rows are planned anew.", file_id, current.batch_id)
        return False
    return True


def _given_up(job: Job, current: Round, tries: int) -> bool:
    """Whether what is missing may be bought again: a user has said so, and it was not just late."""
    return job.ledger.replanning and current.troubles >= tries


def _gone(current: Round, what: str, error: NotFoundError) -> AnswersGoneError:
    return AnswersGoneError(
        f"{what} ({error}) The ledger says it is paid for, so it is not bought again by itself. If it cannot be "
        "restored, and the connection's project is the right one, clear the task with replan='always': all other "
        "answers are kept, and these rows are bought again.",
        # Reads may lag behind for some seconds.
        transient=current.troubles < MISSING_TRIES,
    )
