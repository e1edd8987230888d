"""Wait for a batch in a task of its own."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_openai_batches.api.errors import (
    BatchFailedError,
    NoRequestSucceededError,
    NotFoundError,
    OpenAIBatchesError,
)
from airflow_provider_openai_batches.api.inputs import check_id
from airflow_provider_openai_batches.api.models import TERMINAL_STATUSES, Batch, BatchStatus
from airflow_provider_openai_batches.api.progress import Progress
from airflow_provider_openai_batches.hooks.openai_batches import DEFAULT_CONN_ID, OpenAIBatchesHook
from airflow_provider_openai_batches.links import OpenAIBatchesPageLink, OpenAIBatchLink
from airflow_provider_openai_batches.operators import parameters

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_openai_batches.api.retry import Patience


class OpenAIBatchSensor(BaseSensorOperator):
    """Waits until a batch has reached one of the target statuses; returns the batch as a dict.

    The sensor only watches: it never cancels the batch, whatever happens to the task.

    :param batch_id: the batch (templated)
    :param target_statuses: statuses to wait for. Default: every terminal one, since an expired or cancelled batch has
        finished answers too; but a completed one whose requests all failed then fails the task, without a retry. Give
        ``completed`` to let it pass, so that its error file can be downloaded. A status that was passed between two
        looks counts
    :param failed_statuses: statuses that fail the task at once, without a retry. Default: ``failed``, which is a batch
        that was refused at validation, unless it is given as a target. A batch that ends in neither fails the task too
    :param conn_id: Airflow connection (templated)
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``
    :param poll_interval: seconds between looks
    :param timeout: seconds to wait in all; default: ``[sensors] default_timeout``, a week
    """

    template_fields: Sequence[str] = ("batch_id", "conn_id")
    operator_extra_links = (OpenAIBatchLink(), OpenAIBatchesPageLink())
    ui_color = "#d9f2ea"

    def __init__(
        self,
        *,
        batch_id: str,
        target_statuses: Collection[str] | None = None,
        failed_statuses: Collection[str] | None = None,
        conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = 60,
        timeout: float | timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        # Before Airflow 3.2 a sensor takes no None for "the default". 0 is one look, as with any sensor.
        wait = {} if timeout is None else {"timeout": timeout and parameters.seconds(timeout, "timeout")}
        poll_interval = parameters.seconds(poll_interval, "poll_interval")
        super().__init__(**{"poke_interval": poll_interval, **wait, **kwargs})
        self.batch_id = batch_id
        if failed_statuses is None:
            is_target = parameters.is_list(target_statuses) and BatchStatus.FAILED in target_statuses
            failed_statuses = () if is_target else (BatchStatus.FAILED,)
        self.takes_any_end = target_statuses is None
        self.target_statuses = sorted(TERMINAL_STATUSES) if target_statuses is None else target_statuses
        self.failed_statuses = failed_statuses
        self.conn_id = conn_id
        self.deferrable = parameters.flag(deferrable, "deferrable")
        self._was_seen = False

    @cached_property
    def hook(self) -> OpenAIBatchesHook:
        """The hook of this sensor's connection."""
        return OpenAIBatchesHook(self.conn_id)

    @cached_property
    def _progress(self) -> Progress:
        return Progress()

    @cached_property
    def _patience(self) -> Patience:
        from airflow_provider_openai_batches.api.retry import Patience  # Parsing a DAG file needs no tenacity.

        return Patience()

    def execute(self, context: Context) -> Any:
        """Poke until the batch is there, or defer after the first look."""
        self._check_statuses()
        self.batch_id = check_id(self.batch_id, "batch_id")
        # Deferrable or not, so that soft_fail and never_fail hold for the first look too.
        return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the batch once, and defer if that was too early."""
        batch = self._look()
        if batch is not None and self._is_done(batch):
            return PokeReturnValue(is_done=True, xcom_value=batch.to_dict())
        if self.deferrable:
            # Parsing a DAG file imports this module, and needs neither the trigger nor HTTP.
            from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger

            self.defer(
                trigger=OpenAIBatchTrigger(
                    conn_id=self.conn_id,
                    batch_ids=[self.batch_id],
                    poll_interval=self.poke_interval,
                    deadline=time.time() + self.timeout,
                    # Plain texts: Airflow cannot store an enum's members in a trigger's arguments.
                    target_statuses=[str(status) for status in (*self.target_statuses, *self.failed_statuses)],
                ),
                method_name="execute_complete",
            )
        if batch is not None and (line := self._progress.line(batch)):
            self.log.info(line)
        return PokeReturnValue(is_done=False)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Judge what the trigger saw."""
        if event["status"] == "error":
            # An AirflowException, so that Airflow applies soft_fail and never_fail.
            raise AirflowException(event["message"])
        [(batch_id, seen)] = event["batches"].items()
        batch = self._last_look(batch_id) if event["status"] == "timeout" else Batch.from_dict(seen)
        if not self._is_done(batch):
            raise self._too_late(batch_id)
        return batch.to_dict()

    def _last_look(self, batch_id: str) -> Batch:
        """Return the batch after the deadline: it may have got there after the trigger's last look, or in an outage."""
        try:
            return self.hook.retrieve_batch(batch_id)
        except OpenAIBatchesError as error:
            raise self._too_late(batch_id) from error

    def _too_late(self, batch_id: str) -> AirflowSensorTimeout:
        return AirflowSensorTimeout(f"Batch {batch_id} did not get there within {self.timeout:,.0f} seconds.")

    def _look(self) -> Batch | None:
        """Return the batch, or None while it cannot be seen: the next look may succeed.

        A wrong key fails the first look. One that was right before gets the same patience as in the triggerer, and so
        does a batch that is not found: reads may lag behind its create.
        """
        if self._patience.outage_since is not None:
            self.hook.read_again()  # The key may have been changed since.
        try:
            batch = self.hook.retrieve_batch(self.batch_id)
        except OpenAIBatchesError as error:
            outlasts = self._patience.outlasts(error, time.monotonic())
            # Each look of `reschedule` is in a process of its own, which would never lose patience.
            may_be_new = isinstance(error, NotFoundError) and not self.reschedule
            if not error.transient and not ((self._was_seen or may_be_new) and outlasts):
                raise
            self.log.warning("Could not look at batch %s, trying again: %s", self.batch_id, error)
            return None
        self._was_seen = True
        self._patience.recovered()
        return batch

    def _is_done(self, batch: Batch) -> bool:
        if batch.status in self.failed_statuses:
            if batch.status == BatchStatus.FAILED:
                raise AirflowFailException(str(BatchFailedError(batch)))
            raise AirflowFailException(f"Batch {batch.id} is {batch.status}, one of failed_statuses.")
        if any(batch.has_been(status) for status in self.target_statuses):
            if batch.is_terminal and batch.none_succeeded:
                if self.takes_any_end and batch.status == BatchStatus.COMPLETED and batch.request_counts.failed:
                    raise AirflowFailException(str(NoRequestSucceededError(batch)))
                self.log.warning("Batch %s is %s, but not one of its requests succeeded.", batch.id, batch.status)
            return True
        if batch.is_terminal:
            wanted = ", ".join(self.target_statuses)
            raise AirflowFailException(f"Batch {batch.id} is {batch.status} and can no longer become {wanted}.")
        return False

    def _check_statuses(self) -> None:
        for name in ("target_statuses", "failed_statuses"):
            statuses = getattr(self, name)
            is_list = parameters.is_list(statuses)
            unknown = [each for each in statuses if each not in list(BatchStatus)] if is_list else [statuses]
            if unknown:
                known = ", ".join(BatchStatus)
                raise AirflowFailException(f"{name} takes a list of these: {known}; it has {unknown}.")
        if not self.target_statuses:
            raise AirflowFailException("target_statuses is empty: there is nothing to wait for.")
