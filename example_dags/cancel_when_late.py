"""Cancel on a condition: a batch that is late is cancelled, and what it finished by then is used.

A sensor that runs out of time is skipped (`soft_fail`). Only then does `cancel` run; `download` follows either way,
since a cancelled batch keeps its finished answers, and they are paid for.
"""

from __future__ import annotations

from tempfile import gettempdir
from typing import Any

from airflow.sdk import Param, TriggerRule, dag, task

from airflow_provider_openai_batches.operators.openai_batches import (
    OpenAIBatchCancelOperator,
    OpenAIBatchDownloadOperator,
    OpenAIBatchSubmitOperator,
    OpenAIBatchUploadOperator,
)
from airflow_provider_openai_batches.sensors.openai_batches import OpenAIBatchSensor

PATIENCE_S = 6.0
"""Shorter than a batch of the emulator takes, so that the example shows itself; think of hours."""


@dag(
    schedule=None,
    tags=["openai-batches"],
    params={
        "source": Param(f"{gettempdir()}/openai-batches-inbox/requests.jsonl", type="string"),
        "outbox": Param(f"{gettempdir()}/openai-batches-outbox", type="string", description="Where answers go."),
        "endpoint": Param("/v1/chat/completions", type="string"),
    },
)
def cancel_when_late() -> None:
    """### Wait so long and no longer, keep what is finished."""
    upload = OpenAIBatchUploadOperator(task_id="upload", source="{{ params.source }}")
    submit = OpenAIBatchSubmitOperator(task_id="submit", input_file_id=upload.output, endpoint="{{ params.endpoint }}")
    wait = OpenAIBatchSensor(
        task_id="wait",
        batch_id=submit.output,
        deferrable=True,
        poll_interval=2,
        timeout=PATIENCE_S,
        soft_fail=True,
    )
    # The id comes by template, not by `submit.output`: that would make `submit` an upstream, which is never skipped.
    cancel = OpenAIBatchCancelOperator(
        task_id="cancel",
        batch_id="{{ ti.xcom_pull(task_ids='submit') }}",
        wait_for_cancellation=True,
        deferrable=True,
        poll_interval=2,
        trigger_rule=TriggerRule.ALL_SKIPPED,
    )
    download = OpenAIBatchDownloadOperator(
        task_id="download",
        batch_id=submit.output,
        output_path="{{ params.outbox }}/{{ run_id }}",
        trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
    )

    @task
    def share_answered(downloaded: dict[str, Any]) -> float:
        """Say how much of the batch there was time for."""
        counts = downloaded["request_counts"]
        return counts["completed"] / counts["total"]

    wait >> cancel >> download
    share_answered(download.output)


cancel_when_late()
