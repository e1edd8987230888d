"""Whose a job is: which attempt's ledger counts.

Two processes may believe that they run the job: a worker that was taken for dead and its retry, or two
tasks with one path. No storage that we run on can compare and replace a file in one step, so that whoever looked a
moment ago may overwrite what another has written since. Therefore no two write the same file. Each attempt has a ledger
of its own, ``_job/attempts/00007.json``, and the highest number counts:

1. An attempt *claims* the next number: of several who try, one can create that file. Its content is no ledger yet.
2. *Then* it reads the highest ledger below, and writes its own.
3. A save writes the attempt's own file and *then* looks for a higher number. If there is none, every later attempt
   begins by reading what was saved. If there is one, this attempt is over.

So what was saved is never lost, whoever freezes where; and what a zombie writes nobody reads. ``_job/job.json`` is a
copy for people and their tools. Only if there is nothing else, it is read, as in a directory of an earlier version.
"""

from __future__ import annotations

import logging

import msgspec

from airflow_provider_openai_batches.jobs.directory import JobDirectory
from airflow_provider_openai_batches.jobs.ledger import VERSION, Ledger, LedgerError, Owner

log = logging.getLogger(__name__)

LEDGER = "_job/job.json"
ATTEMPTS = "_job/attempts"


def load_ledger(directory: JobDirectory, owner: Owner) -> Ledger | None:
    """Read the ledger of a directory, if it has one.

    :raises LedgerError: it is another task instance's, of a newer version of this package, or unreadable
    """
    ledger = _latest(directory)
    if ledger is None or ledger.owner == owner:
        return ledger
    if not ledger.is_held:
        log.info("%s holds a job of %s that failed before it had a plan: it is replaced.", directory, ledger.owner)
        return None
    raise LedgerError(
        f"{directory} holds the job of {ledger.owner}, not of {owner}. {_ONE_JOB} That job has {ledger.rows:,} rows in "
        f"its plan and {len(ledger.active_rounds):,} batches going on. If it is over and its results are not needed, "
        "delete the directory."
    )


def claim_attempt(directory: JobDirectory, owner: Owner, attempt: str) -> int:
    """Make an attempt the only one whose writes count, before it reads the ledger.

    :param attempt: its name
    :return: its number, which is higher than any there is
    """
    while True:
        number = _newest(directory) + 1
        claim = msgspec.json.encode(_Head(VERSION, attempt, owner))
        # The number may have been used and cleaned up since we looked. Then there is a higher one.
        if directory.claim(_file(number), claim) and _newest(directory) <= number:
            return number


def give_back(directory: JobDirectory, number: int) -> None:
    """Undo a claim under which nothing was written. Whoever has the job goes on."""
    directory.delete(_file(number))


def take_over(directory: JobDirectory, ledger: Ledger, attempt: str, number: int) -> None:
    """Write an attempt's first ledger.

    :param ledger: as it was read after the claim
    :raises LedgerError: another attempt has come since
    """
    ledger.attempt, ledger.number, ledger.version = attempt, number, VERSION
    save_ledger(directory, ledger)
    for lower in _numbers(directory):
        if lower < number:
            directory.delete(_file(lower))


def save_ledger(directory: JobDirectory, ledger: Ledger) -> None:
    """Replace the attempt's ledger. When this returns, every attempt to come goes on from here.

    :raises LedgerError: another attempt has the job, or another task the directory
    """
    content = msgspec.json.encode(ledger)
    directory.write(_file(ledger.number), content)
    check_owns(directory, ledger)
    directory.write(LEDGER, content)


def owns(directory: JobDirectory, ledger: Ledger) -> bool:
    """Whether no other attempt has taken the job over."""
    return _newest(directory) <= ledger.number


def check_owns(directory: JobDirectory, ledger: Ledger) -> None:
    """Make sure that no other attempt has taken the job over.

    :raises LedgerError: one has, and which
    """
    newest = _newest(directory)
    if newest <= ledger.number:
        return
    content = directory.read(_file(newest))
    head = _head(content, directory.path(_file(newest))) if content else None
    if head is not None and head.owner is not None and head.owner != ledger.owner:
        raise LedgerError(f"{head.owner} has taken over {directory}, which {ledger.owner} was using. {_ONE_JOB}")
    name = "" if head is None else f" ({head.attempt})"
    raise LedgerError(
        f"Another attempt of this task{name} has taken over {directory}. This one ({ledger.attempt}) stops."
    )


class _Head(msgspec.Struct, omit_defaults=True):
    """What can be told of a ledger of any version, and of a claim, which has no job."""

    version: int
    attempt: str
    owner: Owner | None = None
    job_id: str | None = None


_ONE_JOB = (
    "One output_path holds one job: put {{ run_id }} into it, the task's name if a run has several, and "
    "{{ ti.map_index }} for a mapped task. ({{ ds }} is the same for two runs of one day.)"
)


def _latest(directory: JobDirectory) -> Ledger | None:
    """Read the ledger that counts."""
    while True:
        for number in _numbers(directory):
            content = directory.read(_file(number))
            if content is None:
                break  # Cleaned up, since there is a later one by now.
            where = directory.path(_file(number))
            # A claim is empty if a file system without links lost its maker at once.
            if content and _head(content, where).job_id is not None:
                return _decoded(content, where)
        else:
            content = directory.read(LEDGER)
            where = directory.path(LEDGER)
            if content is None:
                return None
            _head(content, where)
            return _decoded(content, where)


def _head(content: bytes, where: str) -> _Head:
    try:
        head = msgspec.json.decode(content, type=_Head)
    except msgspec.DecodeError as error:
        raise LedgerError(
            f"{where} is not readable as a ledger ({error}). It tells which batches are paid for, so nothing is "
            "submitted. Restore the file, or use another output_path to start over."
        ) from error
    if head.version > VERSION:
        raise LedgerError(
            f"{where} was written by a newer version of this provider (format {head.version}, this one knows "
            f"{VERSION}). Update this worker."
        )
    return head


def _decoded(content: bytes, where: str) -> Ledger:
    try:
        return msgspec.json.decode(content, type=Ledger)
    except msgspec.DecodeError as error:
        raise LedgerError(
            f"{where} is damaged ({error}). It tells which batches are paid for, so nothing is submitted. Restore "
            "the file, or use another output_path to start over."
        ) from error


def _file(number: int) -> str:
    return f"{ATTEMPTS}/{number:05d}.json"


def _numbers(directory: JobDirectory) -> list[int]:
    """List the numbers of attempts, highest first."""
    stems = (name.removesuffix(".json") for name in directory.names(ATTEMPTS) if name.endswith(".json"))
    return sorted((int(stem) for stem in stems if stem.isdecimal()), reverse=True)


def _newest(directory: JobDirectory) -> int:
    return max(_numbers(directory), default=0)
