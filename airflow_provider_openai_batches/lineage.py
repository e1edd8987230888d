"""What a task read and wrote, as OpenLineage has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from sqlalchemy import Engine

RUN_FACET = "openai_batches"
SOURCE = "openai_batches"
_IDS_SHOWN = 100
"""Batch ids in the facet of one run: a job may have thousands."""


class Place(NamedTuple):
    """A dataset's name: https://openlineage.io/docs/spec/naming."""

    namespace: str
    name: str


class Written(NamedTuple):
    """What a task wrote: path, URI or place, rows, and files where these are more than one."""

    path: str | Place
    rows: int | None
    files: int | None = None


def lineage(
    *,
    read: Iterable[str] = (),
    written: Iterable[Written] = (),
    batch_ids: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
) -> OperatorLineage[Any, Any] | None:
    """Return a task's lineage; None without the OpenLineage provider.

    :param read: paths or URIs
    :param written: what came of it
    :param batch_ids: the batches behind it
    :param run: what else to tell of the run, under the names of the facet
    """
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    from airflow.providers.common.compat.openlineage.facet import (
        Dataset,
        ExternalQueryRunFacet,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
        RunFacet,
    )

    outputs = [
        OutputDataset(
            *(each.path if isinstance(each.path, Place) else place(each.path)),
            outputFacets={"outputStatistics": OutputStatisticsOutputDatasetFacet(each.rows, fileCount=each.files)},
        )
        for each in written
    ]
    facets: dict[str, Any] = {}
    if batch_ids:
        ids = ",".join(batch_ids[:_IDS_SHOWN])
        facets["externalQuery"] = ExternalQueryRunFacet(externalQueryId=ids, source=SOURCE)
    if run:
        facets[RUN_FACET] = RunFacet().with_additional_properties(**run)
    return OperatorLineage(inputs=[Dataset(*place(path)) for path in read], outputs=outputs, run_facets=facets)


def facts(
    *,
    endpoint: str | None,
    models: Iterable[str | None],
    rows: Mapping[str, int],
    usage: Mapping[str, int] | None,
    cost_usd: float | None,
    batches: int,
) -> dict[str, Any]:
    """Return the members of our run facet.

    :param rows: how many, by outcome
    :param usage: tokens, under the names of :class:`Usage`
    :param cost_usd: None if no price is known
    """
    tokens = usage or {}
    return {
        "endpoint": endpoint,
        "models": sorted(filter(None, models)),
        "batches": batches,
        "rows": dict(rows),
        "inputTokens": tokens.get("input_tokens"),
        "cachedInputTokens": tokens.get("cached_tokens"),
        "outputTokens": tokens.get("output_tokens"),
        "reasoningTokens": tokens.get("reasoning_tokens"),
        "costUsd": cost_usd,
    }


def place(path: str) -> Place:
    """Return the dataset at a path or URI: where it is, whoever's connection was used to get there.

    :param path: such as ``s3://conn_id@bucket/key``
    """
    parts = urlsplit(path)
    if parts.scheme in ("", "file"):
        return Place("file", parts.path.rstrip("/") or "/")
    scheme = {"s3a": "s3", "gcs": "gs"}.get(parts.scheme, parts.scheme)
    return Place(f"{scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.strip("/") or "/")


def sql_place(engine: Engine, table: str) -> Place:
    """Return the dataset that a table is.

    :param engine: the database that it is in
    :param table: ``table`` or ``schema.table``
    """
    from sqlalchemy import inspect

    url, kind = engine.url, engine.dialect.name
    if kind == "sqlite":
        return Place("sqlite", f"{url.database}.{table}")
    scheme, port = {"postgresql": ("postgres", 5432)}.get(kind, ("mysql", 3306))
    schema, _, name = table.rpartition(".")
    if kind == "postgresql":
        name = f"{url.database}.{schema or inspect(engine).default_schema_name}.{name}"
    else:
        name = f"{schema or url.database}.{name}"
    return Place(f"{scheme}://{url.host or 'localhost'}:{url.port or port}", name)
