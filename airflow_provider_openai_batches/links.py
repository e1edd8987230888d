"""Links from a task to what it made.

Airflow asks for each in the worker at the end of every execution, deferral included, and stores the answer; an empty
one is not shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseOperatorLink, conf

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import TaskInstanceKey
    from airflow.sdk import BaseOperator

PAGE_ROUTE = "openai-batches"
"""Where Airflow's UI has the plugin's page: ``/plugin/<route>``."""


class OpenAIBatchLink(BaseOperatorLink):
    """Opens the batch in OpenAI's dashboard; there is none for a batch of another service."""

    name = "Batch at OpenAI"

    @property
    def xcom_key(self) -> str:
        """Where Airflow keeps the link."""
        return "openai_batch_link"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL, or nothing before the operator knows its batch."""
        batch_id = getattr(operator, "batch_id", None)
        if not batch_id:
            return ""
        try:
            # The client that the task worked with. One that had nothing to ask yet reads its connection for this.
            base_url = operator.hook.get_conn().settings.base_url  # type: ignore[attr-defined]
        except (AirflowNotFoundException, OpenAIBatchesError):
            return ""
        return dashboard_url(base_url, batch_id) or ""


class OpenAIBatchesPageLink(BaseOperatorLink):
    """Opens the page "OpenAI Batches" of Airflow's UI, at the batch if there is one."""

    name = "OpenAI Batches"

    @property
    def xcom_key(self) -> str:
        """Where Airflow keeps the link."""
        return "openai_batches_page_link"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the page's path on whatever host the user sees Airflow."""
        batch_id = getattr(operator, "batch_id", None)
        query = {"conn_id": operator.conn_id, **({"batch": batch_id} if batch_id else {})}  # type: ignore[attr-defined]
        return f"{base_path()}/plugin/{PAGE_ROUTE}?{urlencode(query)}"


class OpenAIBatchResultsLink(BaseOperatorLink):
    """Opens the place of the result files, if a browser can: a bucket in S3 or GCS, or a web address."""

    name = "Result files"

    @property
    def xcom_key(self) -> str:
        """Where Airflow keeps the link."""
        return "openai_batch_results_link"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL, or nothing for a path that only workers can open."""
        return browser_url(str(getattr(operator, "results_path", ""))) or ""


def dashboard_url(base_url: str, batch_id: str) -> str | None:
    """Return where OpenAI shows a batch; None for another service.

    :param base_url: of the API
    """
    if urlsplit(base_url).hostname != "api.openai.com":
        return None
    return f"https://platform.openai.com/batches/{quote(batch_id, safe='')}"


def browser_url(path: str) -> str | None:
    """Return where a browser shows a directory; None if it cannot.

    :param path: URI, in which a connection may be named: ``s3://conn_id@bucket/key``
    """
    try:
        parts = urlsplit(path)
        host = parts.hostname
    except ValueError:
        return None
    bucket, key = parts.netloc.rpartition("@")[2], quote(parts.path.strip("/"))
    match parts.scheme:
        case "s3" | "s3a" if bucket:
            prefix = f"?prefix={key}/" if key else ""
            return f"https://s3.console.aws.amazon.com/s3/buckets/{quote(bucket)}{prefix}"
        case "gs" | "gcs" if bucket:
            return f"https://console.cloud.google.com/storage/browser/{quote(bucket)}" + (f"/{key}" if key else "")
        # An address with a password, or signed, is no one's to see.
        case "http" | "https" if host and "@" not in parts.netloc and not parts.query:
            return path
    return None


def base_path() -> str:
    """Return the path below which Airflow is served, without a slash at its end; usually empty."""
    return urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
