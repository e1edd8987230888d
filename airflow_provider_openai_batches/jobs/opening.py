"""Whose job is in a directory, and what an attempt may do with it."""

from __future__ import annotations

import logging
import time
from enum import StrEnum

from airflow_provider_openai_batches.jobs.directory import JobDirectory
from airflow_provider_openai_batches.jobs.ledger import (
    Ledger,
    LedgerError,
    Owner,
    begin_generation,
    drop_generation,
    new_ledger,
)
from airflow_provider_openai_batches.jobs.ownership import LEDGER, claim_attempt, give_back, load_ledger, take_over

log = logging.getLogger(__name__)

_BATCHES_SHOWN = 5


class Replan(StrEnum):
    """When a cleared task reads its source again."""

    WHEN_FINISHED = "when_finished"
    ALWAYS = "always"
    NEVER = "never"


def open_ledger(
    directory: JobDirectory,
    owner: Owner,
    *,
    attempt: str,
    max_tries: int,
    endpoint: str,
    resuming: bool,
    began_at: str | None,
    replan: Replan,
) -> Ledger:
    """Read or begin a job's ledger and take it over for this attempt.

    :param directory: the job's
    :param owner: the task instance
    :param attempt: names this attempt; an earlier one that still runs stops at its next write
    :param max_tries: of the task instance: differs from the ledger's if a user has cleared the task
    :param endpoint: of the requests
    :param resuming: whether this goes on after a deferral, so that there has to be a ledger
    :param began_at: where an earlier attempt of the task is known to have begun the job; None if that is not known
    :param replan: when a cleared task reads its source again
    :raises LedgerError: there should be a ledger and is none, or it is not this task's
    """

    def found() -> Ledger | None:
        ledger = load_ledger(directory, owner)
        _check(directory, ledger, endpoint, begun=resuming or began_at is not None, began_at=began_at)
        return ledger

    # A claim ends the attempt before, so it is made only if all is well; and what counts is what is there after it.
    found()
    number = claim_attempt(directory, owner, attempt)
    try:
        ledger = found()
    except LedgerError:
        give_back(directory, number)
        raise
    if ledger is None:
        ledger = new_ledger(owner, max_tries, attempt, endpoint)
    elif not resuming:
        _begin_attempt(ledger, max_tries, replan)
        if ledger.planned and ledger.manifest is None:
            _say_what_goes_on(directory, ledger)
    ledger.endpoint = endpoint
    take_over(directory, ledger, attempt, number)
    return ledger


def _say_what_goes_on(directory: JobDirectory, ledger: Ledger) -> None:
    batches = [each.batch_id or "" for each in ledger.active_rounds]
    more = f" and {len(batches) - _BATCHES_SHOWN:,} more" if len(batches) > _BATCHES_SHOWN else ""
    begun = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ledger.created_at))
    log.info(
        f"Going on with the job in {directory}, begun {begun}: {ledger.rows:,} rows; batches that go on: "
        f"{', '.join(batches[:_BATCHES_SHOWN]) or 'none'}{more}."
    )


def _check(directory: JobDirectory, ledger: Ledger | None, endpoint: str, *, begun: bool, began_at: str | None) -> None:
    if ledger is None and begun:
        moved = f" It was begun at {began_at}." if began_at not in (None, str(directory)) else ""
        raise LedgerError(
            f"{directory.path(LEDGER)} is not there, but this job was begun before.{moved} Is output_path on "
            "storage that all workers share, and does it render the same each time? Nothing more was submitted; "
            "what was bought before is at the service, with this task's ids in the metadata of its batches."
        )
    if ledger is not None and ledger.planned and ledger.endpoint != endpoint:
        raise LedgerError(
            f"The job in {directory} was planned for {ledger.endpoint}, and the task says {endpoint} now. Finish it as "
            "it was, or use another output_path."
        )


def _begin_attempt(ledger: Ledger, max_tries: int, replan: Replan) -> None:
    """Let a retry or a cleared task take up an earlier attempt's job."""
    cleared = ledger.max_tries != max_tries
    if replan is Replan.NEVER and not ledger.planned:
        drop_generation(ledger)
    if ledger.manifest is not None:
        if cleared and replan is not Replan.NEVER:
            log.info("The task was cleared after it finished: planning anew, answers to unchanged rows are kept.")
            begin_generation(ledger, max_tries)
        return
    if ledger.stopping and not ledger.replanning:
        log.info("The attempt before ran out of time: buying the rest of its rows.")
    ledger.stopping, ledger.deadline, ledger.batches_only = ledger.replanning, None, None
    # A user who clears it has changed what was refused: a model's name, say.
    replans = replan is Replan.ALWAYS or (replan is Replan.WHEN_FINISHED and ledger.is_stuck)
    for shard in ledger.shards:
        shard.round.troubles = shard.idle_rounds = 0
        shard.refusal = None
    if cleared:
        ledger.max_tries = max_tries
        if replans and ledger.planned:
            log.info("The task was cleared: keeping what its batches have finished, and planning anew.")
            ledger.stopping = ledger.replanning = True
