"""Links from a task: only where they lead somewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_openai_batches.links import browser_url, dashboard_url
from airflow_provider_openai_batches.operators.openai_batches import (
    OpenAIBatchCancelOperator,
    OpenAIBatchDownloadOperator,
    OpenAIBatchOperator,
    OpenAIBatchSubmitOperator,
)
from airflow_provider_openai_batches.provider_info import get_provider_info
from airflow_provider_openai_batches.sensors.openai_batches import OpenAIBatchSensor

OPENAI = "https://api.openai.com/v1"


def links(operator: Any) -> dict[str, str]:
    return {link.name: link.get_link(operator, ti_key=None) for link in operator.operator_extra_links}


def download(batch_id: str = "batch_1", output_path: str = "/data", **fields: Any) -> OpenAIBatchDownloadOperator:
    return OpenAIBatchDownloadOperator(task_id="t", batch_id=batch_id, output_path=output_path, **fields)


def test_openais_batches_have_a_page_at_openai(connection: Callable[..., None]) -> None:
    connection(host=OPENAI)
    assert links(download("batch/1"))["Batch at OpenAI"] == "https://platform.openai.com/batches/batch%2F1"
    connection(host="")
    assert links(download())["Batch at OpenAI"] == "https://platform.openai.com/batches/batch_1"


@pytest.mark.parametrize(
    "base_url",
    [
        "http://127.0.0.1:8080/v1",
        "https://api.groq.com/openai/v1",
        "https://api.openai.com.evil.example/v1",
        "http://[::1]/v1",
    ],
)
def test_batches_of_other_services_have_none(base_url: str) -> None:
    assert dashboard_url(base_url, "batch_1") is None
    assert dashboard_url(OPENAI, "batch_1")


def test_a_connection_that_cannot_be_read_costs_the_link_and_nothing_else(connection: Callable[..., None]) -> None:
    assert links(download(conn_id="nowhere"))["Batch at OpenAI"] == ""
    connection(password="")
    assert links(download())["Batch at OpenAI"] == ""


def test_the_connection_is_read_once(connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    connection(host=OPENAI)
    operator = download()
    operator.hook.get_conn()
    monkeypatch.delenv("AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT")
    assert links(operator)["Batch at OpenAI"]


@pytest.mark.parametrize(
    ("base_url", "path"),
    [(None, ""), ("http://localhost:8080", ""), ("https://example.com/team/airflow/", "/team/airflow")],
)
def test_the_page_of_airflows_ui_is_opened_at_the_batch(
    connection: None, monkeypatch: pytest.MonkeyPatch, base_url: str | None, path: str
) -> None:
    if base_url is None:
        monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)
    else:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    page = f"{path}/plugin/openai-batches?conn_id=openai_batches_default"
    assert links(download("batch_1&x=<y>"))["OpenAI Batches"] == f"{page}&batch=batch_1%26x%3D%3Cy%3E"
    job = OpenAIBatchOperator(task_id="t", requests=["a"], output_path="/data", model="m")
    assert links(job)["OpenAI Batches"] == page


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/a/b", "https://s3.console.aws.amazon.com/s3/buckets/bucket?prefix=a/b/"),
        ("s3://aws_default@bucket/a b/", "https://s3.console.aws.amazon.com/s3/buckets/bucket?prefix=a%20b/"),
        ("s3://bucket", "https://s3.console.aws.amazon.com/s3/buckets/bucket"),
        ("gs://bucket/a/b", "https://console.cloud.google.com/storage/browser/bucket/a/b"),
        ("gs://gcp@bucket", "https://console.cloud.google.com/storage/browser/bucket"),
        ("https://files.example/a/", "https://files.example/a/"),
        ("https://user:secret@files.example/a", None),
        ("https://files.example/a?signature=secret", None),
        ("javascript:alert(1)", None),
        ("file:///data", None),
        ("/data", None),
        ("abfs://container/a", None),
        ("http://[broken", None),
        ("s3:///key", None),
        ("", None),
    ],
)
def test_where_a_browser_finds_results(path: str, url: str | None) -> None:
    assert browser_url(path) == url


def test_results_are_linked_by_what_makes_them(connection: None) -> None:
    job = OpenAIBatchOperator(task_id="t", requests=["a"], output_path="s3://bucket/labels/", model="m")
    bucket = "https://s3.console.aws.amazon.com/s3/buckets/bucket"
    assert links(job)["Result files"] == f"{bucket}?prefix=labels/results/"
    assert links(download(output_path="s3://bucket/labels"))["Result files"] == f"{bucket}?prefix=labels/"
    assert links(download())["Result files"] == ""


def test_every_link_is_known_to_airflow() -> None:
    known = {name.rpartition(".")[2] for name in get_provider_info()["extra-links"]}
    tasks = (
        OpenAIBatchCancelOperator,
        OpenAIBatchDownloadOperator,
        OpenAIBatchOperator,
        OpenAIBatchSensor,
        OpenAIBatchSubmitOperator,
    )
    used = {type(link).__name__ for task in tasks for link in task.operator_extra_links}
    assert used == known
    for task in tasks:
        names = [link.xcom_key for link in task.operator_extra_links]
        assert len(set(names)) == len(names) >= 2
