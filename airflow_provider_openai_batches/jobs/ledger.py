"""The durable record of a job: what was planned, bought, landed and decided.

It is one JSON file, replaced as a whole before and after each step that cannot be taken back. Everything else a job
needs to go on is in the files it names.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import TERMINAL_STATUSES, Usage

VERSION = 3
"""Of the format: a reader of a lower one would drop what it does not know with its first save, and so lose rows, or buy
some again. 2: rows that are not sent (``cached_rows``, ``duplicate_rows``) and rounds without a batch (``direct``).
3: whose answers the rows' keys are for (``service``)."""


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
    # The service that the keys of what its rows ask are for; empty if an earlier version has made the plan.
    service: str = ""
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
