"""The service's copies of a job's files: one upload for each round, and at the end none, if that was asked for.

An upload whose answer is lost, or whose process is killed before it can write down the answer, leaves a file of which
nobody has the id. Its name has the job's id in it, so it can be found in the listing of the project's files. As that
may be long, a job looks only if there was such an upload, and only as far back as the first of them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, BinaryIO

from airflow_provider_openai_batches.api.errors import BadRequestError, NotFoundError, OpenAIBatchesError
from airflow_provider_openai_batches.jobs.ledger import Ledger, Shard

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.job import Job

log = logging.getLogger(__name__)

LOOKS = 5
"""Walks through the listing, of which each may be cut short by a deletion."""


READ_WITHIN_S = 6 * 3600.0
"""How long after its create a batch may still have to read its input file, and some to spare."""


def is_fading(job: Job, shard: Shard) -> bool:
    """Whether the service deletes a round's file too soon for a batch: it may have waited for days to be created."""
    expires_at = shard.round.file_expires_at
    return expires_at is not None and expires_at < job.now() + READ_WITHIN_S


def upload(job: Job, shard: Shard) -> None:
    """Upload the requests of a shard's latest round, perhaps anew."""
    ledger, current = job.ledger, shard.round
    was_unsure, sent = ledger.unsure_since is not None, 0
    with job.directory.local(shard.file("requests", current.number)) as path:

        def content() -> BinaryIO:
            # Called once per POST. Only who deletes pays for a further write of the ledger.
            nonlocal sent
            sent += 1
            if job.settings.delete_remote_files and ledger.unsure_since is None:
                ledger.unsure_since = job.now()
                job.save()
            return path.open("rb")

        name = f"{_prefix(ledger)}{shard.index:05d}-round-{current.number}.jsonl"
        file = job.client.upload_file(content, filename=name, expires_after=job.settings.files_expire_after)
    if current.file_id is not None:
        ledger.unused_files.append(current.file_id)
    current.file_id, current.file_expires_at = file.id, file.expires_at
    current.troubles = 0
    if not was_unsure and sent == 1:
        ledger.unsure_since = None
    job.save()
    log.info("Uploaded shard %d, round %d: %d requests, %d bytes.", shard.index, current.number, current.requests,
             current.bytes)  # fmt: skip


def delete_copies(job: Job) -> None:
    """Delete the service's copies, if that was asked for. One that cannot be deleted now expires by itself."""
    if not job.settings.delete_remote_files:
        return
    ledger = job.ledger
    rounds = [landed for shard in ledger.shards for landed in shard.rounds]
    known = [file_id for each in rounds for file_id in (each.file_id, each.output_file_id, each.error_file_id)]
    for file_id in filter(None, dict.fromkeys([*known, *ledger.unused_files, *_unknown(job)])):
        try:
            job.client.delete_file(file_id)
        except OpenAIBatchesError as error:
            log.warning("Could not delete file %s: %s", file_id, error)


def _unknown(job: Job) -> list[str]:
    """Return the ids of the job's input files, if there may be some that nobody was told."""
    ledger = job.ledger
    if ledger.unsure_since is None:
        return []
    found: dict[str, None] = {}
    for left in reversed(range(LOOKS)):
        try:
            for file in job.client.input_files_since(ledger.unsure_since):
                if (file.filename or "").startswith(_prefix(ledger)):
                    found[file.id] = None
        except OpenAIBatchesError as error:
            # A page begins behind a file of the one before, which another job may have deleted since.
            if not left or not isinstance(error, BadRequestError | NotFoundError):
                log.warning("Could not look for files of uploads whose answers were lost: %s", error)
                break
        else:
            ledger.unsure_since = None
            break
    return list(found)


def _prefix(ledger: Ledger) -> str:
    return f"{ledger.job_id}-shard-"
