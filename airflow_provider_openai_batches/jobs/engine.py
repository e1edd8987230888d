"""A job from rows to answers, one resumable step at a time.

:func:`advance` is the only way forward. It reads what is known, does all that can be done now, writes the ledger after
each step that cannot be taken back, and says what to wait for. First run, resume from deferral, task retry, crash and
waiting in the task itself all call it.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from airflow_provider_openai_batches.api.errors import (
    BadRequestError,
    BatchFailedError,
    NotFoundError,
    OpenAIBatchesError,
    TooLargeError,
    UnreachableError,
    WrongPathError,
)
from airflow_provider_openai_batches.api.models import BatchStatus
from airflow_provider_openai_batches.jobs.copies import delete_copies, is_fading, upload
from airflow_provider_openai_batches.jobs.direct import finish_directly, holds_back
from airflow_provider_openai_batches.jobs.finish import estimate, finish
from airflow_provider_openai_batches.jobs.job import Job
from airflow_provider_openai_batches.jobs.landing import AnswersGoneError, land, lost, review
from airflow_provider_openai_batches.jobs.ledger import LedgerError, Refusal, Shard, begin_generation
from airflow_provider_openai_batches.jobs.ownership import owns
from airflow_provider_openai_batches.jobs.plan import make_plan
from airflow_provider_openai_batches.jobs.purchase import buy, cancel_twins
from airflow_provider_openai_batches.jobs.queue import RequestTooLargeError, admitted, has_slot, release
from airflow_provider_openai_batches.jobs.reuse import keep_apart
from airflow_provider_openai_batches.sighting import look

log = logging.getLogger(__name__)

TROUBLE_WAIT_S = (30.0, 1800.0)
"""First and longest pause of a shard after a call that failed in spite of the client's own retries."""

_OF_ONE_SHARD = (
    BatchFailedError,
    BadRequestError,
    NotFoundError,
    TooLargeError,
    AnswersGoneError,
    RequestTooLargeError,
)
"""Errors that say nothing about other shards, unlike a wrong key or an exhausted quota."""

_REFUSALS_SHOWN = 20

MOST_TROUBLES = 20
"""Such pauses in a row before the task fails: most of a working day. Its next attempt goes on all the same."""

MOST_TROUBLES_AT_FIRST = 6
"""The same for a job that has never had a connection: half an hour. The place may be the wrong one."""


class ShardRefusedError(OpenAIBatchesError):
    """The service refused a part of a job for good. All other rows have their results."""


@dataclass(frozen=True)
class Waiting:
    """Nothing more can be done now.

    :param batch_ids: batches that are going on; any of them may end
    :param not_before: unix time at which something can be done even if none ends; None for never
    """

    batch_ids: list[str]
    not_before: float | None


@dataclass(frozen=True)
class Finished:
    """Every row has its result.

    :param manifest: what came of the job
    """

    manifest: dict[str, Any]


@dataclass(frozen=True)
class Stopped:
    """The time was up. What was finished is landed and in the results; the next attempt buys only the rest.

    :param manifest: what came of the job so far
    """

    manifest: dict[str, Any]


class Step(Enum):
    """What a shard needs next."""

    NOTHING = auto()
    UPLOAD = auto()
    BUY = auto()
    LAND = auto()
    REVIEW = auto()
    WAIT = auto()
    HOLD = auto()
    DIRECT = auto()


def next_step(shard: Shard, now: float, *, buying: bool, holding: bool = False) -> Step:
    """Decide what a shard needs.

    :param shard: as the ledger has it
    :param now: unix time
    :param buying: whether anything may be bought, or only landed what was
    :param holding: whether what is left of it waits for the other shards, to be sent without a batch
    """
    current = shard.round
    if shard.finished or shard.refusal is not None:
        return Step.NOTHING
    if current.landed:
        return Step.REVIEW
    if current.is_active or now < current.not_before:
        return Step.WAIT
    if current.direct:
        return Step.DIRECT
    if current.batch_id is not None:
        return Step.LAND
    if current.intent_at is not None:
        # A create whose answer was lost may have bought something: that has to be found out in any case.
        return Step.BUY
    if not buying:
        return Step.NOTHING
    if holding and shard.is_between:
        return Step.HOLD
    return Step.UPLOAD if current.file_id is None else Step.BUY


def advance(job: Job) -> Waiting | Finished | Stopped:
    """Do all that can be done now.

    A shard that the service refuses for good stops alone. When the others are done, the results are written, and then
    its error is raised.

    :raises InvalidInputError: the source has a row that cannot be sent; nothing was bought
    :raises ShardRefusedError: the service refused a shard for good
    :raises OpenAIBatchesError: the service has trouble beyond the client's patience; calling again goes on
    """
    ledger = job.ledger
    if ledger.manifest is not None:
        return Finished(ledger.manifest)
    if not ledger.planned:
        make_plan(job)
    if job.settings.dry_run:
        return Finished(estimate(job))
    keep_apart(job)
    job.seen.clear()
    job.queued = None
    job.full.clear()
    _stop_if_late(job)
    errors = _look_at_batches(job)
    if ledger.stopping:
        cancel(job)
    while True:
        # How much is left is known when all that is over has landed.
        holding = holds_back(job)
        for shard in list(ledger.shards):
            error = _advance_shard(job, shard, buying=not ledger.stopping and not errors, holding=holding)
            if error is not None:
                errors.append(error)
        if errors:
            raise _first(errors)
        if not (holding and not holds_back(job)) and not finish_directly(job):
            break
    steps = {
        next_step(shard, job.now(), buying=not ledger.stopping, holding=holds_back(job)) for shard in ledger.shards
    }
    if steps <= {Step.NOTHING}:
        return _end(job)
    if job.full:
        job.save()
    return Waiting([current.batch_id or "" for current in ledger.active_rounds], _next_look(job))


def cancel(job: Job) -> None:
    """Ask all batches that are going on to stop. What they have finished is landed when they are over.

    Does nothing if another attempt has taken the job over: the batches are that one's now.
    """
    if not owns(job.directory, job.ledger):
        return
    for current in job.ledger.active_rounds:
        if current.status == BatchStatus.CANCELLING:
            continue
        assert current.batch_id is not None
        try:
            current.status = job.client.cancel_batch(current.batch_id).status
        except OpenAIBatchesError as error:
            log.warning("Could not cancel batch %s: %s", current.batch_id, error)


def _end(job: Job) -> Waiting | Finished | Stopped:
    ledger = job.ledger
    cancel_twins(job)
    manifest = finish(job)
    # Rows of a batch whose answers could not be fetched are paid for. To plan them anew would buy them again.
    is_owed = any(shard.refusal and shard.round.batch_id and not shard.round.landed for shard in ledger.shards)
    if ledger.replanning and not is_owed:
        delete_copies(job)
        ledger.manifest, deadline = manifest, ledger.deadline
        begin_generation(ledger, ledger.max_tries)
        ledger.deadline = deadline
        job.save()
        return advance(job)
    if (ledger.replanning or not ledger.stopping) and any(shard.refusal for shard in ledger.shards):
        raise _refused(job, manifest)
    if not all(shard.finished for shard in ledger.shards):
        return Stopped(manifest)
    delete_copies(job)
    ledger.manifest = manifest
    job.save()
    job.directory.clean()
    return Finished(manifest)


def _refused(job: Job, manifest: dict[str, Any]) -> ShardRefusedError:
    refused = [shard for shard in job.ledger.shards if shard.refusal is not None]
    reasons = "\n".join(
        f"Shard {shard.index} ({shard.requests:,} rows from index {shard.first_index:,}): {shard.refusal.message}"
        for shard in refused[:_REFUSALS_SHOWN]
        if shard.refusal is not None
    )
    more = f"\n... and {len(refused) - _REFUSALS_SHOWN:,} more" if len(refused) > _REFUSALS_SHOWN else ""
    return ShardRefusedError(
        f"{len(refused):,} of {len(job.ledger.shards):,} shards cannot go on, and nothing else is left to do. "
        f"{reasons}{more}\n"
        f"{manifest['succeeded']:,} of {manifest['requests']:,} rows are answered, in {job.directory.path('results')}. "
        "A retry tries the shards again as they are. If model or rows have to change, correct the DAG and clear the "
        "task: rows whose request is the same keep their answers."
    )


def _first(errors: list[OpenAIBatchesError]) -> OpenAIBatchesError:
    first, *others = errors
    for other in others:
        first.add_note(f"Also: {other}")
    return first


def _next_look(job: Job) -> float | None:
    """Return when something can be done even if no batch ends: a pause that is over, the deadline, another look."""
    now, ledger, holding = job.now(), job.ledger, holds_back(job)
    times = []
    for shard in ledger.shards:
        current = shard.round
        match next_step(shard, now, buying=not ledger.stopping, holding=holding):
            case Step.WAIT if not current.is_active:
                times.append(current.not_before)
            case Step.WAIT if current.troubles or (ledger.stopping and current.status != BatchStatus.CANCELLING):
                times.append(now + TROUBLE_WAIT_S[0] * job.patience)
            case Step.BUY if current.intent_at is None and not has_slot(job):
                pass  # The end of a batch is what this one waits for.
            case Step.UPLOAD | Step.BUY | Step.LAND | Step.REVIEW | Step.DIRECT:
                times.append(now)
    if ledger.deadline is not None and not ledger.stopping:
        times.append(ledger.deadline)
    return min(times, default=None)


def _advance_shard(job: Job, shard: Shard, *, buying: bool, holding: bool) -> OpenAIBatchesError | None:
    """Take a shard as far as it goes by itself. Trouble of its own makes this shard wait or stop, and no other.

    :return: trouble that does not pass, and is not this shard's alone
    """
    try:
        _take_steps(job, shard, buying=buying, holding=holding)
    except LedgerError:
        raise
    except OpenAIBatchesError as error:
        current = shard.round
        # Not while a create is open: what it may have bought has to be found by whoever goes on.
        is_open = current.intent_at is not None and current.batch_id is None
        is_its_own = isinstance(error, _OF_ONE_SHARD) and not isinstance(error, WrongPathError)
        if is_its_own and not is_open and not error.transient:
            _refuse(job, shard, error)
            return None
        if not error.transient or current.troubles >= _most_troubles(job, error):
            return error
        first, longest = TROUBLE_WAIT_S
        wait = max(error.retry_after_s or 0.0, min(first * 2**current.troubles, longest) * job.patience)
        current.troubles += 1
        current.not_before = job.now() + wait
        job.save()
        log.warning("Shard %d goes on in %.0f seconds: %s", shard.index, wait, error)
    return None


def _most_troubles(job: Job, error: OpenAIBatchesError) -> int:
    was_reached = any(each.file_id for shard in job.ledger.shards for each in shard.rounds)
    return MOST_TROUBLES if was_reached or not isinstance(error, UnreachableError) else MOST_TROUBLES_AT_FIRST


def _refuse(job: Job, shard: Shard, error: OpenAIBatchesError) -> None:
    shard.refusal = Refusal(error.code or "refused", str(error))
    job.save()
    log.error("Shard %d cannot go on: %s", shard.index, error)


def _take_steps(job: Job, shard: Shard, *, buying: bool, holding: bool) -> None:
    while shard in job.ledger.shards:
        match next_step(shard, job.now(), buying=buying, holding=holding):
            case Step.UPLOAD:
                upload(job, shard)
            case Step.BUY:
                if shard.round.intent_at is None:
                    if not admitted(job, shard):
                        return
                    if is_fading(job, shard):
                        upload(job, shard)
                buy(job, shard, send=buying)
            case Step.LAND:
                land(job, shard)
            case Step.REVIEW:
                review(job, shard)
            case Step.WAIT | Step.HOLD | Step.DIRECT | Step.NOTHING:
                return


def _stop_if_late(job: Job) -> None:
    ledger = job.ledger
    if not job.settings.cancel_when_late or ledger.stopping or ledger.deadline is None or job.now() < ledger.deadline:
        return
    log.warning("The job's time is up: cancelling %d batches and keeping what they finish.", len(ledger.active_rounds))
    ledger.stopping = True
    job.save()


def _look_at_batches(job: Job) -> list[OpenAIBatchesError]:
    """Bring the statuses of all batches up to date. One that cannot be seen stays as it was.

    :return: errors of batches that are lost, or of a service that refuses to tell
    """
    active = {shard.round.batch_id or "": shard for shard in job.ledger.active_shards}
    errors: list[OpenAIBatchesError] = []
    if not active:
        return errors
    sighting = look(job.client, active.keys(), threading.Event())
    for batch_id, batch in sighting.batches.items():
        shard = active[batch_id]
        shard.round.status = batch.status
        shard.round.troubles = 0
        if batch.is_terminal:
            job.seen[batch_id] = batch
            # One that failed may have found the queue full itself.
            if batch.status != BatchStatus.FAILED:
                release(job, shard.model)
    for batch_id, error in sighting.errors.items():
        if not isinstance(error, NotFoundError):
            log.warning("Could not look at batch %s: %s", batch_id, error)
            continue
        shard = active[batch_id]
        try:
            lost(job, shard, error)
        except AnswersGoneError as gone:
            if gone.transient:
                shard.round.troubles += 1
            else:
                _refuse(job, shard, gone)
    if sighting.outage is not None:
        log.warning("Could not look at the batches: %s", sighting.outage)
        if not sighting.outage.transient:
            # A revoked key, say. The batches go on, and the next attempt finds them where they are.
            errors.append(sighting.outage)
    job.save()
    return errors
