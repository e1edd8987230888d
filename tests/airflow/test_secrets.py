"""No secret of the connection is found anywhere after a passing and a failing run."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import DAG

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.operators.openai_batches import (
    OpenAIBatchDownloadOperator,
    OpenAIBatchSubmitOperator,
    OpenAIBatchUploadOperator,
)
from airflow_provider_openai_batches.sensors.openai_batches import OpenAIBatchSensor
from tests.airflow.conftest import CONNECTION_VARIABLE, Attempts, connection_json, register

# Put together here, since Airflow stores the source of a DAG's file.
KEY = "-".join(("sk", "recognisable", "4f1d0c9b7a"))
HEADER_SECRET = "-".join(("gateway", "secret", "8812e6"))
QUERY_SECRET = "+".join(("query/secret", "5521c0"))
SECRETS = (KEY, HEADER_SECRET, QUERY_SECRET)
EXTRA = {"headers": {"X-Gateway": HEADER_SECRET}, "query": {"sig": QUERY_SECRET}}
ECHO = json.dumps({"error": {"message": f"Bad credentials {KEY} {HEADER_SECRET} {QUERY_SECRET}", "code": KEY}})
"""What some gateways answer."""


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(speed=0, api_key=KEY) as server:
        yield server


@pytest.fixture
def secret_connection(connection: Callable[..., None]) -> None:
    connection(password=KEY, extra=EXTRA)


def assert_no_secret(text: str | bytes, where: str) -> None:
    content = text.encode() if isinstance(text, str) else text
    for secret in SECRETS:
        assert secret.encode() not in content, f"{secret} is in {where}"


def pipeline(name: str, input_file: Path, tmp_path: Path) -> DAG:
    with DAG(name, schedule=None, start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)) as dag:
        upload = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file))
        submit = OpenAIBatchSubmitOperator(
            task_id="submit",
            input_file_id=upload.output,
            endpoint="/v1/chat/completions",
            wait_for_completion=True,
            deferrable=True,
            poll_interval=0.05,
        )
        wait = OpenAIBatchSensor(task_id="wait", batch_id=submit.output, deferrable=True, poll_interval=0.05)
        wait >> OpenAIBatchDownloadOperator(task_id="download", batch_id=submit.output, output_path=str(tmp_path))
    return dag


ON_BATCHES = {"path": "/batches"}
FAULTS: dict[str, dict[str, Any] | None] = {
    "nothing fails": None,
    "gateway echoes the credentials": {"status": 401, "body": ECHO},
    "connection is cut": {"drop": "before"},
    "redirect": {"redirect": "http://127.0.0.1:9/elsewhere"},
    "page for people": {"status": 200, "body": ECHO[1:]},
}


def run_pipelines(input_file: Path, tmp_path: Path) -> None:
    """Run the pipeline with each fault and print how it ended: in a process of its own, whose output is all logs."""
    BatchClient.__init__.__kwdefaults__["sleep"] = lambda seconds: None
    for fault, effect in FAULTS.items():
        with Emulator(speed=1250, api_key=KEY) as emulator:
            os.environ[CONNECTION_VARIABLE] = connection_json(emulator, password=KEY, extra=EXTRA)
            if effect is not None:
                emulator.add_fault({"on": ON_BATCHES, "do": effect, "times": None})
            dag = pipeline(f"secrets_{fault.replace(' ', '_')}", input_file, tmp_path)
            register(dag)
            print(f"{fault}: {dag.test().state}", flush=True)


@pytest.mark.airflow
def test_no_secret_in_logs_output_and_database(
    airflow_db: None, airflow_home: Path, input_file: Path, tmp_path: Path
) -> None:
    script = "import sys, pathlib, tests.airflow.test_secrets as t; t.run_pipelines(*map(pathlib.Path, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(input_file), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
        timeout=100,
    )
    for fault, effect in FAULTS.items():
        assert f"{fault}: {'failed' if effect else 'success'}".encode() in done.stdout
    # The tracebacks are there to be searched.
    for error in (b"AuthenticationError", b"APIConnectionError", b"InvalidResponseError"):
        assert error in done.stdout
    assert_no_secret(done.stdout, "the output")
    # XComs, rendered fields, the state store and serialized DAGs are all in the one database file.
    for path in (path for path in airflow_home.rglob("*") if path.is_file()):
        assert_no_secret(path.read_bytes(), str(path))


@pytest.mark.usefixtures("secret_connection")
def test_no_secret_in_the_arguments_of_triggers(input_file: Path) -> None:
    file_id = OpenAIBatchesHook().upload_file(input_file).id
    submit = OpenAIBatchSubmitOperator(
        task_id="submit",
        input_file_id=file_id,
        endpoint="/v1/chat/completions",
        wait_for_completion=True,
        deferrable=True,
    )
    with pytest.raises(TaskDeferred) as deferred:
        submit.execute(Attempts(store=None).next())
    assert_no_secret(repr(deferred.value.trigger.serialize()), "the trigger")


@pytest.mark.usefixtures("secret_connection")
def test_no_secret_in_what_is_shown_of_objects() -> None:
    hook = OpenAIBatchesHook()
    client = hook.get_conn()
    for shown in (hook, client, client.settings, vars(client)):
        assert_no_secret(repr(shown), f"the repr of {type(shown).__name__}")


@pytest.mark.parametrize(
    "fields",
    [
        {"extra": {**EXTRA, "timeout": "x"}},
        {"extra": {**EXTRA, "headers": HEADER_SECRET}},
        {"extra": {"headers": {"X": f"{HEADER_SECRET}\n"}, "query": [QUERY_SECRET]}},
        {"password": f"{KEY} {KEY}"},
        {"host": f"http://user:{KEY}@127.0.0.1:9/v1"},
        {"host": f"user:{KEY}@api.openai.com"},
        {"host": f"https://127.0.0.1:9/v1?key={KEY}"},
    ],
)
def test_no_secret_in_errors_about_the_connection(connection: Callable[..., None], fields: dict[str, Any]) -> None:
    connection(**{"password": KEY, "extra": EXTRA, **fields})
    good, said = OpenAIBatchesHook().test_connection()
    assert not good
    assert_no_secret(said, "the error")
