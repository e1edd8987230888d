"""A whole job in one task: rows in, one result per row out."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, ObjectStoragePath

from airflow_provider_openai_batches.api.errors import (
    AuthenticationError,
    InvalidInputError,
    NoRowsError,
    OpenAIBatchesError,
    WaitTimeoutError,
)
from airflow_provider_openai_batches.assets import announce_results
from airflow_provider_openai_batches.compat import has_ended
from airflow_provider_openai_batches.jobs.verdict import RowsFailedError, check_max_failed, raise_for_results
from airflow_provider_openai_batches.links import OpenAIBatchesPageLink, OpenAIBatchLink, OpenAIBatchResultsLink
from airflow_provider_openai_batches.operators import parameters
from airflow_provider_openai_batches.operators.base import OpenAIBatchesOperator
from airflow_provider_openai_batches.operators.opening import Rows, open_job

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage
    from pydantic import BaseModel

    from airflow_provider_openai_batches.jobs.engine import Waiting
    from airflow_provider_openai_batches.jobs.job import Job


_SHORTEST_LIFE_S = 2 * 86_400
"""A batch has a day, and what it bought has to be there until an Airflow that was down for a while fetches it."""

_LONGEST_LIFE_S = 30 * 86_400


def _lifetime(value: float | timedelta) -> int:
    """Return how long the service is to keep files, in whole seconds."""
    lifetime = int(parameters.seconds(value, "files_expire_after"))
    if _SHORTEST_LIFE_S <= lifetime <= _LONGEST_LIFE_S:
        return lifetime
    raise InvalidInputError(
        "files_expire_after",
        f"expected 2 to 30 days ({_SHORTEST_LIFE_S:,} to {_LONGEST_LIFE_S:,} seconds), got {value!r}. To delete files "
        "when the job is finished, set delete_remote_files.",
    )


def _bought(job: Job) -> dict[str, str]:
    """Models of the batches of a job so far, by batch id."""
    return {each.batch_id: shard.model for shard in job.ledger.shards for each in shard.rounds if each.batch_id}


class OpenAIBatchOperator(OpenAIBatchesOperator):
    """Answers any number of rows through batches, and writes one result per row, in input order.

    Returns a small manifest: ``results`` (paths), counts by status and error code, batch ids, usage and cost. Read the
    rows with :func:`airflow_provider_openai_batches.results.read_results`. The ids of all batches so far are the XCom
    ``batch_ids`` while the job goes on; the task's link opens the newest.

    DAGs scheduled on an asset among the task's ``outlets`` start when the results are there; for an ``AssetAlias``, the
    asset is the results' place.

    A retry goes on where the attempt before stopped; a cleared, finished task buys only rows that changed or failed.
    If too many rows failed there is no retry, which could not help: clear the task to buy them again.

    :param requests: the rows: a list, an iterable or a function that returns one, an upstream task's list, the path or
        URI (templated) of a JSONL, CSV or Parquet file, or a query
        (:class:`~airflow_provider_openai_batches.sql.SQLRequests`). A row is a prompt, a dict with one of ``prompt``,
        ``input``, ``messages`` and ``body`` and perhaps ``custom_id``, ``model`` and ``context`` (columns for the
        result), or a complete API line. Row text is never rendered
    :param output_path: directory or URI of this run's results (templated); one job per path
    :param model: for rows that name none (templated)
    :param endpoint: where the requests go (templated)
    :param system_prompt: for every row
    :param body: fields for every request, such as ``max_completion_tokens``
    :param output_type: Pydantic model or JSON schema the answers must follow
    :param max_requests_per_batch: at most 50,000; 100,000 at Azure
    :param max_bytes_per_batch: at most 200,000,000, or what the connection's service takes if that is less
    :param max_active_batches: batches of this job that may go on at the same time; default: no limit
    :param max_attempts: how often a row may run in all
    :param max_failed: rows (int) or share of rows (float) that may fail before the task does
    :param poll_interval: seconds between looks
    :param timeout: seconds from the attempt's start after which the batches are cancelled, what they finished is kept,
        and the task fails; its next attempt buys only the rest. Default: never
    :param on_timeout: ``cancel``, or ``keep`` to leave the batches running: the next attempt goes on with them
    :param cancel_on_kill: cancel the batches when a user ends the task (not when its worker goes away or it is cleared:
        the next attempt goes on with them); while it is deferred, this needs Airflow 3.3
    :param deferrable: wait in the triggerer
    :param replan: when a cleared task reads its rows again: ``when_finished``, ``always`` or ``never``
    :param deduplicate: buy rows that ask the same once: the first is sent, and what comes of it is the result of all
    :param answer_cache: directory or URI (templated) where answers are kept by what was asked, as clear text, for any
        number of jobs and DAGs: what is there is not bought, and what is bought is put there. Implies ``deduplicate``
    :param answer_cache_expires_after: seconds after which an answer there is not used; None for never. Default: 30 days
    :param delete_remote_files: delete the service's copies of all files at the end
    :param files_expire_after: seconds or a timedelta, from 2 to 30 days, until the service deletes the job's files by
        itself, whatever becomes of the job. Default: as long as the service keeps them, 30 days at OpenAI
    :param max_cost: refuse a job whose estimate is above this many USD, before anything is sent; needs ``prices``
        unless every row is answered already. The estimate has the prompts, and answers at each request's token cap
        times its ``n``; a request without a cap counts no answer, and further attempts are not counted
    :param prices: ``{model: {"input", "cached_input", "output"}}`` in USD per million tokens, at the batch rate;
        default: the connection's
    :param dry_run: write the shards and the estimate, and send nothing
    :param when_empty: what becomes of the task when there is no row: ``fail``, or ``skip``
    :param output_format: ``jsonl``, or ``parquet`` with the extra of that name
    :param finish_synchronously_below: once this many rows or fewer are left of the whole job, all of which a batch has
        had before, they are sent one by one to the ``endpoint`` itself, at about twice the price. At most
        1,000; 0: never
    :param conn_id: Airflow connection (templated)
    """

    template_fields: Sequence[str] = ("requests", "output_path", "model", "endpoint", "answer_cache", "conn_id")
    operator_extra_links = (OpenAIBatchLink(), OpenAIBatchesPageLink(), OpenAIBatchResultsLink())

    def __init__(
        self,
        *,
        requests: Any,
        output_path: str | ObjectStoragePath,
        model: str | None = None,
        endpoint: str = "/v1/chat/completions",
        system_prompt: str | None = None,
        body: Mapping[str, Any] | None = None,
        output_type: type[BaseModel] | Mapping[str, Any] | None = None,
        max_requests_per_batch: int = 50_000,
        max_bytes_per_batch: int = 200_000_000,
        max_active_batches: int | None = None,
        max_attempts: int = 3,
        max_failed: float = 0,
        poll_interval: float | timedelta = 60,
        timeout: float | timedelta | None = None,
        on_timeout: Literal["cancel", "keep"] = "cancel",
        cancel_on_kill: bool = True,
        deferrable: bool = True,
        replan: Literal["when_finished", "always", "never"] = "when_finished",
        deduplicate: bool = False,
        answer_cache: str | ObjectStoragePath | None = None,
        answer_cache_expires_after: float | timedelta | None = 30 * 86_400,
        delete_remote_files: bool = False,
        files_expire_after: float | timedelta | None = None,
        max_cost: float | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        dry_run: bool = False,
        when_empty: Literal["fail", "skip"] = "fail",
        output_format: Literal["jsonl", "parquet"] = "jsonl",
        finish_synchronously_below: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.requests = requests
        self.output_path = output_path
        self.model = model
        self.endpoint = endpoint
        self.system_prompt = system_prompt
        self.body = body
        self.output_type = output_type
        self.max_requests_per_batch = parameters.count(max_requests_per_batch, "max_requests_per_batch", most=100_000)
        self.max_bytes_per_batch = parameters.count(max_bytes_per_batch, "max_bytes_per_batch", most=200_000_000)
        self.max_active_batches = max_active_batches
        if max_active_batches is not None:
            parameters.count(max_active_batches, "max_active_batches")
        self.max_attempts = parameters.count(max_attempts, "max_attempts")
        self.max_failed = check_max_failed(max_failed)
        self.poll_interval = parameters.seconds(poll_interval, "poll_interval")
        self.timeout = parameters.seconds_or_never(timeout, "timeout")
        self.on_timeout = parameters.one_of(on_timeout, "on_timeout", "cancel", "keep")
        self.cancel_on_kill = parameters.flag(cancel_on_kill, "cancel_on_kill")
        self.deferrable = parameters.flag(deferrable, "deferrable")
        self.replan = parameters.one_of(replan, "replan", "when_finished", "always", "never")
        self.deduplicate = parameters.flag(deduplicate, "deduplicate")
        self.answer_cache = answer_cache
        self.answer_cache_expires_after = parameters.seconds_or_never(
            answer_cache_expires_after, "answer_cache_expires_after"
        )
        self.delete_remote_files = parameters.flag(delete_remote_files, "delete_remote_files")
        self.files_expire_after = None if files_expire_after is None else _lifetime(files_expire_after)
        self.max_cost = None if max_cost is None else parameters.usd(max_cost, "max_cost")
        self.prices = prices
        # Not `dry_run`: Airflow's operators have a method of that name.
        self.plan_only = parameters.flag(dry_run, "dry_run")
        self.when_empty = parameters.one_of(when_empty, "when_empty", "fail", "skip")
        self.output_format = parameters.one_of(output_format, "output_format", "jsonl", "parquet")
        self.finish_synchronously_below = parameters.count(
            finish_synchronously_below, "finish_synchronously_below", least=0, most=1_000
        )
        self.batch_id: str | None = None  # The newest, for the link.
        self._shown: list[str | None] = []
        self._ti: Any = None
        self._job: Job | None = None
        self._manifest: dict[str, Any] | None = None
        self._killed = False

    @property
    def requests(self) -> Any:
        """Where the rows come from."""
        return Rows.to_render(self._requests)

    @requests.setter
    def requests(self, source: Any) -> None:
        self._requests = Rows.of(source)  # Airflow sets this again when it has rendered it.

    @property
    def results_path(self) -> str:
        """Where the result files are."""
        return f"{str(self.output_path).rstrip('/')}/results"

    def execute(self, context: Context) -> dict[str, Any]:
        """Begin the job, or take up an earlier attempt's."""
        return self._go_on(context, resuming=False)

    def execute_complete(self, context: Context, event: Any) -> dict[str, Any]:
        """Go on after a deferral. What the trigger saw is looked up again: the ledger decides, not the event."""
        is_error = isinstance(event, Mapping) and event.get("status") == "error"
        return self._go_on(context, resuming=True, trouble=event["message"] if is_error else None)

    def on_kill(self) -> None:
        """Cancel the batches if the task is over. What they finished is landed when the task is run again."""
        # Airflow calls this in a signal's handler, and the task goes on where it was until it is killed for good.
        self._killed = True
        if self._job is not None:
            self._job.halted.set()
            self._cancel_if_ended(self._job)

    def _go_on(self, context: Context, *, resuming: bool, trouble: str | None = None) -> dict[str, Any]:
        from airflow_provider_openai_batches.jobs.engine import Finished, Stopped, Waiting, advance

        self._ti = context["ti"]
        job = self._job = self._open(context, resuming=resuming)
        while True:
            self._stop_if_killed(job)
            self._stop_if_late(job)
            try:
                with self._counted(job, context), self._skipped_if_empty():
                    outcome = advance(job)
            except AuthenticationError:
                if not self._has_new_key(job):
                    raise
                job = self._job = self._open(context, resuming=True)
                continue
            self._manifest = None if isinstance(outcome, Waiting) else outcome.manifest
            if isinstance(outcome, Finished):
                return self._judged(outcome.manifest, context)
            self._stop_if_killed(job)
            if isinstance(outcome, Stopped):
                manifest = outcome.manifest
                raise WaitTimeoutError(
                    f"The job was not over {self._in_time()}. {manifest['succeeded']:,} of {manifest['requests']:,} "
                    f"rows are answered, in {manifest['output_path']}/results. The next attempt of the task buys only "
                    "the rest."
                )
            if trouble is not None and not any(each.troubles for each in job.ledger.active_rounds):
                # Not something the engine is dealing with: waiting again would be for ever.
                raise OpenAIBatchesError(f"The batches go on, but they cannot be followed: {trouble}")
            self._wait(outcome)

    def _open(self, context: Context, *, resuming: bool) -> Job:
        return open_job(self, lambda: self._rows(context), context, resuming=resuming)

    def _has_new_key(self, job: Job) -> bool:
        """Whether the connection was changed since the job was opened, as when its key is rotated."""
        self.hook.close()
        return self.hook.get_conn().settings != job.client.settings

    def _judged(self, manifest: dict[str, Any], context: Context) -> dict[str, Any]:
        """Return the manifest if enough rows are good. If not, another attempt would find the same answers."""
        if not self.plan_only:
            try:
                raise_for_results(manifest, self.max_failed)
            except RowsFailedError as error:
                raise AirflowFailException(str(error)) from error
            announce_results(context, self.outlets, manifest)
        return manifest

    def _stop_if_late(self, job: Job) -> None:
        """Leave the batches alone, and fail, if that is what the user wants; cancelling is the engine's."""
        deadline = job.ledger.deadline
        if self.on_timeout == "keep" and deadline is not None and time.time() >= deadline:
            raise WaitTimeoutError(
                f"The job was not over {self._in_time()}. Its {len(job.ledger.active_rounds):,} batches go on; the "
                "next attempt of the task goes on with them."
            )

    def _in_time(self) -> str:
        return "in time" if self.timeout is None else f"after {self.timeout:,.0f} seconds"

    def _stop_if_killed(self, job: Job) -> None:
        if self._killed:
            self._cancel_if_ended(job)  # One may have been created while the others were cancelled.
            raise OpenAIBatchesError("The task was ended from outside. Its next attempt goes on with the job.")

    def _cancel_if_ended(self, job: Job) -> None:
        from airflow_provider_openai_batches.jobs.engine import cancel

        if self.cancel_on_kill and (job.ledger.stopping or has_ended(self._ti)):
            job.ledger.stopping = True  # It must not replace what is cancelled now.
            cancel(job)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Tell OpenLineage what was read and written, and at what price."""
        from airflow_provider_openai_batches.lineage import Written, facts, lineage

        read = [str(self.requests)] if isinstance(self.requests, (str, ObjectStoragePath)) else []
        manifest, job = self._manifest, self._job
        if manifest is None or job is None or self.plan_only:
            return lineage(read=read, batch_ids=[each for each in self._shown if each])
        return lineage(
            read=read,
            written=[Written(manifest["output_path"], manifest["requests"], len(manifest["results"]))],
            batch_ids=manifest["batch_ids"],
            run=facts(
                endpoint=self.endpoint,
                models={shard.model for shard in job.ledger.shards},
                rows=manifest["by_status"],
                usage=manifest["usage"],
                cost_usd=manifest["cost"],
                batches=len(manifest["batch_ids"]),
            ),
        )

    @contextmanager
    def _skipped_if_empty(self) -> Iterator[None]:
        try:
            yield
        except NoRowsError as error:
            if self.when_empty == "skip":
                raise AirflowSkipException("There is no row, so there is nothing to do.") from error
            raise

    @contextmanager
    def _counted(self, job: Job, context: Context) -> Iterator[None]:
        """Show and count what becomes of the job meanwhile, however that ends."""
        meter = self.meter(self.endpoint)
        job.landed = meter.ended
        known, was_over = _bought(job), job.ledger.manifest is not None
        try:
            yield
        finally:
            self._show_batches(job, context)
            for _, model in _bought(job).items() - known.items():
                meter.created(1, model)
        if job.ledger.manifest is not None and not was_over:
            models = {shard.model for shard in job.ledger.shards}
            meter.job_ended(job.ledger.manifest, models.pop() if len(models) == 1 else "several")

    def _show_batches(self, job: Job, context: Context) -> None:
        """Push the ids of the batches when there are new ones."""
        bought = [each for shard in job.ledger.shards for each in shard.rounds if each.batch_id]
        batch_ids = [each.batch_id for each in bought]
        if batch_ids and batch_ids != self._shown:
            self._shown = batch_ids
            self.batch_id = max(bought, key=lambda each: each.intent_at or 0.0).batch_id
            context["ti"].xcom_push(key="batch_ids", value=batch_ids)

    def _wait(self, waiting: Waiting) -> None:
        if self.deferrable:
            self._defer(waiting)
        left = self.poll_interval if waiting.not_before is None else waiting.not_before - time.time()
        time.sleep(max(min(self.poll_interval, left), 0.0))

    def _defer(self, waiting: Waiting) -> NoReturn:
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger

        if not waiting.batch_ids:
            at = time.time() + self.poll_interval if waiting.not_before is None else waiting.not_before
            moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
            self.defer(trigger=DateTimeTrigger(moment=moment), method_name="execute_complete")
        self.defer(
            trigger=OpenAIBatchTrigger(
                conn_id=self.conn_id,
                batch_ids=waiting.batch_ids,
                poll_interval=self.poll_interval,
                deadline=waiting.not_before,
                until="any",
                cancel_on_kill=self.cancel_on_kill,
            ),
            method_name="execute_complete",
        )

    def _rows(self, context: Context) -> Any:
        """Return the source of the rows. Called when they are planned, and only then."""
        return self.requests.source if isinstance(self.requests, Rows) else self.requests
