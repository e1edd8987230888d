"""The results of a batch on their way to where they are wanted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_openai_batches.api.errors import (
    DownloadIncompleteError,
    InvalidInputError,
    OpenAIBatchesError,
    raise_for_outcome,
)
from airflow_provider_openai_batches.api.inputs import check_id
from airflow_provider_openai_batches.api.models import Batch, BatchStatus
from airflow_provider_openai_batches.jobs.locations import check_location
from airflow_provider_openai_batches.links import OpenAIBatchesPageLink, OpenAIBatchLink, OpenAIBatchResultsLink
from airflow_provider_openai_batches.operators.base import OpenAIBatchesOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_openai_batches.jobs.pricing import Price
    from airflow_provider_openai_batches.lineage import Written

_LONGEST_NAME = 128
"""Characters of a batch's id in the names of its files. OpenAI's ids have 38."""


class OpenAIBatchDownloadOperator(OpenAIBatchesOperator):
    """Downloads the output and error file of a batch that is over, whole and verified.

    Returns ``{"batch_id", "status", "output_path", "error_path", "request_counts", "usage"}``; a path is None where
    the batch has no such file, or an empty one. The files are written even if the task then fails because nothing
    succeeded; one with fewer lines than the batch counts fails the task, leaves a whole one from before as it was,
    and is kept as ``<batch_id>.output.incomplete.jsonl``: its rows are paid for.

    :param batch_id: the batch (templated)
    :param output_path: directory, local or any object storage (templated); files are
        ``<batch_id>.output.jsonl`` and ``<batch_id>.errors.jsonl``, shortened or cleaned where an id cannot be a name
    :param conn_id: Airflow connection (templated)
    """

    template_fields: Sequence[str] = ("batch_id", "output_path", "conn_id")
    operator_extra_links = (OpenAIBatchLink(), OpenAIBatchesPageLink(), OpenAIBatchResultsLink())

    def __init__(self, *, batch_id: str, output_path: str | ObjectStoragePath, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batch_id = batch_id
        self.output_path = output_path
        self._written: list[Written] = []
        self._facts: dict[str, Any] = {}

    @property
    def results_path(self) -> str:
        """Where the files are."""
        return str(self.output_path)

    def execute(self, context: Context) -> dict[str, Any]:
        """Fetch both files, check that every answered request is there, and judge the batch."""
        self.batch_id = check_id(self.batch_id, "batch_id")
        check_location(self.output_path, "output_path", "a directory or its URI")
        context["ti"].xcom_push(key="batch_id", value=self.batch_id)
        batch = self.hook.retrieve_batch(self.batch_id)
        if not batch.is_terminal:
            raise InvalidInputError(
                "batch_id", f"batch {batch.id} is still {batch.status}. Put an OpenAIBatchSensor before the download."
            )
        if batch.files_pending:
            batch = self.hook.wait_for_batch(batch.id, poll_interval=5)
        counts = batch.request_counts
        output_path, answers = self._fetch(batch, "output", other_lines=counts.failed)
        # An output file that is not named at all is judged below, when the reasons are on disk.
        error_path, _ = self._fetch(batch, "errors", other_lines=max(answers, counts.completed))
        if batch.none_succeeded or not output_path:
            raise_for_outcome(batch)
        if not output_path:
            raise OpenAIBatchesError(
                f"Batch {batch.id} is completed with {counts.completed:,} requests answered, but the service names no "
                f"output file, or an empty one. Its error file: {error_path or 'none'}."
            )
        found = batch.to_dict()
        self._count(batch, found["usage"])
        return {
            "batch_id": batch.id,
            "status": batch.status,
            "output_path": output_path,
            "error_path": error_path,
            **{name: found[name] for name in ("request_counts", "usage")},
        }

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Tell OpenLineage what was written, and at what price."""
        from airflow_provider_openai_batches.lineage import lineage

        return lineage(written=self._written, batch_ids=[self.batch_id], run=self._facts)

    def _count(self, batch: Batch, usage: Mapping[str, int] | None) -> None:
        from airflow_provider_openai_batches.jobs.pricing import cost
        from airflow_provider_openai_batches.lineage import facts

        counts = batch.request_counts
        unfinished = "missing" if batch.status == BatchStatus.COMPLETED else batch.status
        rows = {"succeeded": counts.completed, "failed": counts.failed}
        rows[unfinished] = rows.get(unfinished, 0) + counts.total - counts.completed - counts.failed
        spent = cost({batch.model: batch.usage}, self._prices()) if batch.usage and batch.model else None
        meter = self.meter(batch.endpoint)
        meter.ended(batch, batch.model)
        meter.answered(rows, usage, spent, batch.model)
        self._facts = facts(
            endpoint=batch.endpoint, models=[batch.model], rows=rows, usage=usage, cost_usd=spent, batches=1
        )

    def _prices(self) -> Mapping[str, Price]:
        try:
            return self.hook.prices
        except InvalidInputError as error:
            # What was paid for is here, and its way on must not depend on what is only counted.
            self.log.warning("The cost is not counted: %s", error)
            return {}

    def _fetch(self, batch: Batch, kind: Literal["output", "errors"], *, other_lines: int) -> tuple[str | None, int]:
        """Write one of the two files; return its path, None if there is nothing to write, and its lines.

        :param other_lines: lines of the other file
        :raises DownloadIncompleteError: lines are missing; what was at the path before is still there
        """
        # Parsing a DAG file imports this module, and needs nothing of jobs.
        from airflow_provider_openai_batches.jobs.results import check_counts, count_lines
        from airflow_provider_openai_batches.lineage import Written

        file_id = batch.output_file_id if kind == "output" else batch.error_file_id
        if not file_id:
            return None, 0
        lines = 0
        name = ObjectStoragePath(str(self.output_path)) / f"{_file_name(batch.id)}.{kind}"
        target, incomplete = (name.with_name(f"{name.name}{end}.jsonl") for end in ("", ".incomplete"))

        def check(content: Path) -> None:
            nonlocal lines
            lines = count_lines(content)
            in_both = (lines, other_lines) if kind == "output" else (other_lines, lines)
            if problem := check_counts(batch, *in_both):
                kept = ""
                if lines:
                    # The service may never have more, and deletes its own copy some day.
                    incomplete.parent.mkdir(parents=True, exist_ok=True)
                    incomplete.fs.put_file(str(content), incomplete.path)
                    kept = f" What there is of it is in {incomplete}."
                raise DownloadIncompleteError(f"{problem} ({file_id}){kept}")
            if not lines:
                raise _EmptyFileError

        try:
            size = self.hook.download_file(file_id, target, check=check)
        except _EmptyFileError:
            self.log.info("File %s of batch %s is empty: nothing is written.", file_id, batch.id)
            return None, 0
        incomplete.unlink(missing_ok=True)
        self.log.info("Wrote %s: %s lines, %s bytes.", target, f"{lines:,}", f"{size:,}")
        self._written.append(Written(str(target), lines))
        return str(target), lines


class _EmptyFileError(Exception):
    """A result file without a line is as good as none, and must not replace one from before."""


def _file_name(batch_id: str) -> str:
    """Return a batch's id as part of a file name. It is the service's text: it may hold slashes, or be very long."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", batch_id)[:_LONGEST_NAME]
    # Two ids must not come to share a file.
    return name if name == batch_id else f"{name}-{hashlib.sha256(batch_id.encode()).hexdigest()[:12]}"
