"""Whether a finished job is good enough for its task to be green."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_openai_batches.api.errors import InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.api.models import one_line

_CODES_SHOWN = 20


class RowsFailedError(OpenAIBatchesError):
    """More rows failed than the task allows. All results are written all the same.

    :param manifest: what came of the job
    :param message: how many of what, and what to do
    """

    def __init__(self, manifest: Mapping[str, Any], message: str) -> None:
        super().__init__(message)
        self.manifest = manifest


def check_max_failed(max_failed: float) -> float:
    """Return the limit, if it is one: a number of rows, or a share below 1 as float."""
    is_count = isinstance(max_failed, int) and not isinstance(max_failed, bool) and max_failed >= 0
    if is_count or (isinstance(max_failed, float) and 0 <= max_failed <= 1):
        return max_failed
    raise InvalidInputError("max_failed", f"expected a number of rows, or a share from 0.0 to 1.0, got {max_failed!r}.")


def raise_for_results(manifest: Mapping[str, Any], max_failed: float) -> None:
    """Raise if too many rows failed, or none succeeded.

    :param manifest: of a finished job
    :param max_failed: rows (int) or share of rows (float) that may fail
    :raises RowsFailedError: with a table by error code
    """
    rows, failed = manifest["requests"], manifest["failed"]
    allowed = max_failed * rows if isinstance(max_failed, float) else max_failed
    if failed <= allowed and manifest["succeeded"]:
        return
    counts = sorted(manifest["by_error"].items(), key=lambda entry: -entry[1])
    table = "".join(f"\n  {count:>9,}  {one_line(code)}" for code, count in counts[:_CODES_SHOWN])
    share = f"{max_failed:.2%}" if isinstance(max_failed, float) else f"{max_failed:,}"
    limit = f"max_failed allows {share}" if failed > allowed else "a job without one good row is never a success"
    raise RowsFailedError(
        manifest,
        f"{failed:,} of {rows:,} rows failed, and {limit}. Every row's reason is in {manifest['output_path']}/results; "
        f"by error code:{table}\nClear the task to buy the failed rows again; the others keep their answers.",
    )
