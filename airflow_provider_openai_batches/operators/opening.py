"""From an operator's parameters to its job, in the hands of this attempt."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from copy import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import ObjectStoragePath, XComArg

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import check_expiry
from airflow_provider_openai_batches.compat import task_state_store
from airflow_provider_openai_batches.jobs.locations import check_location

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_openai_batches.jobs.job import Job
    from airflow_provider_openai_batches.jobs.plan import JobSettings
    from airflow_provider_openai_batches.operators.job import OpenAIBatchOperator

STORE_KEY = "openai_job"
_PLACE = "a directory or its URI"


class Rows:
    """Rows on their way through Airflow, which renders, compares and shows whatever it can look into.

    :param source: the rows, or the function that returns them
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    @classmethod
    def of(cls, source: Any) -> Any:
        """Wrap what is none of Airflow's business.

        Only a path, a query or an upstream task's output is Airflow's to resolve; rows are data, whatever they look
        like, and too many to be shown.
        """
        is_airflows = isinstance(source, (str, XComArg, ObjectStoragePath, cls)) or _has_templates(source)
        return source if is_airflows else cls(source)

    @classmethod
    def to_render(cls, source: Any) -> Any:
        """Return what Airflow may render. It renders a query in place, and the next run must find that as it was."""
        return copy(source) if _has_templates(source) else source

    def __str__(self) -> str:
        # The same at each parse: Airflow makes a new version of the DAG when this changes.
        if isinstance(self.source, (list, tuple)):
            return f"{len(self.source):,} requests"
        kind = self.source if callable(self.source) else type(self.source)
        return f"requests from {getattr(kind, '__qualname__', type(kind).__qualname__)}"


def _has_templates(source: Any) -> bool:
    """Whether a source is a query, or another one that says itself what Airflow may render of it."""
    return not isinstance(source, type) and isinstance(getattr(source, "template_fields", None), tuple)


def open_job(operator: OpenAIBatchOperator, rows: Callable[[], Any], context: Context, *, resuming: bool) -> Job:
    """Take up the job of an operator's task instance, or begin it.

    :param operator: whose parameters say what the job is
    :param rows: returns the source of the rows. Called when they are planned, and only then
    :param context: the task instance's
    :param resuming: whether this goes on after a deferral, so that there has to be a job
    """
    from airflow_provider_openai_batches.api.client import BatchClient
    from airflow_provider_openai_batches.jobs.directory import open_directory
    from airflow_provider_openai_batches.jobs.job import Job
    from airflow_provider_openai_batches.jobs.ledger import Owner
    from airflow_provider_openai_batches.jobs.opening import Replan, open_ledger
    from airflow_provider_openai_batches.jobs.requests import read_requests

    ti, store = context["ti"], task_state_store(context)
    directory = open_directory(check_location(operator.output_path, "output_path", _PLACE))
    settings = _settings(operator)
    began_at = (store.get(STORE_KEY) or {}).get("output_path") if store is not None else None
    try:
        ledger = open_ledger(
            directory,
            Owner(ti.dag_id, ti.task_id, ti.run_id, -1 if ti.map_index is None else ti.map_index),
            attempt=f"{ti.try_number}-{uuid.uuid4().hex}",
            max_tries=ti.max_tries,
            endpoint=operator.endpoint,
            resuming=resuming,
            began_at=began_at,
            replan=Replan(operator.replan),
        )
    except OSError as error:
        # Alone: each folder above it that could not be made either has a traceback of its own.
        raise InvalidInputError(
            "output_path",
            f"{directory} cannot be read or made ({error}). Use a directory that all workers may write to.",
        ) from None
    if store is not None and not resuming and not operator.plan_only:
        store.set(STORE_KEY, {"output_path": str(directory), "job_id": ledger.job_id})
    if operator.timeout is not None and ledger.deadline is None:
        ledger.deadline = time.time() + operator.timeout
    client = operator.hook.get_conn()
    return Job(
        directory=directory,
        ledger=ledger,
        settings=settings,
        client=client,
        creator=BatchClient(client.settings, attempts=1),
        read_requests=lambda: read_requests(rows(), settings.template),
    )


def _settings(operator: OpenAIBatchOperator) -> JobSettings:
    from airflow_provider_openai_batches.jobs.answer_cache import AnswerCache
    from airflow_provider_openai_batches.jobs.classify import RetryLimits
    from airflow_provider_openai_batches.jobs.plan import JobSettings
    from airflow_provider_openai_batches.jobs.pricing import parse_prices
    from airflow_provider_openai_batches.jobs.requests import RequestTemplate
    from airflow_provider_openai_batches.jobs.results import Rules
    from airflow_provider_openai_batches.jobs.shards import ShardLimits
    from airflow_provider_openai_batches.jobs.structured import OutputSchema

    if operator.output_format == "parquet" and find_spec("pyarrow") is None:
        raise InvalidInputError(
            "output_format", "parquet needs pyarrow: pip install 'airflow-provider-openai-batches[parquet]'."
        )
    output = None if operator.output_type is None else OutputSchema.of(operator.output_type)
    dialect = operator.hook.get_conn().settings.dialect
    if operator.max_requests_per_batch > dialect.max_requests:
        raise InvalidInputError(
            "max_requests_per_batch",
            f"{dialect.service} takes at most {dialect.max_requests:,} requests in a batch, not "
            f"{operator.max_requests_per_batch:,}.",
        )
    range_s = dialect.expiry_range_s if dialect.expiry_part and dialect.has_output_expiry else None
    check_expiry(operator.files_expire_after, "files_expire_after", range_s, dialect.service)
    cache = None
    if operator.answer_cache is not None:
        place = check_location(operator.answer_cache, "answer_cache", _PLACE)
        cache = AnswerCache.at(place, operator.answer_cache_expires_after)
    queue_limits = operator.hook.queue_limits  # Each look is one at the connection.
    return JobSettings(
        template=RequestTemplate(
            endpoint=operator.endpoint,
            model=operator.model,
            system_prompt=operator.system_prompt,
            body={} if operator.body is None else operator.body,
            output=output,
        ),
        limits=ShardLimits(
            max_requests=operator.max_requests_per_batch,
            max_bytes=min(operator.max_bytes_per_batch, dialect.max_bytes),
            max_tokens=queue_limits or None,
        ),
        rules=Rules(
            endpoint=operator.endpoint,
            limits=RetryLimits(max_attempts=operator.max_attempts),
            parse_output=None if output is None else output.parse,
            output_schema=None if output is None else output.schema,
        ),
        max_active_batches=operator.max_active_batches,
        queue_limits=queue_limits,
        prices=parse_prices(operator.prices) if operator.prices is not None else operator.hook.prices,
        max_cost=operator.max_cost,
        dry_run=operator.plan_only,
        output_format=operator.output_format,
        deduplicate=operator.deduplicate,
        answer_cache=cache,
        delete_remote_files=operator.delete_remote_files,
        files_expire_after=operator.files_expire_after,
        finish_synchronously_below=operator.finish_synchronously_below,
        cancel_when_late=operator.on_timeout == "cancel",
    )
