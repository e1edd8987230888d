"""Exactly one batch per purchase: https://platform.openai.com/docs/api-reference/batch/create.

The API knows no idempotency keys: a create that is repeated after a lost answer is a second, paid batch. So every
create carries a token in its metadata, and after an outcome that is not certain the batches are listed by that token
before anything is sent again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from airflow_provider_openai_batches.api.errors import CreateOutcomeUnknownError, OpenAIBatchesError
from airflow_provider_openai_batches.api.models import Batch, BatchStatus

log = logging.getLogger(__name__)

IDEMPOTENCY_KEY = "idempotency_token"
"""Metadata key that carries a create's idempotency token."""

CLOCK_SKEW_S = 300
"""How far our clock may be ahead of the service's before a scan by time could miss a batch."""

_SCAN_PAUSES_S = (2.0,)
"""Pauses before each look through the batches after a lost answer: they show a create a little later."""

_LATE_SCAN_PAUSES_S = (2.0, 5.0, 10.0, 20.0, 25.0)
"""The same after a timeout: the service may still be at work on the create, and is given a minute to finish it."""


@dataclass(frozen=True)
class Purchase:
    """What is being bought, and how a batch of it is known after the answer to its create was lost.

    :param token: in the batch's metadata, where that is kept
    :param input_file_id: the batch's input
    :param since: unix time of the first create
    :param known: batches of the same file that are none of this purchase's
    """

    token: str
    input_file_id: str | None
    since: float
    known: frozenset[str] = frozenset()

    def is_for(self, batch: Batch) -> bool:
        """Whether a batch that lost its metadata is of this purchase.

        One that failed may be of an earlier try with the same file. Taken for this one, it would hide what this one
        bought, whereas a failed one of this purchase has bought nothing.
        """
        return (
            self.input_file_id is not None
            and batch.status != BatchStatus.FAILED
            and batch.input_file_id == self.input_file_id
            and batch.id not in self.known
            and (batch.created_at is None or batch.created_at >= self.since - CLOCK_SKEW_S)
        )


@dataclass(frozen=True)
class Purchases:
    """Makes each purchase once, and finds what was bought.

    :param batches_since: iterates over the service's batches since a unix time, newest first
    :param cancel: cancels a batch by its id
    :param sleep: called with the seconds to pause
    :param keeps_metadata: whether the service does; where it does not, a batch without a token is known by its input
    """

    batches_since: Callable[[float], Iterator[Batch]]
    cancel: Callable[[str], Batch]
    sleep: Callable[[float], None]
    keeps_metadata: bool

    def make(
        self,
        purchase: Purchase,
        post: Callable[[], Batch],
        *,
        retry: Callable[[Callable[[], Batch]], Batch],
        is_repeated: bool,
    ) -> Batch:
        """Create the batch of a purchase, or find the one that a lost create has made.

        :param post: sends the create
        :param retry: calls a function until it succeeds, or for as long as its errors are worth it
        :param is_repeated: whether it would call it more than once
        :raises CreateOutcomeUnknownError: the answer was lost and listing failed too
        """
        if not self.keeps_metadata and is_repeated:
            # Batches that this file has already are none of this create's. Who tries only once is a job: it has a
            # file for this batch alone, and no time for another call between its claim and the create.
            purchase = replace(purchase, known=frozenset(each.id for each in self._of(purchase)))
        lost: OpenAIBatchesError | None = None

        def attempt() -> Batch:
            nonlocal lost
            if lost is not None:
                pauses = _LATE_SCAN_PAUSES_S if lost.status in (408, 504) or lost.timed_out else _SCAN_PAUSES_S
                if found := self._after_lost_answer(purchase, pauses):
                    return found
            try:
                batch = post()
            except OpenAIBatchesError as error:
                if error.maybe_applied:
                    lost = error
                # A refusal says nothing about the create before it.
                error.maybe_applied = lost is not None
                raise
            return batch if lost is None else self.keep_oldest(batch, purchase)

        try:
            return retry(attempt)
        except CreateOutcomeUnknownError:
            raise
        except OpenAIBatchesError as error:
            if not error.maybe_applied:
                raise
            # The last attempt's answer was lost too: one more look decides between "adopted" and "not created".
            found = self._after_lost_answer(purchase, _SCAN_PAUSES_S)
            if found:
                return found
            raise

    def find(self, purchase: Purchase) -> Batch | None:
        """Return the newest batch of a purchase that has not failed validation, else the newest failed one."""
        failed = None
        for batch in self._of(purchase):
            if batch.status != BatchStatus.FAILED:
                return batch
            failed = failed or batch
        return failed

    def keep_oldest(self, batch: Batch, purchase: Purchase) -> Batch:
        """Cancel all but the oldest batch of a purchase, and return that one.

        :param batch: the one just created; returned if the others cannot be seen
        """
        useless = (BatchStatus.FAILED, BatchStatus.CANCELLING, BatchStatus.CANCELLED)
        try:
            twins = [each for each in self._of(purchase) if each.status not in useless]
            *younger, oldest = twins if batch.id in {each.id for each in twins} else [batch, *twins]
            for twin in younger:
                log.error("Batch %s was created beside %s for the same purchase: cancelling it.", twin.id, oldest.id)
                self.cancel(twin.id)
        except OpenAIBatchesError as error:
            log.warning("Could not make sure that batch %s is the only one of its purchase: %s", batch.id, error)
            return batch
        return oldest

    def _of(self, purchase: Purchase) -> Iterator[Batch]:
        """Iterate over the batches that were made for a purchase, newest first."""
        for batch in self.batches_since(purchase.since):
            token = batch.metadata.get(IDEMPOTENCY_KEY)
            if token == purchase.token or (not self.keeps_metadata and token is None and purchase.is_for(batch)):
                yield batch

    def _after_lost_answer(self, purchase: Purchase, pauses: Sequence[float]) -> Batch | None:
        found = None
        try:
            for pause in pauses:
                self.sleep(pause)
                if found := self.find(purchase):
                    break
        except OpenAIBatchesError as error:
            by_file = "" if self.keeps_metadata else f", input_file_id={purchase.input_file_id!r}"
            raise CreateOutcomeUnknownError(
                "The answer to POST /batches was lost, and the batches could not be listed to see whether it was "
                f"created ({error}). Before creating again, look: find_batch({purchase.token!r}, "
                f"created_after={purchase.since:.0f}{by_file}).",
                transient=error.transient,
            ) from error
        if found:
            log.warning("The answer to POST /batches was lost, but batch %s had been created: using it.", found.id)
        return found
