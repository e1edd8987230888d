"""Creating a round's batch exactly once, whoever dies and whoever wakes up again.

The API has no idempotency keys, so three things stand in for one:

1. A **claim**: a file that only one process can create allows one POST under one token. It is made before the POST,
   and it is good for :data:`CLAIM_LEASE_S`: a process that was frozen in between does not send any more.
2. The **search**: before a create is begun a second time, the batches since the first claim are listed by job, shard
   and round. What is found is adopted. Where metadata is lost, the input file tells: each round has its own.
3. **Patience**: nothing new is begun while a claim is so young that its POST may still be under way.

So two attempts that are alive at once (a worker that was taken for dead) cannot both send: the second finds the claim
of the first, waits until it can no longer be used, and looks for what came of it. What is left is a process that is
frozen for minutes between its last look at the clock and its POST. :func:`cancel_twins` looks for that at the end.

This holds for attempts that share a plan. They do: an attempt saves its plan before it buys, and its intent before it
sends, and a save that succeeds is what every later attempt begins with (see :mod:`~.ownership`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError, QueueFullError
from airflow_provider_openai_batches.api.models import Batch, BatchStatus
from airflow_provider_openai_batches.jobs.ledger import Ledger, Shard
from airflow_provider_openai_batches.jobs.ownership import check_owns
from airflow_provider_openai_batches.jobs.queue import MODEL_KEY, TOKENS_KEY, refused_as_full

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.job import Job

log = logging.getLogger(__name__)

CLAIM_LEASE_S = 30.0
"""How long after its claim a create may be sent."""

OWN_CLAIM_SETTLES_S = 30.0
"""How long after a claim of our own, whose answer was lost, a batch may still turn up in the listing."""

FOREIGN_CLAIM_SETTLES_S = 120.0
"""The same for another attempt's claim: its lease and some to spare. The client's timeout comes on top."""

JOB_KEY = "airflow_job"
SHARD_KEY = "airflow_shard"
ROUND_KEY = "airflow_round"


class Claim(msgspec.Struct, frozen=True):
    """The right to send one create."""

    attempt: str
    at: float


def buy(job: Job, shard: Shard, *, send: bool) -> None:
    """Create the batch of a shard's latest round, or find the one that an earlier try created.

    Afterwards the round has a batch, or a time before which nothing more is to be tried, or no create that is open.

    :param send: whether a new create may be sent; else it is only found out what came of those before
    :raises OpenAIBatchesError: the create failed. If it may have been carried out, it is still open
    """
    ledger, current = job.ledger, shard.round
    create = max(current.creates, 1)
    while True:
        name = f"{shard.folder}/round-{current.number}.create-{create}.json"
        claim = Claim(ledger.attempt, job.now())
        claimed_at = job.monotonic()
        if send and job.directory.claim(name, msgspec.json.encode(claim)):
            current.creates, current.intent_at = create, claim.at
            job.save()
            if job.monotonic() - claimed_at < CLAIM_LEASE_S:
                _send(job, shard, create)
            else:
                log.warning("This process was held up for longer than its claim to create a batch is good for.")
            return
        earlier = _read_claim(job, shard, create, name)
        if earlier is None and not send:
            current.creates, current.intent_at = create, None
            job.save()
            return
        # An object store may show a claim to one reader before the next; then it is as young as can be.
        earlier = earlier or Claim("", claim.at)
        ledger.contested |= earlier.attempt != ledger.attempt
        found = _search(job, shard, earlier.at)
        if found is not None:
            log.info("Batch %s was created by an earlier try: using it.", found.id)
            _adopt(job, shard, create, earlier.at, found)
            return
        settled_at = earlier.at + _settles_s(job, earlier) * job.patience
        if job.now() < settled_at:
            current.creates, current.intent_at, current.not_before = create, earlier.at, settled_at
            job.save()
            return
        create += 1


def metadata(ledger: Ledger, shard: Shard) -> dict[str, str]:
    """Say in a batch what it is for: by this it is found again, shown, and counted against the queue."""
    owner = ledger.owner
    return {
        JOB_KEY: ledger.job_id,
        SHARD_KEY: str(shard.index),
        ROUND_KEY: str(shard.round.number),
        MODEL_KEY: shard.model[:512],
        TOKENS_KEY: str(shard.round.tokens),
        "airflow_dag_id": owner.dag_id[:512],
        "airflow_task_id": owner.task_id[:512],
        "airflow_run_id": owner.run_id[:512],
        "airflow_map_index": str(owner.map_index),
    }


def cancel_twins(job: Job) -> None:
    """Cancel and report batches of this job that it does not know, if two attempts have ever met at a claim."""
    ledger = job.ledger
    if not ledger.contested:
        return
    known = {landed.batch_id for shard in ledger.shards for landed in shard.rounds}
    files = {landed.file_id for shard in ledger.shards for landed in shard.rounds}
    for batch in job.client.batches_since(ledger.created_at):
        # Shards that were split, or planned by an attempt that came to nothing, count too; those of earlier generations
        # do not: they were looked at then.
        number = batch.metadata.get(SHARD_KEY, "")
        is_ours = _matches(batch, {JOB_KEY: ledger.job_id}) and number.isdecimal() and int(number) >= ledger.first_shard
        if (is_ours or _is_for_file(job, batch, files)) and batch.id not in known and batch.id not in ledger.twins:
            _cancel_twin(job, batch)


def _settles_s(job: Job, claim: Claim) -> float:
    if claim.attempt == job.ledger.attempt:
        return OWN_CLAIM_SETTLES_S
    return FOREIGN_CLAIM_SETTLES_S + job.creator.settings.timeout_s


def _send(job: Job, shard: Shard, create: int) -> None:
    current = shard.round
    assert current.file_id is not None
    assert current.intent_at is not None
    try:
        batch = job.creator.create_batch(
            current.file_id,
            job.ledger.endpoint,
            metadata=metadata(job.ledger, shard),
            output_expires_after=job.settings.files_expire_after,
            idempotency_token=job.ledger.token(shard, current.number, create),
        )
    except OpenAIBatchesError as error:
        # Otherwise whether it was carried out is for the search to find out, after a while.
        if not error.maybe_applied:
            current.forget_batch()
            job.save()
        if not isinstance(error, QueueFullError):
            raise
        refused_as_full(job, shard, str(error), error.retry_after_s)
    else:
        log.info("Created batch %s for shard %d, round %d.", batch.id, shard.index, current.number)
        _adopt(job, shard, create, current.intent_at, batch)


def _adopt(job: Job, shard: Shard, create: int, intent_at: float, batch: Batch) -> None:
    current = shard.round
    current.creates, current.intent_at = create, intent_at
    current.batch_id, current.status = batch.id, batch.status
    current.troubles = 0
    if job.queued is not None:
        job.queued[shard.model] = job.queued.get(shard.model, 0) + current.tokens
    job.save()


def _search(job: Job, shard: Shard, since: float) -> Batch | None:
    """Return the batch that was created for a round, cancelling any beyond the first."""
    wanted = {
        JOB_KEY: job.ledger.job_id,
        SHARD_KEY: str(shard.index),
        ROUND_KEY: str(shard.round.number),
    }
    batches = job.client.batches_since(since)
    files = {shard.round.file_id}
    found = [
        batch
        for batch in batches
        if (_matches(batch, wanted) or _is_for_file(job, batch, files)) and batch.id not in job.ledger.twins
    ]
    if not found:
        return None
    *twins, first = found  # newest first
    for twin in twins:
        _cancel_twin(job, twin)
    return first


def _cancel_twin(job: Job, twin: Batch) -> None:
    check_owns(job.directory, job.ledger)  # Else it may be the new owner's.
    job.client.cancel_batch(twin.id)
    job.ledger.twins.append(twin.id)
    job.save()
    log.error("Batch %s was created beside another for the same requests: cancelled it. Please report this.", twin.id)


def _matches(batch: Batch, wanted: Mapping[str, str]) -> bool:
    return batch.status != BatchStatus.FAILED and wanted.items() <= batch.metadata.items()


def _is_for_file(job: Job, batch: Batch, files: Collection[str | None]) -> bool:
    """Whether a batch is ours by its input file, where the service may lose metadata: each round has its own."""
    return (
        not job.client.settings.dialect.keeps_metadata
        and JOB_KEY not in batch.metadata
        and batch.status != BatchStatus.FAILED
        and batch.input_file_id is not None
        and batch.input_file_id in files
    )


def _read_claim(job: Job, shard: Shard, create: int, name: str) -> Claim | None:
    content = job.directory.read(name)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=Claim)
    except msgspec.DecodeError:
        # On a file system without links its maker may die before it has any content. It is as old as our first look.
        current = shard.round
        seen_at = current.intent_at if current.creates == create else None
        return Claim("", job.now() if seen_at is None else seen_at)
