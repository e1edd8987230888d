"""The operations, run as Airflow runs them: a process that takes one order a line, and answers with one.

    python -m benchmarks.faults.operations

A task's template fields are rendered, ``execute()`` runs until it defers, its trigger is rebuilt from what it
serializes to and runs until its event, then a fresh operator resumes. A failed task is retried once, after five
minutes. Where that pays for nothing anew, a task that failed for good is cleared an hour later, when the fault is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.contenders import ENDPOINT, MODEL
from benchmarks.faults import virtual_time
from benchmarks.faults.task import TaskInstance

JOB = "OpenAIBatchOperator"
SUBMIT = "OpenAIBatchSubmitOperator"
SENSOR = "OpenAIBatchSensor"
UPLOAD = "OpenAIBatchUploadOperator"
DOWNLOAD = "OpenAIBatchDownloadOperator"
CANCEL = "OpenAIBatchCancelOperator"
TRIGGER = "OpenAIBatchTrigger"
WATCHER = "OpenAIBatchFinishedTrigger"
COMMON_AI = "common-ai: LLMBatchOperator"
OFFICIAL = "openai: OpenAITriggerBatchOperator"

CLEARED = (JOB, DOWNLOAD, COMMON_AI)
"""What a user may clear without buying again what was bought."""

PROMPTS = ("say red", "say green", "say blue", "say gold")
TIMEOUT_S = 26 * 3600
RETRY_DELAY_S = 300
_CLEARED_AFTER_S = 3600
_WATCHED_FOR = 250
"""Looks."""

_LONGEST_CASE_S = 14 * 86_400
_KEY = "sk-benchmark-0123456789"


# --- the operations ------------------------------------------------------------------------------------------------


def job(order: dict[str, Any]) -> Any:
    """Make the operator of a whole job."""
    from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator

    return OpenAIBatchOperator(
        task_id="label", requests=list(PROMPTS), output_path=order["place"], model=MODEL, conn_id="ours",
        poll_interval=order["poll_interval"], timeout=TIMEOUT_S,
    )  # fmt: skip


def submit(order: dict[str, Any]) -> Any:
    """Make the operator that creates a batch and waits for it."""
    from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchSubmitOperator

    return OpenAIBatchSubmitOperator(
        task_id="label", input_file_id=order["file_id"], endpoint=ENDPOINT, conn_id="ours", wait_for_completion=True,
        deferrable=True, poll_interval=order["poll_interval"], timeout=TIMEOUT_S,
    )  # fmt: skip


def sensor(order: dict[str, Any]) -> Any:
    """Make the sensor."""
    from airflow_provider_openai_batches.sensors.openai_batches import OpenAIBatchSensor

    return OpenAIBatchSensor(
        task_id="label", batch_id=order["batch_id"], conn_id="ours", deferrable=True,
        poll_interval=order["poll_interval"], timeout=TIMEOUT_S,
    )  # fmt: skip


def upload(order: dict[str, Any]) -> Any:
    """Make the operator that uploads."""
    from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchUploadOperator

    return OpenAIBatchUploadOperator(task_id="label", source=order["source"], conn_id="ours")


def download(order: dict[str, Any]) -> Any:
    """Make the operator that downloads."""
    from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchDownloadOperator

    return OpenAIBatchDownloadOperator(
        task_id="label", batch_id=order["batch_id"], output_path=order["place"], conn_id="ours"
    )


def cancel(order: dict[str, Any]) -> Any:
    """Make the operator that cancels, and waits until that is done."""
    from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchCancelOperator

    return OpenAIBatchCancelOperator(
        task_id="label", batch_id=order["batch_id"], conn_id="ours", wait_for_cancellation=True, deferrable=True
    )


def common_ai(order: dict[str, Any]) -> Any:
    """Make common-ai's operator of a whole job. Without ``fail_on_partial_error`` it succeeds whatever its rows do."""
    from airflow.providers.common.ai.operators import llm_batch

    # It writes down when it submitted, and waits until a day later.
    llm_batch.datetime = _EmulatorDatetime
    return llm_batch.LLMBatchOperator(
        task_id="label", requests=list(PROMPTS), result_path=f"file://{order['place']}", llm_conn_id="common_ai",
        model_id=f"openai:{MODEL}", fail_on_partial_error=True, deferrable=True,
        poll_interval=order["poll_interval"], timeout=TIMEOUT_S,
    )  # fmt: skip


def official(order: dict[str, Any]) -> Any:
    """Make the official provider's operator, which creates a batch and waits for it."""
    from airflow.providers.openai.operators.openai import OpenAITriggerBatchOperator

    return OpenAITriggerBatchOperator(
        task_id="label", file_id=order["file_id"], endpoint=ENDPOINT, conn_id="official", deferrable=True,
        poll_interval=order["poll_interval"], timeout=TIMEOUT_S,
    )  # fmt: skip


class _EmulatorDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        assert virtual_time.current is not None
        return datetime.datetime.fromtimestamp(virtual_time.current.now, tz)


TASKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    JOB: job,
    SUBMIT: submit,
    SENSOR: sensor,
    UPLOAD: upload,
    DOWNLOAD: download,
    CANCEL: cancel,
    COMMON_AI: common_ai,
    OFFICIAL: official,
}


def trigger_alone(order: dict[str, Any]) -> Any:
    """Wait for a batch in a trigger of nobody's."""
    from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger

    assert virtual_time.current is not None
    event = _event(
        OpenAIBatchTrigger(
            conn_id="ours", batch_ids=[order["batch_id"]], poll_interval=order["poll_interval"],
            deadline=virtual_time.current.now + TIMEOUT_S,
        )
    )  # fmt: skip
    if event["status"] != "reached":
        raise RuntimeError(f"event {event['status']}: {event['message']}")
    return event


def watcher(order: dict[str, Any]) -> Any:
    """Watch for hours: the batch has to be told once."""
    from airflow_provider_openai_batches.triggers.openai_batch_finished import OpenAIBatchFinishedTrigger

    told: list[str] = []
    trigger = OpenAIBatchFinishedTrigger(conn_id="ours", poll_interval=order["poll_interval"])

    async def watch() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WATCHED_FOR * order["poll_interval"]):
                async for event in trigger.run():
                    told.append(event.payload["batch_id"])  # noqa: PERF401 - it has to have what came until then

    virtual_time.run(watch())
    if told != [order["batch_id"]]:
        raise RuntimeError(f"the batch was told {told.count(order['batch_id'])} times, others {len(set(told))}")
    return told


TRIGGERS = {TRIGGER: trigger_alone, WATCHER: watcher}


# --- a case --------------------------------------------------------------------------------------------------------


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out an order; return what it came to, and all that was told meanwhile.

    :param order: ``operation``, ``base_url``, ``now``, ``heals``, ``poll_interval``, and what the operation needs
    """
    operation, cleared, endless = order["operation"], False, False
    clock = virtual_time.current = virtual_time.EmulatorTime(order["base_url"], order["now"], _LONGEST_CASE_S)
    for name, conn_type in (("OURS", "openai_batches"), ("COMMON_AI", "pydanticai"), ("OFFICIAL", "openai")):
        connection = {"conn_type": conn_type, "host": order["base_url"], "password": _KEY}
        os.environ[f"AIRFLOW_CONN_{name}"] = json.dumps(connection)
    task = TaskInstance(lambda: TASKS[operation](order), _event, lambda: clock.sleep(RETRY_DELAY_S), clock.now)
    try:
        if operation in TRIGGERS:
            try:
                task.value = TRIGGERS[operation](order)
            except RuntimeError as error:
                task.messages.append(str(error))
        elif not task.run() and operation in CLEARED:
            cleared = True
            if order["heals"]:
                clock.tell("DELETE", "faults")
            clock.sleep(_CLEARED_AFTER_S)
            task.clear()
            task.run()
    except virtual_time.DoesNotEndError:
        endless = True
    finally:
        virtual_time.current = None
    told = {"value": task.value, "messages": task.messages, "xcoms": task.xcoms, "waited_for": task.waited_for}
    return {**told, "cleared": cleared, "endless": endless}


def _event(trigger: Any) -> Any:
    path, arguments = trigger.serialize()
    assert virtual_time.current is not None
    if path.endswith(".DateTimeTrigger"):
        # Airflow's own reads a clock that cannot be moved.
        virtual_time.current.sleep(arguments["moment"].timestamp() - virtual_time.current.now)
        return arguments["moment"]

    async def first() -> Any:
        async with contextlib.aclosing(type(trigger)(**arguments).run()) as events:
            return (await anext(events)).payload

    return virtual_time.run(first())


def main() -> None:
    """Answer orders until there are no more."""
    # Airflow logs to standard output, which is for the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    virtual_time.install()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line)), default=str), file=answers)


if __name__ == "__main__":
    main()
