"""Which of the service's files nothing needs any more. Files cost room, and a project has a limit of 2.5 TB.

Source of the limit: https://platform.openai.com/docs/api-reference/files/create.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.dialects import OPENAI, Dialect
from airflow_provider_openai_batches.api.models import Batch, File

PURPOSES = ("batch", "batch_output")
"""Of the files that batches read, and of those they write (output and errors)."""

MAX_PROJECT_BYTES = 2_500_000_000_000
"""What all files of a project may have together at OpenAI."""


def file_purposes(dialect: Dialect, purposes: Collection[str] = PURPOSES) -> list[str]:
    """Return what a service calls the purposes of files.

    :param dialect: of the service
    :param purposes: under OpenAI's names
    """
    return [dialect.file_purpose if purpose == "batch" else purpose for purpose in purposes]


def list_files(client: BatchClient, purposes: Collection[str]) -> list[File]:
    """Return the project's files for batches, each once.

    :param client: of the project
    :param purposes: which files, see :func:`file_purposes`
    """
    # Some services list all files, whatever purpose is asked for.
    listed = (file for purpose in purposes for file in client.list_files(purpose=purpose))
    return list({file.id: file for file in listed if file.purpose in purposes}.values())


def spent_files(
    files: Iterable[File],
    batches: Iterable[Batch],
    *,
    before: float,
    purposes: Collection[str] = PURPOSES,
    longest_life_s: float = OPENAI.longest_life_s,
    may_go: Callable[[Batch], bool] = lambda batch: True,
) -> list[File]:
    """Return the files that nothing needs any more.

    These are files of batches that are all over, and were so before the given moment. A file of no known batch is
    kept, whatever it is: it may be about to be submitted.

    :param files: the project's; listed before the batches, so that one which is created in between is among these
    :param batches: all of the project's
    :param before: unix time; the file was made before it too
    :param purposes: which files may go, see :func:`file_purposes`
    :param longest_life_s: how long a batch takes at most, for services that do not tell when one ended
    :param may_go: asked of batches that were over by then: whether their files may be deleted
    """
    done: set[str] = set()
    needed: set[str] = set()
    for batch in batches:
        (done if _was_over(batch, before, longest_life_s) and may_go(batch) else needed).update(file_ids(batch))
    return [
        file
        for file in files
        if file.id in done - needed
        and file.purpose in purposes
        and file.created_at is not None
        and file.created_at < before
    ]


def still_spent(client: BatchClient, files: Iterable[File]) -> list[File]:
    """Return those files that no batch has begun to use since they were found to be spent.

    :param client: of the project
    :param files: as :func:`spent_files` returned them
    """
    recent = client.batches_since(time.time() - client.settings.dialect.longest_life_s)
    in_use = {file_id for batch in recent if not batch.is_terminal for file_id in file_ids(batch)}
    return [file for file in files if file.id not in in_use]


def file_ids(batch: Batch) -> set[str]:
    """Return the ids of the files that a batch reads and writes."""
    return {file_id for file_id in (batch.input_file_id, batch.output_file_id, batch.error_file_id) if file_id}


def _was_over(batch: Batch, before: float, longest_life_s: float) -> bool:
    ends = (batch.completed_at, batch.failed_at, batch.expired_at, batch.cancelled_at)
    # None is known that was over before it began.
    ended_at = max((at for at in ends if at), default=batch.created_at and batch.created_at + longest_life_s)
    return batch.is_terminal and ended_at is not None and ended_at < before
