"""A whole job in one task (:class:`OpenAIBatchOperator`), or the steps of a batch in a task each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath, conf

from airflow_provider_openai_batches.api.errors import (
    BatchEndedError,
    BatchUnfinishedError,
    OpenAIBatchesError,
    WaitTimeoutError,
    raise_for_outcome,
)
from airflow_provider_openai_batches.api.inputs import check_completion_window, check_endpoint, check_id
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.compat import has_ended
from airflow_provider_openai_batches.links import OpenAIBatchesPageLink, OpenAIBatchLink
from airflow_provider_openai_batches.operators.base import OpenAIBatchesOperator
from airflow_provider_openai_batches.operators.cleanup import OpenAIBatchCleanupOperator
from airflow_provider_openai_batches.operators.download import OpenAIBatchDownloadOperator
from airflow_provider_openai_batches.operators.job import OpenAIBatchOperator
from airflow_provider_openai_batches.operators.parameters import flag, seconds
from airflow_provider_openai_batches.operators.submission import find_or_create

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger

__all__ = [
    "OpenAIBatchCancelOperator",
    "OpenAIBatchCleanupOperator",
    "OpenAIBatchDownloadOperator",
    "OpenAIBatchOperator",
    "OpenAIBatchSubmitOperator",
    "OpenAIBatchUploadOperator",
]


_CANCELLED_WITHIN_S = 3600.0
"""OpenAI promises ten minutes. A batch that hangs there must not hold a task for ever."""

_FILES_EVERY_S = 5.0


class OpenAIBatchUploadOperator(OpenAIBatchesOperator):
    """Uploads a file of requests; returns the file id, also pushed as ``file_id``.

    Every line is checked first: an error names line, field and remedy, and nothing is sent.

    :param source: path or URI of a JSONL file of requests (templated), e.g. ``s3://aws_default@bucket/in.jsonl``
    :param filename: name shown by the service (templated); default: the source's own
    :param expires_after: seconds (3,600 to 2,592,000) until the service deletes it; default: 30 days
    :param conn_id: Airflow connection (templated)
    """

    template_fields: Sequence[str] = ("source", "filename", "conn_id")

    def __init__(
        self,
        *,
        source: str | ObjectStoragePath,
        filename: str | None = None,
        expires_after: int | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.filename = filename
        self.expires_after = expires_after

    def execute(self, context: Context) -> str:
        """Check and upload."""
        file = self.hook.upload_file(self.source, filename=self.filename, expires_after=self.expires_after)
        context["ti"].xcom_push(key="file_id", value=file.id)
        return file.id

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Tell OpenLineage what was read."""
        from airflow_provider_openai_batches.lineage import lineage

        return lineage(read=[str(self.source)])


class OpenAIBatchSubmitOperator(OpenAIBatchesOperator):
    """Creates a batch for an uploaded file; returns the batch id, also pushed as ``batch_id``.

    A retry finds the batch of the attempt before and goes on with it. It creates another one only if nothing was
    bought: the first failed validation, or ended without one finished request. If requests were finished and the
    batch is over, a retry is refused, since it would buy them again; clearing the task submits the whole file anew.
    ``OpenAIBatchOperator`` buys just the missing rows.

    :param input_file_id: id of the uploaded file (templated)
    :param endpoint: path that all its requests are for (templated)
    :param completion_window: ``24h`` is all OpenAI takes (templated)
    :param metadata: up to 10 pairs of texts (templated); DAG, task and run are added
    :param output_expires_after: seconds until the result files are deleted; default: 30 days
    :param wait_for_completion: wait until the batch is over, and fail unless it completed with answers
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``
    :param poll_interval: seconds between looks
    :param timeout: seconds after the submission at which the batch is cancelled and the task fails; default: never
    :param cancel_on_kill: cancel the batch when a user ends the task (not when its worker goes away or it is cleared:
        the next attempt goes on with the batch); while it is deferred, this needs Airflow 3.3
    :param conn_id: Airflow connection (templated)
    """

    template_fields: Sequence[str] = ("input_file_id", "endpoint", "completion_window", "metadata", "conn_id")
    operator_extra_links = (OpenAIBatchLink(), OpenAIBatchesPageLink())

    def __init__(
        self,
        *,
        input_file_id: str,
        endpoint: str,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        output_expires_after: int | Mapping[str, Any] | None = None,
        wait_for_completion: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = 60,
        timeout: float | timedelta | None = None,
        cancel_on_kill: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.input_file_id = input_file_id
        self.endpoint = endpoint
        self.completion_window = completion_window
        self.metadata = metadata
        self.output_expires_after = output_expires_after
        self.wait_for_completion = flag(wait_for_completion, "wait_for_completion")
        self.deferrable = flag(deferrable, "deferrable")
        self.poll_interval = seconds(poll_interval, "poll_interval")
        self.timeout = None if timeout is None else seconds(timeout, "timeout")
        self.cancel_on_kill = flag(cancel_on_kill, "cancel_on_kill")
        self.batch_id: str | None = None
        self._ti: Any = None
        self._killed = False
        self._pausing = False

    def execute(self, context: Context) -> str:
        """Find or create the batch; wait if asked to."""
        self._ti = context["ti"]
        batch, bought_at, is_new = find_or_create(
            self.hook.get_conn(),
            context,
            input_file_id=check_id(self.input_file_id, "input_file_id"),
            endpoint=check_endpoint(self.endpoint),
            completion_window=check_completion_window(self.completion_window),
            metadata=self.metadata,
            output_expires_after=self.output_expires_after,
            known=self._show,
        )
        if is_new:
            self.meter(batch.endpoint).created(1, batch.model)
        self._stop_if_killed()
        if not self.wait_for_completion:
            return batch.id
        if batch.is_terminal:
            return self._finished(batch)
        deadline = None if self.timeout is None else bought_at + self.timeout
        if self.deferrable:
            self.defer(
                trigger=_trigger(
                    conn_id=self.conn_id,
                    batch_ids=[batch.id],
                    poll_interval=self.poll_interval,
                    deadline=deadline,
                    cancel_on_kill=self.cancel_on_kill,
                ),
                method_name="execute_complete",
            )
        left = None if deadline is None else max(deadline - time.time(), 0)
        try:
            batch = self.hook.wait_for_batch(
                batch.id, poll_interval=self.poll_interval, timeout=left, sleep=self._pause
            )
        except WaitTimeoutError:
            return self._stopped(batch.id)
        return self._judged(batch)

    def _show(self, batch: Batch) -> None:
        # Airflow has dropped what the attempt before pushed. A batch that fails this one may have answers to download.
        self.batch_id = batch.id
        self._ti.xcom_push(key="batch_id", value=batch.id)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> str:
        """Go on after the deferral."""
        batch_id, batch = _batch_of(event)
        self._ti = context.get("ti")
        self.batch_id = batch_id
        if event["status"] == "error":
            raise OpenAIBatchesError(f"Batch {batch_id} goes on, but it cannot be followed: {event['message']}")
        if event["status"] == "timeout" or batch is None:
            return self._stopped(batch_id)
        return self._finished(batch)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Tell OpenLineage which batch runs for this task."""
        from airflow_provider_openai_batches.lineage import lineage

        return lineage(batch_ids=[self.batch_id] if self.batch_id else [])

    def on_kill(self) -> None:
        """Cancel the batch if the task is over. If it has another attempt, that goes on with the batch.

        Airflow calls this in a signal's handler, and the task then goes on where it was. A pause ends here and now;
        whatever else is under way, such as a create, is first finished.
        """
        self._killed = True
        if self._pausing:
            self._stop_if_killed()
        self._cancel_if_ended()

    def _stop_if_killed(self) -> None:
        if self._killed:
            self._cancel_if_ended()
            raise OpenAIBatchesError("The task was stopped from outside. Its next attempt goes on with the batch.")

    def _cancel_if_ended(self) -> None:
        if self.cancel_on_kill and self.batch_id is not None and has_ended(self._ti):
            batch = self.hook.cancel_batch(self.batch_id)
            self.log.info("The task was ended: batch %s is %s.", self.batch_id, batch.status)

    def _pause(self, seconds: float) -> None:
        self._pausing = True
        try:
            self._stop_if_killed()
            time.sleep(seconds)
        finally:
            self._pausing = False

    def _finished(self, batch: Batch) -> str:
        if batch.files_pending and not batch.bought_answers:
            # The service counts nothing: only the files tell what was answered, and they may be named a little later.
            batch = self.hook.wait_for_batch(batch.id, poll_interval=_FILES_EVERY_S, sleep=self._pause)
        return self._judged(batch)

    def _judged(self, batch: Batch) -> str:
        try:
            raise_for_outcome(batch)
        except BatchEndedError as error:
            # One with answers is counted when they are downloaded.
            self.meter(batch.endpoint).ended(batch, batch.model)
            if isinstance(error, BatchUnfinishedError) and batch.bought_answers:
                raise AirflowFailException(str(error)) from error
            raise
        return batch.id

    def _stopped(self, batch_id: str) -> str:
        """Cancel a batch whose time is over, and fail; one that was over before keeps its outcome."""
        batch = self.hook.cancel_batch(batch_id)
        if batch.is_terminal:
            return self._finished(batch)
        # The DAG may have changed while the task was deferred.
        late = "in time" if self.timeout is None else f"{self.timeout:,.0f} seconds after its submission"
        raise WaitTimeoutError(
            f"Batch {batch_id} was not over {late} and is {batch.status} now, with "
            f"{batch.request_counts.completed:,} of {batch.request_counts.total:,} requests answered."
        )


class OpenAIBatchCancelOperator(OpenAIBatchesOperator):
    """Cancels a batch; returns it as a dict. A batch that is over already is fine.

    :param batch_id: the batch (templated)
    :param wait_for_cancellation: wait until it is over, so that its finished answers can be fetched; the service takes
        up to ten minutes, and after an hour the task fails
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``
    :param poll_interval: seconds between looks
    :param conn_id: Airflow connection (templated)
    """

    template_fields: Sequence[str] = ("batch_id", "conn_id")
    operator_extra_links = (OpenAIBatchLink(), OpenAIBatchesPageLink())

    def __init__(
        self,
        *,
        batch_id: str,
        wait_for_cancellation: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = 15,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch_id = batch_id
        self.wait_for_cancellation = flag(wait_for_cancellation, "wait_for_cancellation")
        self.deferrable = flag(deferrable, "deferrable")
        self.poll_interval = seconds(poll_interval, "poll_interval")

    def execute(self, context: Context) -> dict[str, Any]:
        """Cancel; wait if asked to."""
        self.batch_id = check_id(self.batch_id, "batch_id")
        context["ti"].xcom_push(key="batch_id", value=self.batch_id)
        batch = self.hook.cancel_batch(self.batch_id)
        self.log.info("Batch %s is %s.", batch.id, batch.status)
        if self.wait_for_cancellation and not batch.is_terminal:
            if self.deferrable:
                self.defer(
                    trigger=_trigger(
                        conn_id=self.conn_id,
                        batch_ids=[batch.id],
                        poll_interval=self.poll_interval,
                        deadline=time.time() + _CANCELLED_WITHIN_S,
                    ),
                    method_name="execute_complete",
                )
            batch = self.hook.wait_for_batch(batch.id, poll_interval=self.poll_interval, timeout=_CANCELLED_WITHIN_S)
        return batch.to_dict()

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on after the deferral."""
        self.batch_id, batch = _batch_of(event)
        if event["status"] != "reached" or batch is None:
            raise OpenAIBatchesError(f"Batch {self.batch_id} was cancelled, but not seen to end: {event['message']}")
        return batch.to_dict()


def _trigger(**kwargs: Any) -> OpenAIBatchTrigger:
    # Parsing a DAG file imports this module, and needs neither the trigger nor HTTP.
    from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger

    return OpenAIBatchTrigger(**kwargs)


def _batch_of(event: Mapping[str, Any]) -> tuple[str, Batch | None]:
    """Return id and last sighting of the one batch a trigger was waiting for."""
    [(batch_id, batch)] = event["batches"].items()
    return batch_id, None if batch is None else Batch.from_dict(batch)
