"""What OpenLineage is told, through its own provider's extractor and serializer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.lineage import Written, lineage, place
from airflow_provider_openai_batches.operators.openai_batches import (
    OpenAIBatchDownloadOperator,
    OpenAIBatchOperator,
    OpenAIBatchSubmitOperator,
    OpenAIBatchUploadOperator,
)
from airflow_provider_openai_batches.transfers.openai_batches_to_parquet import OpenAIBatchResultsToParquetOperator
from airflow_provider_openai_batches.transfers.openai_batches_to_sql import OpenAIBatchResultsToSQLOperator
from tests.airflow.conftest import Attempts
from tests.databases import CONN_ID, Database, postgresql
from tests.transfers.rows import answered, failed, written

__all__ = ["postgresql"]

base = pytest.importorskip("airflow.providers.openlineage.extractors.base")
pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection", "no_pauses")]


def told(operator: Any) -> dict[str, Any]:
    """What the provider would send of a task that succeeded, as JSON."""
    from openlineage.client.serde import Serde

    found = base.DefaultExtractor(operator).extract_on_complete(None)
    assert found is not None
    facets = {name: json.loads(Serde.to_json(facet)) for name, facet in found.run_facets.items()}
    for facet in facets.values():
        assert facet.pop("_producer")
        assert facet.pop("_schemaURL").startswith("https://")
    return {
        "inputs": [(one.namespace, one.name) for one in found.inputs],
        "outputs": {
            (one.namespace, one.name): json.loads(Serde.to_json(one))["outputFacets"]["outputStatistics"].get(
                "rowCount"
            )
            for one in found.outputs
        },
        **facets,
    }


def job(**parameters: Any) -> OpenAIBatchOperator:
    usual = {"task_id": "job", "model": "gpt-4o-mini", "poll_interval": 0.05, "deferrable": False}
    return OpenAIBatchOperator(**usual | parameters)


def test_a_job_reads_a_file_and_writes_its_rows(
    connection: Callable[..., None], attempts: Attempts, tmp_path: Path
) -> None:
    connection(extra={"prices": {"gpt-4o-mini": {"input": 10.0, "output": 20.0}}})
    source = tmp_path / "rows.csv"
    source.write_text("prompt\na\nb\nc\n")
    operator = job(requests=str(source), output_path=str(tmp_path / "out"))
    manifest = operator.execute(attempts.next())
    found = told(operator)
    assert found["inputs"] == [("file", str(source))]
    assert found["outputs"] == {("file", str(tmp_path / "out")): 3}
    assert found["externalQuery"] == {
        "externalQueryId": ",".join(manifest["batch_ids"]),
        "source": "openai_batches",
    }
    assert found["openai_batches"] == {
        "endpoint": "/v1/chat/completions",
        "models": ["gpt-4o-mini"],
        "batches": 1,
        "rows": {"succeeded": 3},
        "inputTokens": manifest["usage"]["input_tokens"],
        "cachedInputTokens": 0,
        "outputTokens": manifest["usage"]["output_tokens"],
        "reasoningTokens": 0,
        "costUsd": manifest["cost"],
    }


def test_rows_from_a_function_are_no_dataset_and_no_text(attempts: Attempts, tmp_path: Path) -> None:
    operator = job(requests=["a secret"], output_path=str(tmp_path))
    operator.execute(attempts.next())
    assert told(operator)["inputs"] == []
    assert "secret" not in json.dumps(told(operator)["openai_batches"])


def test_a_job_that_failed_tells_its_batches(emulator: Emulator, attempts: Attempts, tmp_path: Path) -> None:
    emulator.add_fault({"on": {"custom_id": "row-0"}, "do": {"outcome": "error"}})
    operator = job(requests=["a", "b"], output_path=str(tmp_path))
    with pytest.raises(AirflowFailException):
        operator.execute(attempts.next())
    assert told(operator)["openai_batches"]["rows"] == {"succeeded": 1, "failed": 1}
    waiting = job(requests=["a", "b"], output_path=str(tmp_path / "other"), deferrable=True)
    with pytest.raises(TaskDeferred):
        waiting.execute(Attempts(store=None, run_id="other").next())
    assert told(waiting)["externalQuery"]["externalQueryId"] == waiting.batch_id


def test_single_steps(attempts: Attempts, input_file: Path, tmp_path: Path) -> None:
    context = attempts.next()
    upload = OpenAIBatchUploadOperator(task_id="upload", source=str(input_file))
    submit = OpenAIBatchSubmitOperator(
        task_id="submit",
        input_file_id=upload.execute(context),
        endpoint="/v1/chat/completions",
        wait_for_completion=True,
        deferrable=False,
        poll_interval=0.05,
    )
    batch_id = submit.execute(context)
    download = OpenAIBatchDownloadOperator(task_id="download", batch_id=batch_id, output_path=str(tmp_path / "out"))
    path = download.execute(context)["output_path"]
    assert told(upload) == {"inputs": [("file", str(input_file))], "outputs": {}}
    query = {"externalQueryId": batch_id, "source": "openai_batches"}
    assert told(submit) == {"inputs": [], "outputs": {}, "externalQuery": query}
    found = told(download)
    assert found["outputs"] == {("file", path): 3}
    assert found["externalQuery"] == query
    assert found["openai_batches"]["models"] == ["gpt-4o-mini"]
    assert found["openai_batches"]["rows"]["succeeded"] == 3


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://aws_default@bucket/a/b/", ("s3://bucket", "a/b")),
        ("s3a://bucket/a", ("s3://bucket", "a")),
        ("gs://bucket/a.jsonl", ("gs://bucket", "a.jsonl")),
        ("gs://bucket", ("gs://bucket", "/")),
        ("/data/a/", ("file", "/data/a")),
        ("file:///data/a", ("file", "/data/a")),
        ("https://user:secret@files.example/a", ("https://files.example", "a")),
    ],
)
def test_a_dataset_is_named_by_where_it_is(path: str, expected: tuple[str, str]) -> None:
    assert place(path) == expected


def test_a_job_of_a_thousand_batches_names_some() -> None:
    found = lineage(batch_ids=[f"batch_{number}" for number in range(1_000)])
    assert found is not None
    assert found.run_facets["externalQuery"].externalQueryId.count(",") == 99


def test_without_the_provider_there_is_no_lineage_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)
    assert lineage(read=["/a"], written=[Written("/b", 1)]) is None


def test_parsing_a_dag_imports_nothing_of_it() -> None:
    code = (
        "import sys; from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator\n"
        "heavy = {'openlineage', 'airflow.providers.openlineage.extractors'}\n"
        "assert not (heavy | {'airflow_provider_openai_batches.lineage'}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_answers_in_a_table_and_a_data_set(postgresql: Database, tmp_path: Path) -> None:
    postgresql.run("CREATE TABLE labels (id INTEGER PRIMARY KEY, label TEXT)")
    results = written(tmp_path, [answered(1), answered(2), failed(3)])
    columns = {"id": "context.id", "label": "output"}
    table = OpenAIBatchResultsToSQLOperator(
        task_id="table", results=results, sql_conn_id=CONN_ID, table="labels", key="id", columns=columns
    )
    there = str(tmp_path / "labels")
    files = OpenAIBatchResultsToParquetOperator(task_id="files", results=results, path=there, columns=columns)
    table.execute({})
    files.execute({})
    where = postgresql.connection
    name = f"{where['schema']}.public.labels"
    assert told(table) == {
        "inputs": [("file", str(tmp_path))],
        "outputs": {(f"postgres://{where['host']}:{where['port']}", name): 2},
    }
    assert told(files)["outputs"] == {("file", there): 2}
