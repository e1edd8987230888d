"""Files of batches that are over, deleted at the service."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow_provider_openai_batches.api.errors import AuthenticationError, InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.compat import has_succeeded
from airflow_provider_openai_batches.operators import parameters
from airflow_provider_openai_batches.operators.base import OpenAIBatchesOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_openai_batches.api.dialects import Dialect
    from airflow_provider_openai_batches.api.models import Batch

log = logging.getLogger(__name__)

_FAILURES_SHOWN = 5
_DAG_KEY = "airflow_dag_id"


class OpenAIBatchCleanupOperator(OpenAIBatchesOperator):
    """Deletes input and result files of batches that are over; returns ``{"files": ..., "bytes": ...}``.

    Only files of batches that DAGs of this Airflow made are deleted, and by default only where their DAG run has
    succeeded: what a run that failed has paid for may not have been fetched yet. A file that any other batch reads,
    too, is kept, and so is one that no batch has used. Whose a batch is, its metadata says: a service that takes none
    (Together, DashScope) is refused.

    :param older_than: seconds or a timedelta; the batch was over, and the file made, longer ago than this
    :param dag_ids: only batches of these DAGs (templated); default: of all
    :param only_succeeded: keep files of DAG runs that did not succeed, or that Airflow does not know (any more). With
        False, their files go by age alone, and so do those of another Airflow that works for the same project
    :param dry_run: delete nothing, and return what would be deleted
    :param conn_id: Airflow connection (templated)
    """

    template_fields: Sequence[str] = ("dag_ids", "conn_id")

    def __init__(
        self,
        *,
        older_than: float | timedelta = timedelta(days=7),
        dag_ids: str | Sequence[str] | None = None,
        only_succeeded: bool = True,
        dry_run: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.older_than = parameters.seconds(older_than, "older_than")
        self.dag_ids = dag_ids
        self.only_succeeded = parameters.flag(only_succeeded, "only_succeeded")
        # Not `dry_run`: Airflow's operators have a method of that name.
        self.plan_only = parameters.flag(dry_run, "dry_run")

    def execute(self, context: Context) -> dict[str, int]:
        """Find what nothing needs any more, and delete it."""
        from airflow_provider_openai_batches.api.retention import file_purposes, list_files, spent_files, still_spent

        may_go = self._rule()
        client = self.hook.get_conn()
        self._check_metadata(client.settings.dialect)
        before = time.time() - self.older_than
        purposes = file_purposes(client.settings.dialect)
        files = list_files(client, purposes)
        files = spent_files(
            files,
            client.list_batches(),
            before=before,
            purposes=purposes,
            longest_life_s=client.settings.dialect.longest_life_s,
            may_go=may_go,
        )
        gone, size, failures = 0, 0, []
        for file in files if self.plan_only else still_spent(client, files):
            try:
                if not self.plan_only:
                    client.delete_file(file.id)
            except AuthenticationError:
                raise
            except OpenAIBatchesError as error:
                failures.append(f"{file.id}: {error}")
                continue
            gone, size = gone + 1, size + (file.bytes or 0)
        verb = "would be" if self.plan_only else "were"
        self.log.info("%d files, %d bytes, %s deleted at %s.", gone, size, verb, self.conn_id)
        if failures:
            shown = "; ".join(failures[:_FAILURES_SHOWN])
            raise OpenAIBatchesError(f"{len(failures):,} files could not be deleted; a retry tries again. {shown}")
        return {"files": gone, "bytes": size}

    def _check_metadata(self, dialect: Dialect) -> None:
        """Refuse a service whose batches never say what they were bought for."""
        if _DAG_KEY not in dialect.metadata({_DAG_KEY: ""}):
            raise InvalidInputError(
                "conn_id",
                f"{dialect.service} keeps no metadata, so nothing tells which of its batches are this Airflow's: no "
                "file can be deleted. Give the jobs delete_remote_files=True, or delete by age alone with "
                "`openai-batches clean-files`.",
            )
        if not dialect.keeps_metadata:
            log.warning(
                "%s may drop the metadata of batches: files of those that lost theirs are kept.", dialect.service
            )

    def _rule(self) -> Callable[[Batch], bool]:
        """Return what says whether a batch's files may go."""
        dag_ids = None if self.dag_ids is None else parameters.names(self.dag_ids, "dag_ids", "ids of DAGs")
        succeeded = cache(has_succeeded)

        def may_go(batch: Batch) -> bool:
            dag_id, run_id = (batch.metadata.get(key, "") for key in (_DAG_KEY, "airflow_run_id"))
            if not dag_id or (dag_ids is not None and dag_id not in dag_ids):
                return False
            return not self.only_succeeded or succeeded(dag_id, run_id)

        return may_go
