"""The same work done three ways, each in a process of its own: ``python -m benchmarks.contenders NAME ARGUMENTS``.

The work: prompts from a generator are bought as one batch of chat completions, and the answers become a file of
results. An operator runs as in Airflow's task runner: its template fields are rendered, ``execute()`` until it defers,
its trigger until the event, then a fresh operator is rendered and its ``execute_complete()`` called. Left out is what
Airflow does around that: no scheduler, no XCom, no rendered fields for the UI.

What is imported on first use depends on what a worker has loaded already: a job of one row comes first, and figures
count from after it. What the process took until then is a figure of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.measuring import add_fault, batches, calls, metered, pass_time

MODEL = "gpt-4o-mini"
ENDPOINT = "/v1/chat/completions"
BARE = "bare msgspec and requests"
OURS = "OpenAIBatchOperator"
COMMON_AI = "common-ai: LLMBatchOperator"
COMMON_AI_TASK = "common-ai: @task.llm_batch"
OFFICIAL = "openai: OpenAITriggerBatchOperator"


class Service:
    """The emulator, whose own work is not on our clock.

    :param base_url: where it listens
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.worked_s = 0.0

    def finish_batches(self) -> None:
        """Let all batches end."""
        began = time.perf_counter()
        pass_time(self.base_url)
        self.worked_s += time.perf_counter() - began


# --- the ways ------------------------------------------------------------------------------------------------------


def bare(service: Service, place: Path, rows: int, size: int) -> None:
    """Do it by hand, in one go and without a safety net: what any way costs at least."""
    import msgspec
    import requests
    from requests_toolbelt import MultipartEncoder

    class AnswerId(msgspec.Struct):
        custom_id: str

    base_url = service.base_url
    source, output, results = (place / name for name in ("source", "output", "results"))
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(AnswerId).decode
    with source.open("wb") as lines:
        for index, prompt in enumerate(prompts(rows, size)):
            body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
            line = {"custom_id": f"row-{index}", "method": "POST", "url": ENDPOINT, "body": body}
            lines.write(encode(line) + b"\n")
    with requests.Session() as http:
        with source.open("rb") as upload:
            parts = MultipartEncoder({"purpose": "batch", "file": ("source.jsonl", upload, "application/jsonl")})
            headers = {"Content-Type": parts.content_type}
            file = http.post(f"{base_url}/files", data=parts, headers=headers, timeout=600).json()
        order = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        batch = http.post(f"{base_url}/batches", json=order, timeout=60).json()
        service.finish_batches()
        batch = http.get(f"{base_url}/batches/{batch['id']}", timeout=60).json()
        url = f"{base_url}/files/{batch['output_file_id']}/content"
        with http.get(url, stream=True, timeout=600) as answer, output.open("wb") as sink:
            for chunk in answer.iter_content(1 << 20):
                sink.write(chunk)
    offsets, lengths, at = [0] * rows, [0] * rows, 0
    with output.open("rb") as answers:
        for answer_line in answers:
            index = int(decode(answer_line).custom_id[4:])
            offsets[index], lengths[index] = at, len(answer_line)
            at += len(answer_line)
    with output.open("rb") as answers, results.open("wb") as sink:
        for index in range(rows):
            answers.seek(offsets[index])
            sink.write(answers.read(lengths[index]))


def ours(service: Service, place: Path, rows: int, size: int) -> None:
    """Run our operator. It reads the generator once, and its results are in input order."""
    from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator

    def operator() -> Any:
        return OpenAIBatchOperator(
            task_id="label",
            requests=lambda: prompts(rows, size),
            output_path=str(place),
            model=MODEL,
            conn_id="ours",
            max_failed=0,
        )

    manifest = run_task(operator, service)
    assert manifest["succeeded"] == rows


def common_ai(service: Service, place: Path, rows: int, size: int) -> None:
    """Run common-ai's operator. It takes a list, and its results come in the order of the service's file."""
    from airflow.providers.common.ai.operators.llm_batch import LLMBatchOperator

    def operator() -> Any:
        return LLMBatchOperator(task_id="label", requests=list(prompts(rows, size)), **_common_ai_options(place))

    assert run_task(operator, service)["counts"]["succeeded"] == rows


def common_ai_task(service: Service, place: Path, rows: int, size: int) -> None:
    """Run common-ai's decorator, which keeps Airflow from rendering the prompts, and makes them once."""
    from airflow.providers.common.ai.decorators.llm_batch import llm_batch_task
    from airflow.sdk import DAG

    def label() -> list[str]:
        return list(prompts(rows, size))

    def operator() -> Any:
        with DAG("benchmark"):
            made = llm_batch_task(label, **_common_ai_options(place))()
        return made.operator

    assert run_task(operator, service)["counts"]["succeeded"] == rows


def _common_ai_options(place: Path) -> dict[str, Any]:
    return {
        "result_path": f"file://{place}",
        "llm_conn_id": "common_ai",
        "model_id": f"openai:{MODEL}",
        "fail_on_partial_error": True,
        "deferrable": True,
    }


def official(service: Service, place: Path, rows: int, size: int) -> None:
    """Run the official provider's operator, which takes a file that someone has uploaded; we do here."""
    from airflow.providers.openai.hooks.openai import OpenAIHook
    from airflow.providers.openai.operators.openai import OpenAITriggerBatchOperator

    source = place / "source.jsonl"
    with source.open("w") as lines:
        for index, prompt in enumerate(prompts(rows, size)):
            body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
            line = {"custom_id": f"row-{index}", "method": "POST", "url": ENDPOINT, "body": body}
            lines.write(json.dumps(line) + "\n")
    file_id = OpenAIHook(conn_id="official").upload_file(str(source), purpose="batch").id

    def operator() -> Any:
        return OpenAITriggerBatchOperator(
            task_id="label", file_id=file_id, endpoint=ENDPOINT, conn_id="official", deferrable=True
        )

    run_task(operator, service)


WAYS: dict[str, Callable[[Service, Path, int, int], None]] = {
    BARE: bare,
    OURS: ours,
    COMMON_AI: common_ai,
    COMMON_AI_TASK: common_ai_task,
    OFFICIAL: official,
}


PROSE = """Dear team,

the parcel came on Tuesday - "fragile", it said, and so it was: two of six cups are broken. Your café sends lovely
things, but Herr Müller at the counter (No. 12) told me that's not his to mend; who'd pay the 19,90 € then?
I'd like new cups, please, or my money back. Thanks, Zoë
"""
"""What people write: quotes, line breaks, and now and then a letter beyond ASCII."""


def prompts(rows: int, size: int) -> Iterator[str]:
    """Prompts of about ``size`` bytes, each with a number of its own."""
    filler = (PROSE * (size // len(PROSE) + 1))[:size]
    return (f"{index} {filler}" for index in range(rows))


# --- a task --------------------------------------------------------------------------------------------------------


def run_task(operator: Callable[[], Any], service: Service, attempts: int = 2) -> Any:
    """Run a task as Airflow does, with one retry; return what it returns.

    :param operator: makes the operator, anew for each process that Airflow would run it in
    """
    for attempt in range(1, attempts + 1):
        try:
            return _run_attempt(operator, service, attempt)
        except Exception:
            if attempt == attempts:
                raise
    raise AssertionError


def _run_attempt(operator: Callable[[], Any], service: Service, attempt: int) -> Any:
    from airflow.exceptions import TaskDeferred

    ti = SimpleNamespace(
        dag_id="benchmark",
        task_id="label",
        run_id="run",
        map_index=-1,
        try_number=attempt,
        max_tries=1,
        xcom_push=lambda **_: None,
    )
    context = {"ti": ti, "task_instance": ti}

    def rendered() -> Any:
        task = operator()
        task.render_template_fields(context)
        return task

    try:
        return rendered().execute(context)
    except TaskDeferred as deferral:
        deferred = deferral
    service.finish_batches()
    while True:
        event = asyncio.run(_first_event(deferred.trigger))
        try:
            return getattr(rendered(), deferred.method_name)(context, event=event)
        except TaskDeferred as deferral:
            deferred = deferral


async def _first_event(trigger: Any) -> Any:
    events = trigger.run()
    try:
        return (await anext(events)).payload
    finally:
        await events.aclose()


def main() -> None:
    """Do the work that the arguments name, and print what it took as JSON."""
    way, given = WAYS[sys.argv[1]], json.loads(sys.argv[2])
    base_url, rows, size = given["base_url"], given["rows"], given["size"]
    for name, conn_type in (("OURS", "openai_batches"), ("COMMON_AI", "pydanticai"), ("OFFICIAL", "openai")):
        connection = {"conn_type": conn_type, "host": base_url, "password": "sk-benchmark-0123456789"}
        os.environ[f"AIRFLOW_CONN_{name}"] = json.dumps(connection)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as place:
        way(Service(base_url), Path(first), 1, 10)
        for rule in given["faults"]:
            add_fault(base_url, rule)
        service = Service(base_url)
        calls_before, batches_before = sum(calls(base_url).values()), batches(base_url)
        began = time.perf_counter()
        first_s = time.process_time()
        with metered() as used:
            way(service, Path(place), rows, size)
        used["first_s"] = first_s
        used["wall_s"] = time.perf_counter() - began - service.worked_s
        # Listing them is a call as well.
        used["calls"] = sum(calls(base_url).values()) - calls_before - 1
        used["batches"] = batches(base_url) - batches_before
    print(json.dumps(used))


if __name__ == "__main__":
    main()
