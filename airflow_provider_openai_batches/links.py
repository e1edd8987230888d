"""Links from a task to what it made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import TaskInstanceKey
    from airflow.sdk import BaseOperator


class OpenAIBatchLink(BaseOperatorLink):
    """Opens the batch in OpenAI's dashboard.

    Airflow asks for it in the worker at the end of every execution, deferral included, and stores the answer.
    """

    name = "Batch at OpenAI"

    @property
    def xcom_key(self) -> str:
        """Where Airflow keeps the link."""
        return "openai_batch_link"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL, or nothing before the operator knows its batch."""
        batch_id = getattr(operator, "batch_id", None)
        return f"https://platform.openai.com/batches/{batch_id}" if batch_id else ""
