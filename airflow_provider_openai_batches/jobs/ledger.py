"""The durable record of a job: what was planned, bought, landed and decided.

It is one JSON file, replaced as a whole before and after each step that cannot be taken back. Everything else a job
needs to go on is in the files it names.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

import msgspec

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import TERMINAL_STATUSES
from airflow_provider_openai_batches.jobs.directory import JobDirectory

log = logging.getLogger(__name__)

LEDGER = "_job/job.json"
VERSION = 1


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
    """One batch of a shard: the first sends all its rows, each later one what is worth another try."""

    number: int
    requests: int
    bytes: int
    tokens: int
    file_id: str | None = None
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
    dropped_rounds: int = 0

    @property
    def round(self) -> Round:
        """The latest round."""
        return self.rounds[-1]

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
    # Which attempt writes. A zombie finds another's name here and stops.
    attempt: str
    version: int = VERSION
    endpoint: str = ""
    generation: int = 1
    planned: bool = False
    # Names the plan's files, so that a zombie that is still planning cannot replace them.
    plan: str = ""
    rows: int = 0
    kept_rows: int = 0
    shards: list[Shard] = []
    # Numbers of shards are never used again, so that a search for a shard's batch cannot find another's.
    next_shard: int = 0
    # Unix time at which the batches are cancelled, and whether the job only lands what it bought.
    deadline: float | None = None
    stopping: bool = False
    # Whether the job is planned anew when it has stopped.
    replanning: bool = False
    estimated_cost: float | None = None
    # The plan of the generation before, and its result files.
    earlier_plan: str = ""
    earlier_results: list[str] = []
    # Whether two attempts have ever met at the claim of a create, and what that has cost.
    contested: bool = False
    twins: list[str] = []
    # Uploaded input files that no round sends any more.
    unused_files: list[str] = []
    manifest: dict[str, Any] | None = None

    @property
    def has_bought(self) -> bool:
        """Whether anything was, or may have been, paid for."""
        bought = any(each.intent_at is not None or each.batch_id for shard in self.shards for each in shard.rounds)
        return bought or self.manifest is not None or self.generation > 1

    @property
    def active_rounds(self) -> list[Round]:
        """Rounds whose batches are going on."""
        return [shard.round for shard in self.active_shards]

    @property
    def active_shards(self) -> list[Shard]:
        """Shards whose batches are going on, and can be followed."""
        return [shard for shard in self.shards if shard.round.is_active and shard.refusal is None]

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
    ledger.generation += 1
    ledger.max_tries, ledger.created_at = max_tries, time.time()
    ledger.planned = ledger.stopping = ledger.replanning = False
    ledger.plan, ledger.manifest, ledger.deadline = "", None, None


def load_ledger(directory: JobDirectory, owner: Owner) -> Ledger | None:
    """Read the ledger of a directory, if it has one.

    :raises LedgerError: it is another task instance's, of a newer version of this package, or unreadable
    """
    content = directory.read(LEDGER)
    if content is None:
        return None
    where = directory.path(LEDGER)
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
    try:
        ledger = msgspec.json.decode(content, type=Ledger)
    except msgspec.DecodeError as error:
        raise LedgerError(
            f"{where} is damaged ({error}). It tells which batches are paid for, so nothing is submitted. Restore "
            "the file, or use another output_path to start over."
        ) from error
    if ledger.owner != owner and not ledger.has_bought:
        log.info("%s holds a job of %s that has bought nothing: it is replaced.", directory, ledger.owner)
        return None
    if ledger.owner != owner:
        raise LedgerError(
            f"{directory} holds the job of {ledger.owner}, not of {owner}. One output_path holds one job: put "
            "{{ run_id }} into it, and {{ ti.map_index }} for a mapped task. ({{ ds }} is the same for two runs of one "
            "day.) If its results are not needed, delete the directory."
        )
    return ledger


def owns(directory: JobDirectory, ledger: Ledger) -> bool:
    """Whether no other attempt has taken the job over."""
    content = directory.read(LEDGER)
    return content is None or msgspec.json.decode(content, type=_Head).attempt == ledger.attempt


def save_ledger(directory: JobDirectory, ledger: Ledger) -> None:
    """Replace the ledger, unless another attempt has taken the job over.

    :raises LedgerError: it has
    """
    if not owns(directory, ledger):
        raise LedgerError(f"Another attempt has taken over {directory}; this one stops without touching anything.")
    directory.write(LEDGER, msgspec.json.encode(ledger))


def take_over(directory: JobDirectory, ledger: Ledger, attempt: str) -> None:
    """Make this attempt the only one whose writes count."""
    ledger.attempt = attempt
    directory.write(LEDGER, msgspec.json.encode(ledger))


class _Head(msgspec.Struct):
    version: int
    attempt: str
