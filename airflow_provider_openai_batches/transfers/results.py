"""The results that a transfer is given: a job task's output, or a path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import check_path
from airflow_provider_openai_batches.results import read_results


def rows_of(results: Any) -> Iterator[dict[str, Any]]:
    """Iterate over the result rows, in input order, without holding them.

    :param results: a manifest, or the ``output_path`` of a job
    :raises InvalidInputError: it is neither; while iterating: there are no results
    """
    is_manifest = isinstance(results, Mapping) and isinstance(results.get("results"), list)
    is_path = isinstance(results, (str, os.PathLike)) and not str(results).startswith(("{", "None"))
    if not (is_manifest or is_path or hasattr(results, "fs")):
        raise InvalidInputError(
            "results", f"expected a job task's output (job.output) or its output_path, got {type(results).__name__}."
        )
    return read_results(results if is_manifest else check_path(results, "results"))


def place_of(results: Any) -> list[str]:
    """Return the directory that the results are in, for lineage."""
    return [str(results.get("output_path")) if isinstance(results, Mapping) else str(results)]
