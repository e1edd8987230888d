"""What all operators share."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_openai_batches.hooks.openai_batches import DEFAULT_CONN_ID, OpenAIBatchesHook

if TYPE_CHECKING:
    from airflow_provider_openai_batches.telemetry import Meter


class OpenAIBatchesOperator(BaseOperator):
    """An operator with a connection.

    :param conn_id: Airflow connection
    """

    ui_color = "#d9f2ea"

    def __init__(self, *, conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id

    @cached_property
    def hook(self) -> OpenAIBatchesHook:
        """The hook of this operator's connection."""
        return OpenAIBatchesHook(self.conn_id)

    def meter(self, endpoint: str | None) -> Meter:
        """Return what counts for this task.

        :param endpoint: where its requests go
        """
        from airflow_provider_openai_batches.telemetry import Meter

        return Meter(self.dag_id, self.conn_id, endpoint)
