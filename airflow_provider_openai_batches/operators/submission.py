"""One purchase per task: find the batch an earlier attempt made, or create it."""

from __future__ import annotations

import filecmp
import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_openai_batches.api.errors import (
    BatchUnfinishedError,
    InvalidInputError,
    NotFoundError,
    OpenAIBatchesError,
)
from airflow_provider_openai_batches.api.inputs import MAX_METADATA_VALUE_CHARS, check_metadata
from airflow_provider_openai_batches.api.models import Batch, BatchStatus
from airflow_provider_openai_batches.api.retry import UNKNOWN_BATCH_GRACE_S
from airflow_provider_openai_batches.compat import task_state_store

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_openai_batches.api.client import BatchClient

log = logging.getLogger(__name__)

STORE_KEY = "openai_batch"
MAX_TRIES_KEY = "airflow_max_tries"
_LONGEST_SCAN_S = 30 * 86_400
"""Results are deleted after 30 days, so an older batch is of no use to anybody."""


class Verdict(Enum):
    """What becomes of a batch that an earlier attempt made."""

    ADOPT = auto()
    CREATE_ANEW = auto()
    REFUSE = auto()
    WAIT = auto()


def judge(batch: Batch, *, cleared: bool) -> Verdict:
    """Decide whether an attempt goes on with the batch of an earlier one.

    :param batch: the earlier attempt's batch
    :param cleared: whether a user cleared the task since, rather than Airflow retrying it
    """
    if not batch.is_terminal:
        if batch.status != BatchStatus.CANCELLING:
            return Verdict.ADOPT
        # What it will have finished is not known yet.
        return Verdict.CREATE_ANEW if cleared else Verdict.WAIT
    # Of one that completed, what it bought may be named a little later.
    if cleared or not (batch.bought_answers or batch.files_pending):
        return Verdict.CREATE_ANEW
    return Verdict.ADOPT if batch.status == BatchStatus.COMPLETED else Verdict.REFUSE


class Purchase(NamedTuple):
    """A batch, when it was bought, in unix seconds, and whether this attempt bought it.

    The time is by our clock, or by the service's where nobody noted it.
    """

    batch: Batch
    bought_at: float
    is_new: bool


def find_or_create(
    client: BatchClient,
    context: Context,
    *,
    input_file_id: str,
    endpoint: str,
    completion_window: str,
    metadata: Mapping[str, str] | None,
    output_expires_after: int | Mapping[str, Any] | None,
    known: Callable[[Batch], None],
) -> Purchase:
    """Return the batch of this task instance, created now or by an earlier attempt.

    :param client: of the connection
    :param context: Airflow's, for the identity of the task instance and its store
    :param known: called with the task's batch as soon as there is one, also where this then fails
    :raises AirflowFailException: an earlier batch is over with finished requests that a new one would buy again
    """
    task = _TaskIdentity.of(context)
    pairs = check_metadata(metadata, reserved=len(task.metadata()) + 1)
    for key in pairs:
        if key == "idempotency_token" or key.startswith("airflow_"):
            raise InvalidInputError("metadata", f"{key!r} is the provider's own key, by which it finds its batches.")
    pairs |= task.metadata()
    purchases = _Purchases(client, context, task, input_file_id, endpoint)
    earlier = purchases.earlier()
    if earlier is not None:
        verdict = judge(earlier.batch, cleared=earlier.cleared)
        batch = earlier.batch
        if verdict is not Verdict.CREATE_ANEW:
            known(batch)
        if verdict is Verdict.ADOPT:
            log.info("Going on with batch %s of an earlier attempt (%s).", batch.id, batch.status)
            return Purchase(batch, purchases.settle(batch), is_new=False)
        if verdict is Verdict.REFUSE:
            raise AirflowFailException(
                f"{BatchUnfinishedError(batch)} A retry would buy them again, so it is refused. "
                "Clear the task to submit the whole file once more, or use OpenAIBatchOperator: it buys only the rest."
            )
        if verdict is Verdict.WAIT:
            raise OpenAIBatchesError(
                f"Batch {batch.id} of an earlier attempt is still being cancelled, for up to ten minutes. "
                "Only then is it known what it finished; a later retry decides.",
                transient=True,
            )
        log.info("Batch %s of an earlier attempt is %s: creating another.", batch.id, batch.status)
    client.wait_for_file(input_file_id)
    token = purchases.intend(anew=earlier is not None)
    try:
        batch = client.create_batch(
            input_file_id,
            endpoint,
            completion_window=completion_window,
            metadata=pairs,
            output_expires_after=output_expires_after,
            idempotency_token=token,
        )
    except OpenAIBatchesError as error:
        if not error.maybe_applied:
            purchases.refused()
        raise
    batch = purchases.without_twins(batch)
    log.info("Created batch %s for file %s (%s).", batch.id, input_file_id, endpoint)
    bought_at = purchases.settle(batch)
    known(batch)
    return Purchase(batch, bought_at, is_new=True)


class _Earlier(NamedTuple):
    """A batch of an earlier attempt, and whether a user cleared the task since that attempt."""

    batch: Batch
    cleared: bool


class _Purchases:
    """What this task instance bought so far for one input: as Airflow's store has it, else as the batches tell.

    A clear shows in ``max_tries``, which a retry leaves alone. The store keeps its value of the attempt that bought or
    last took over the batch; the metadata of a batch keeps that of the attempt that made it.
    """

    def __init__(
        self, client: BatchClient, context: Context, task: _TaskIdentity, input_file_id: str, endpoint: str
    ) -> None:
        self._client = client
        self._store = task_state_store(context)
        self._task = task
        self._input = {"input_file_id": input_file_id, "endpoint": endpoint}
        self._run_after = context["dag_run"].run_after
        self._intent: dict[str, Any] = {}
        self._is_repeated = False
        self._bought_at: float | None = None

    def earlier(self) -> _Earlier | None:
        """Return the batch an earlier attempt made or took over for this input, if there is one."""
        if self._task.try_number <= 1:
            return None
        if self._store is None:
            return self._among_batches()
        record = self._store.get(STORE_KEY)
        if not record:
            # The store is written before anything is bought, so an empty one means that nothing was.
            return None
        cleared = record[MAX_TRIES_KEY] != self._task.max_tries
        batch = self._recorded_batch(record, cleared=cleared)
        if not self._input.items() <= record.items() and not self._is_for_same_content(record, batch):
            return None
        if batch is not None or "batch_id" not in record:
            self._intent = {name: record[name] for name in ("token", "intent_at") if name in record}
            self._bought_at = record.get("bought_at") or record.get("sent_at")
        return None if batch is None else _Earlier(batch, cleared)

    def intend(self, *, anew: bool) -> str:
        """Note what is about to be bought, and return the token that tells later whether it was.

        :param anew: whether it is beside a batch that is known. An intent that led to nothing so far is kept: what it
            bought may still turn up
        """
        now = time.time()
        self._is_repeated = not anew and bool(self._intent)
        if not self._is_repeated:
            self._intent = {"token": uuid.uuid4().hex, "intent_at": now}
        self._bought_at = now
        self._write(**self._intent, sent_at=now)
        token: str = self._intent["token"]
        return token

    def refused(self) -> None:
        """Note that the last create was refused, so that a retry need not wait for what may come of it."""
        self._write(**self._intent)

    def without_twins(self, batch: Batch) -> Batch:
        """Return the batch just created, or an older one that an earlier intent led to after all."""
        if not self._is_repeated:
            return batch
        return self._client.keep_oldest(batch, self._intent["token"], created_after=self._intent["intent_at"])

    def settle(self, batch: Batch) -> float:
        """Note whose batch it is now, and by what it is found if not by its id; return when it was bought."""
        bought_at = self._bought_at or batch.created_at or time.time()
        self._write(**self._intent, batch_id=batch.id, bought_at=bought_at)
        return bought_at

    def _write(self, **progress: Any) -> None:
        if self._store is not None:
            self._store.set(STORE_KEY, {**self._input, MAX_TRIES_KEY: self._task.max_tries, **progress})

    def _is_for_same_content(self, record: Mapping[str, Any], batch: Batch | None) -> bool:
        """Whether the unfinished batch of another input file serves this one as well; if not, it is cancelled."""
        if batch is None or batch.is_terminal or batch.status == BatchStatus.CANCELLING:
            return False
        earlier_id, file_id = record["input_file_id"], self._input["input_file_id"]
        if record["endpoint"] == self._input["endpoint"] and self._are_equal(earlier_id, file_id):
            log.info("File %s is a copy of %s, whose batch %s goes on.", file_id, earlier_id, batch.id)
            return True
        self._cancel_superseded(batch)
        return False

    def _are_equal(self, *file_ids: str) -> bool:
        try:
            one, other = map(self._client.retrieve_file, file_ids)
        except NotFoundError:
            return False
        if (one.bytes, one.filename) != (other.bytes, other.filename):
            return False
        # A corrected row often has the size of the wrong one.
        with tempfile.TemporaryDirectory(prefix="openai-batches-") as directory:
            one_copy, other_copy = Path(directory, "one"), Path(directory, "other")
            try:
                self._client.download_file(one.id, one_copy)
                self._client.download_file(other.id, other_copy)
            except OpenAIBatchesError as error:
                log.warning("Input files %s could not be compared: %s", " and ".join(file_ids), error)
                return False
            return filecmp.cmp(one_copy, other_copy, shallow=False)

    def _cancel_superseded(self, batch: Batch) -> None:
        cancelled = self._client.cancel_batch(batch.id)
        log.warning(
            "Batch %s was going on for input file %s, but this attempt is for %s: it is %s now, and what it finished "
            "is billed.",
            batch.id,
            batch.input_file_id,
            self._input["input_file_id"],
            cancelled.status,
        )

    def _recorded_batch(self, record: Mapping[str, Any], *, cleared: bool) -> Batch | None:
        batch_id = record.get("batch_id")
        if batch_id is None:
            batch = self._search(record)
            # The service may be at work on it for as long as a client would wait, and lists it a little later.
            if batch is None and time.time() - record.get("sent_at", 0) < 2 * self._client.settings.timeout_s:
                raise OpenAIBatchesError(
                    "The create of an earlier attempt may still be under way; a later retry decides.", transient=True
                )
            return batch
        try:
            return self._client.retrieve_batch(batch_id)
        except NotFoundError as error:
            # Batches cannot be deleted: reads lag behind, or the connection is not the one that bought it.
            batch = self._search(record)
            if batch is not None:
                return batch
            if time.time() - record.get("intent_at", 0) < UNKNOWN_BATCH_GRACE_S:
                raise OpenAIBatchesError(
                    f"Batch {batch_id} of an earlier attempt cannot be seen yet. A later retry looks again.",
                    transient=True,
                ) from error
            if not cleared:
                raise AirflowFailException(
                    f"Batch {batch_id} of an earlier attempt was bought, but cannot be found ({error}). Check the "
                    "connection's project and host. Clear the task to buy the whole file again."
                ) from error
            log.warning("Batch %s of an earlier attempt cannot be found. The task was cleared.", batch_id)
            return None

    def _search(self, record: Mapping[str, Any]) -> Batch | None:
        if "token" not in record:
            return None
        return self._confirmed(
            self._client.find_batch(
                record["token"], created_after=record["intent_at"], input_file_id=record["input_file_id"]
            )
        )

    def _confirmed(self, batch: Batch | None) -> Batch | None:
        """Look again at a batch that seems to have bought nothing: listings lag behind, and leave things out."""
        if batch is None or not batch.is_terminal or batch.bought_answers:
            return batch
        return self._client.retrieve_batch(batch.id)

    def _among_batches(self) -> _Earlier | None:
        made = list[Batch]()
        by_file = not self._client.settings.dialect.keeps_metadata
        for batch in self._client.batches_since(self._earliest_create()):
            # Azure tells no endpoint.
            is_for_input = batch.input_file_id == self._input["input_file_id"] and batch.endpoint in (
                None,
                self._input["endpoint"],
            )
            if not self._task.made(batch) and not (by_file and is_for_input and _is_nameless(batch)):
                continue
            if is_for_input:
                made.append(batch)
            elif not batch.is_terminal and batch.status != BatchStatus.CANCELLING:
                # Going on with it could not be noted for the next attempt.
                self._cancel_superseded(batch)
        since_clear = [batch for batch in made if batch.metadata.get(MAX_TRIES_KEY) == self._task.max_tries]
        # Newest first; one that failed validation hides none that was paid for.
        newest = since_clear or made
        found = self._confirmed(
            next((batch for batch in newest if batch.status != BatchStatus.FAILED), next(iter(newest), None))
        )
        if found is None:
            return None
        # An attempt after the clear may have taken the batch over, so only the first one knows what was cleared.
        return _Earlier(found, cleared=not since_clear and self._task.is_first_after_clear)

    def _earliest_create(self) -> float:
        now = time.time()
        oldest_useful = now - _LONGEST_SCAN_S
        return oldest_useful if self._run_after is None else min(max(self._run_after.timestamp(), oldest_useful), now)


def _is_nameless(batch: Batch) -> bool:
    """Whether the service has lost which task made a batch: there, one input file is one purchase."""
    return not any(key.startswith("airflow_") for key in batch.metadata)


class _TaskIdentity(NamedTuple):
    """Which task instance this is, as it stands in the metadata of its batches."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: str
    max_tries: str
    try_number: int
    is_first_after_clear: bool

    @classmethod
    def of(cls, context: Context) -> _TaskIdentity:
        ti = context["ti"]
        return cls(
            dag_id=ti.dag_id[:MAX_METADATA_VALUE_CHARS],
            task_id=ti.task_id[:MAX_METADATA_VALUE_CHARS],
            run_id=ti.run_id[:MAX_METADATA_VALUE_CHARS],
            map_index=str(ti.map_index),
            max_tries=str(ti.max_tries),
            try_number=ti.try_number,
            # A clear grants the task's retries anew, counted from the attempt it cleared.
            is_first_after_clear=ti.try_number == ti.max_tries - (context["task"].retries or 0) + 1,
        )

    def metadata(self) -> dict[str, str]:
        return self._place() | {MAX_TRIES_KEY: self.max_tries}

    def made(self, batch: Batch) -> bool:
        return self._place().items() <= batch.metadata.items()

    def _place(self) -> dict[str, str]:
        return {
            "airflow_dag_id": self.dag_id,
            "airflow_task_id": self.task_id,
            "airflow_run_id": self.run_id,
            "airflow_map_index": self.map_index,
        }
