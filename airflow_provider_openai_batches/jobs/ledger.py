"""The durable record of a job: what was planned, bought, landed and decided.

It is one JSON file, replaced as a whole before and after each step that cannot be taken back. Everything else a job
needs to go on is in the files it names.

**Whose it is.** Two processes may believe that they run the job: a worker that was taken for dead and its retry, or two
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
import time
import uuid
from typing import Any

import msgspec

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import TERMINAL_STATUSES, Usage
from airflow_provider_openai_batches.jobs.directory import JobDirectory

log = logging.getLogger(__name__)

LEDGER = "_job/job.json"
ATTEMPTS = "_job/attempts"
VERSION = 2
"""Of the format: a reader of a lower one would drop what it does not know with its first save, and so lose rows, or buy
some again. 2: rows that are not sent (``cached_rows``, ``duplicate_rows``) and rounds without a batch (``direct``)."""


class LedgerError(OpenAIBatchesError):
    """The ledger is missing, unreadable, another job's, or in the hands of another attempt."""


class Owner(msgspec.Struct, frozen=True):
    """The task instance a job belongs to."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int = -1

    def __str__(self) -> str:
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id}.{self.task_id}{mapped} of run {self.run_id}"


class Round(msgspec.Struct):
    """One batch of a shard: the first sends all its rows, each later one what is worth another try.

    A later round may be direct instead: without a batch, see :mod:`~.direct`.
    """

    number: int
    requests: int
    bytes: int
    tokens: int
    # Rows that are worth another try, too, and did not fit.
    left_out: int = 0
    direct: bool = False
    file_id: str | None = None
    # Unix time at which the service deletes that file; None if it has not said.
    file_expires_at: float | None = None
    # Creates begun so far. Each has a token of its own, and a claim file that lets one attempt send it.
    creates: int = 0
    intent_at: float | None = None
    batch_id: str | None = None
    status: str | None = None
    # Nothing is created before this unix time: the queue was full, or the service had trouble.
    not_before: float = 0.0
    troubles: int = 0
    times_queue_full: int = 0
    times_file_missing: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    has_output: bool = False
    has_errors: bool = False
    landed: bool = False
    # Unix time at which the answers came, and whether the answer cache has them.
    landed_at: float = 0.0
    cached: bool = False

    @property
    def is_sending(self) -> bool:
        """Whether its rows are being sent without a batch."""
        return self.direct and not self.landed

    @property
    def is_active(self) -> bool:
        """Whether its batch is, as far as known, still going on."""
        return self.batch_id is not None and self.status not in TERMINAL_STATUSES

    @property
    def is_claimed(self) -> bool:
        """Whether there is, or may be after a create whose answer was lost, a batch that is going on."""
        return self.intent_at is not None and self.status not in TERMINAL_STATUSES

    def forget_batch(self) -> None:
        """Make room for another create, after one that came to nothing."""
        self.batch_id = self.status = self.intent_at = None
        self.creates += 1


class Refusal(msgspec.Struct, frozen=True):
    """Why a shard cannot go on."""

    code: str
    message: str


class Shard(msgspec.Struct):
    """A contiguous part of one model's rows, small enough for one batch."""

    index: int
    model: str
    first_index: int
    requests: int
    rounds: list[Round]
    finished: bool = False
    # Rounds in a row of one attempt that answered nothing.
    idle_rounds: int = 0
    # What this attempt cannot get past; the next one tries again.
    refusal: Refusal | None = None
    # Estimated tokens that a further round may have, once one was too large for the queue, and how many were.
    max_tokens: int | None = None
    # Number of the round that was dropped last; it is not used again.
    dropped_round: int = 0

    @property
    def round(self) -> Round:
        """The latest round."""
        return self.rounds[-1]

    @property
    def landed_rounds(self) -> list[Round]:
        """The rounds whose answers are here, as far as there are any."""
        return [each for each in self.rounds if each.landed]

    @property
    def is_between(self) -> bool:
        """Whether a further round is written, and nothing of it is sent."""
        current = self.round
        is_open = not self.finished and self.refusal is None and len(self.rounds) > 1
        return is_open and not (current.landed or current.direct or current.intent_at is not None)

    @property
    def folder(self) -> str:
        """Its folder within the job's directory."""
        return f"_job/shard-{self.index:05d}"

    def file(self, kind: str, number: int | None = None) -> str:
        """Name one of its files.

        :param kind: ``context``, or ``requests``, ``output`` or ``errors`` of a round
        :param number: the round
        """
        return f"{self.folder}/{kind}.jsonl" if number is None else f"{self.folder}/round-{number}.{kind}.jsonl"


class Ledger(msgspec.Struct):
    """A job's state. Times are unix seconds."""

    job_id: str
    owner: Owner
    # `ti.max_tries` changes when a user clears the task, and stays when Airflow retries it.
    max_tries: int
    created_at: float
    # Which attempt writes, by its name and by the number of its file.
    attempt: str
    number: int = 0
    version: int = VERSION
    endpoint: str = ""
    generation: int = 1
    planned: bool = False
    # Names the plan's files, so that a zombie that is still planning cannot replace them.
    plan: str = ""
    rows: int = 0
    # Rows that are not sent: answered by the generation before or by the answer cache, or the same as an earlier row.
    kept_rows: int = 0
    cached_rows: int = 0
    duplicate_rows: int = 0
    # Tokens in the answers of the first two kinds, by the rows' model.
    reused_usage: dict[str, Usage] = {}
    shards: list[Shard] = []
    # Numbers of shards are never used again, so that a search for a shard's batch cannot find another's.
    next_shard: int = 0
    # The generation's shards have this number or a higher one.
    first_shard: int = 0
    # Unix time at which the batches are cancelled, and whether the job only lands what it bought.
    deadline: float | None = None
    stopping: bool = False
    # Whether the job is planned anew when it has stopped.
    replanning: bool = False
    estimated_cost: float | None = None
    # Why this attempt sends no more rows without a batch.
    batches_only: str | None = None
    # The plan of the generation before and its result files; and its manifest, until there is a new plan.
    earlier_plan: str = ""
    earlier_results: list[str] = []
    earlier_manifest: dict[str, Any] | None = None
    # Whether two attempts have ever met at the claim of a create, and what that has cost.
    contested: bool = False
    twins: list[str] = []
    # Uploaded input files that no round sends any more.
    unused_files: list[str] = []
    # Since when the service may have uploaded files whose ids nobody was told; see :mod:`~.copies`.
    unsure_since: float | None = None
    manifest: dict[str, Any] | None = None

    @property
    def is_held(self) -> bool:
        """Whether another task has to keep off: there is a plan, and perhaps batches. Before that it is free."""
        return self.planned or self.generation > 1

    @property
    def answered_rows(self) -> int:
        """Rows whose answer was there when the plan was made."""
        return self.kept_rows + self.cached_rows

    @property
    def active_rounds(self) -> list[Round]:
        """Rounds whose batches are going on."""
        return [shard.round for shard in self.active_shards]

    @property
    def active_shards(self) -> list[Shard]:
        """Shards whose batches are going on, and can be followed."""
        return [shard for shard in self.shards if shard.round.is_active and shard.refusal is None]

    @property
    def is_stuck(self) -> bool:
        """Whether the service has refused all that is left, and nothing was bought for it."""
        left = [shard for shard in self.shards if not shard.finished]
        return bool(left) and all(shard.refusal is not None and shard.round.intent_at is None for shard in left)

    def token(self, shard: Shard, number: int, create: int) -> str:
        """Name one create. Whoever takes it up again after a crash derives the same."""
        return f"{self.job_id}-{shard.index}-{number}-{create}"


def new_ledger(owner: Owner, max_tries: int, attempt: str, endpoint: str) -> Ledger:
    """Begin a job."""
    job_id = uuid.uuid4().hex
    return Ledger(job_id, owner, max_tries, created_at=time.time(), attempt=attempt, endpoint=endpoint)


def begin_generation(ledger: Ledger, max_tries: int) -> None:
    """Let a finished job be planned again; answers to unchanged rows are kept.

    :param max_tries: the task instance's, as it is after the clear
    """
    ledger.earlier_plan, ledger.earlier_results = ledger.plan, (ledger.manifest or {}).get("results", [])
    # A job that is planned anew in the middle has nothing to go back to.
    ledger.earlier_manifest = None if ledger.replanning else ledger.manifest
    ledger.generation += 1
    ledger.first_shard = ledger.next_shard
    ledger.max_tries, ledger.created_at = max_tries, time.time()
    ledger.planned = ledger.stopping = ledger.replanning = False
    ledger.plan, ledger.manifest, ledger.deadline, ledger.batches_only = "", None, None, None


def drop_generation(ledger: Ledger) -> None:
    """Go back to the finished generation before, as long as the new one has no plan."""
    if ledger.earlier_manifest is None:
        return
    ledger.manifest, ledger.plan, ledger.planned = ledger.earlier_manifest, ledger.earlier_plan, True
    ledger.generation -= 1
    ledger.earlier_manifest, ledger.earlier_plan, ledger.earlier_results = None, "", []


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
