"""The queue of a model: what may be created now, what waits, and what is too large for it."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import msgspec

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.jobs.plan import split_shard

if TYPE_CHECKING:
    from airflow_provider_openai_batches.api.models import Batch
    from airflow_provider_openai_batches.jobs.job import Job
    from airflow_provider_openai_batches.jobs.ledger import Round, Shard

log = logging.getLogger(__name__)

MODEL_KEY = "airflow_model"
TOKENS_KEY = "airflow_tokens"

QUEUE_WAIT_S = (60.0, 1800.0)
"""First and longest pause before a batch that did not fit the queue is created again."""

_WAITS_BEFORE_DOUBT = 4
"""Waits after which our estimate of a shard's tokens is no longer trusted."""

_MOST_DOUBLINGS = 10

_LIMIT = re.compile(r"limit:\s*([\d,]+)\s*enqueued tokens|limit of\s*([\d.,]+)\s*([KMB])?\s+for the deployment", re.I)
_UNITS = {"": 1, "K": 1_000, "M": 1_000_000, "B": 1_000_000_000}


class RequestTooLargeError(OpenAIBatchesError):
    """A single request is larger than all that may be queued for its model."""

    code = "token_limit_exceeded"


def has_slot(job: Job) -> bool:
    """Whether the job may have another batch. A create whose answer was lost counts as one."""
    most = job.settings.max_active_batches
    return most is None or sum(shard.round.is_claimed and shard.refusal is None for shard in job.ledger.shards) < most


def admitted(job: Job, shard: Shard) -> bool:
    """Whether a batch may be created now, by the job's own limit and by the queue that all DAGs share.

    If the queue is full, the shard waits.
    """
    if not has_slot(job):
        return False
    limit = job.settings.queue_limits.get(shard.model)
    if limit is None:
        return True
    queued = _queued_tokens(job, shard.model)
    # A shard above the limit is let into an empty queue: tokens are estimates, and it would wait for ever.
    if queued + shard.round.tokens <= limit or not queued:
        return True
    # A wait that was cut short, see release(), is no reason to wait longer next time.
    shard.round.times_queue_full += shard.round.not_before > 0
    shard.round.not_before = job.now() + _backoff_s(job, shard.round)
    if shard.model not in job.full:
        job.full.add(shard.model)
        log.info("%d of %d tokens of %s are queued: its next batches wait.", queued, limit, shard.model)
    return False


def refused_as_full(job: Job, shard: Shard, message: str, retry_after_s: float | None = None) -> None:
    """Deal with a create that did not fit: wait, or make smaller what can never fit.

    :param message: the service's, which may tell the limit
    :param retry_after_s: shortest pause the service asks for
    :raises RequestTooLargeError: it is a single request
    """
    current, limit = shard.round, queue_limit(message)
    if limit is None or not _never_fits(current, limit):
        postpone(job, current, f"the queue of {shard.model} is full", retry_after_s)
    elif current.requests > 1:
        if current.number == 1:
            split_shard(job, shard)
        else:
            _drop_round(job, shard, limit)
    elif current.times_queue_full < _WAITS_BEFORE_DOUBT:
        postpone(job, current, f"the queue of {shard.model} is full, and may be too small for this", retry_after_s)
    else:
        with job.directory.local(shard.file("requests", current.number)) as path:
            custom_id = msgspec.json.decode(path.read_bytes())["custom_id"]
        raise RequestTooLargeError(
            f"Request {custom_id!r} alone has about {current.tokens:,} tokens, and the queue of {shard.model} takes "
            f"{limit:,}. Shorten it, choose another model, or have the limit raised."
        )


def postpone(job: Job, current: Round, reason: str, at_least_s: float | None = None) -> None:
    """Let a round wait, and be created with the same file after that. It costs no row an attempt.

    :param reason: why, for the log
    :param at_least_s: shortest pause
    """
    wait = max(at_least_s or 0.0, _backoff_s(job, current))
    current.times_queue_full += 1
    current.not_before = job.now() + wait
    job.save()
    log.info("A batch waits %.0f seconds: %s.", wait, reason)


def release(job: Job, model: str) -> None:
    """Let a shard that waits for the queue try at once, now that a batch of ours has left it.

    Where the limit is known all of them may, since each is checked against it before it costs a call.
    """
    waiting = [
        shard.round
        for shard in job.ledger.shards
        if shard.model == model and shard.round.not_before and not shard.round.is_claimed
        if not (shard.round.troubles or shard.round.times_file_missing or shard.finished)
    ]
    for current in waiting if model in job.settings.queue_limits else waiting[:1]:
        current.not_before = 0.0


def _backoff_s(job: Job, current: Round) -> float:
    first, longest = QUEUE_WAIT_S
    doublings = min(current.times_queue_full, _MOST_DOUBLINGS)
    return min(first * 2.0**doublings, longest) * job.patience


def queue_limit(message: str) -> int | None:
    """Read the size of a model's queue, in tokens, from the message that says it is full."""
    found = _LIMIT.search(message)
    if found is None:
        return None
    plain, number, unit = found.groups()
    return int(float((plain or number).replace(",", "")) * _UNITS[(unit or "").upper()])


def _drop_round(job: Job, shard: Shard, limit: int) -> None:
    """Undo a further round, so that the review of the one before writes a smaller one in its place."""
    dropped = shard.rounds.pop()
    shard.max_tokens = max(1, min(limit, dropped.tokens // 2))
    shard.dropped_round = dropped.number
    if dropped.file_id is not None:
        job.ledger.unused_files.append(dropped.file_id)
    job.save()
    job.directory.delete(shard.file("requests", dropped.number))
    log.info("Shard %d: round %d is larger than the queue of %s: sending less.", shard.index, dropped.number,
             shard.model)  # fmt: skip


def _never_fits(current: Round, limit: int) -> bool:
    # Estimates are rough: after many waits half the queue's size is suspicious too. Two halves cost nothing more.
    return current.tokens > limit or (current.times_queue_full >= _WAITS_BEFORE_DOUBT and current.tokens * 2 > limit)


def _queued_tokens(job: Job, model: str) -> int:
    """Sum up the estimates that unfinished batches of all DAGs carry, with one listing per step of the job."""
    if job.queued is None:
        job.queued = {}
        dialect = job.client.settings.dialect
        if not dialect.keeps_metadata:
            # What other jobs have queued cannot be told from their batches.
            for shard in job.ledger.active_shards:
                job.queued[shard.model] = job.queued.get(shard.model, 0) + shard.round.tokens
            return job.queued.get(model, 0)
        for batch in job.client.batches_since(job.now() - dialect.longest_life_s):
            if not batch.is_terminal:
                for name in filter(None, {batch.metadata.get(MODEL_KEY), batch.model}):
                    job.queued[name] = job.queued.get(name, 0) + _tokens(batch)
    return job.queued.get(model, 0)


def _tokens(batch: Batch) -> int:
    text = batch.metadata.get(TOKENS_KEY, "")
    return int(text) if text.isdecimal() else 0
