"""The assets that batches and jobs tell Airflow about, so that DAGs can be scheduled on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.providers.common.compat.sdk import Asset, AssetAlias

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

_FACTS = ("job_id", "results", "requests", "succeeded", "failed", "cost", "finished_at")


def webhook_asset(conn_id: str) -> Asset:
    """Return the asset that has an event for each webhook about the end of a batch of this connection.

    A DAG that names it in ``schedule`` starts when OpenAI says that a batch has ended. The event's ``extra`` holds
    ``conn_id``, ``batch_id``, ``status``, ``type``, ``created_at`` and ``webhook_id``.

    :param conn_id: Airflow connection, the one in the endpoint's URL
    """
    return Asset(name=f"openai_batches/{conn_id}", uri=f"openai-batches://{quote(conn_id, safe='')}")


def announce_results(context: Context, outlets: list[Any], manifest: Mapping[str, Any]) -> None:
    """Say in the events of a task's outlets where a job's results are and what they hold.

    Airflow makes the events when the task succeeds: one for each asset among the outlets, which only lacks the facts,
    and for an alias one of the asset that it is given here, whose URI is that of the results. The event's ``extra`` is
    enough for ``read_results``.

    :param context: of the task
    :param outlets: of the task
    :param manifest: of the job, which is finished
    """
    path = manifest["output_path"]
    facts = {"output_path": path} | {name: manifest[name] for name in _FACTS if name in manifest}
    for outlet in outlets:
        if isinstance(outlet, Asset):
            context["outlet_events"][outlet].extra.update(facts)
        elif isinstance(outlet, AssetAlias):
            context["outlet_events"][outlet].add(Asset(uri=_uri(path)), extra=facts)


def _uri(path: str) -> str:
    """The results' place without the connection that a path may name: it is the same place with another."""
    parts = urlsplit(path)
    if not parts.scheme:
        return f"file://{path}"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
