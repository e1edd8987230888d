"""Spans where OpenTelemetry is set up, and nothing where it is not."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import NotFoundError
from airflow_provider_openai_batches.api.tracing import SPANS, traced

pytest.importorskip("opentelemetry.sdk")

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}\n'


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, bool]]:
    """Name, parent's name and failure of each span that ended."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)

    class Ended(list[tuple[str, str | None, bool]]):
        def read(self) -> list[tuple[str, str | None, bool]]:
            done = exporter.get_finished_spans()
            names = {span.context.span_id: span.name for span in done}
            parents = [names.get(span.parent.span_id) if span.parent else None for span in done]
            return [(span.name, up, not span.status.is_ok) for span, up in zip(done, parents, strict=True)]

    return Ended()


def test_calls_that_move_data_or_cost_money_are_spans(client: BatchClient, spans: list, tmp_path: Path) -> None:
    file = client.upload_file(lambda: io.BytesIO(LINE), filename="a.jsonl")
    client.create_batch(file.id, "/v1/embeddings")
    client.download_file(file.id, tmp_path / "content")
    client.retrieve_file(file.id)
    with pytest.raises(NotFoundError):
        client.download_file("file-nope", tmp_path / "content")
    assert spans.read() == [
        ("openai_batches.upload", None, False),
        ("openai_batches.create", None, False),
        ("openai_batches.download", None, False),
        ("openai_batches.download", None, True),
    ]


def test_a_span_is_a_child_of_what_goes_on(spans: list) -> None:
    @traced("openai_batches.land")
    def outer() -> int:
        return inner(1, two=2)

    @traced("openai_batches.download")
    def inner(one: int, *, two: int) -> int:
        return one + two

    assert outer() == 3
    assert spans.read() == [
        ("openai_batches.download", "openai_batches.land", False),
        ("openai_batches.land", None, False),
    ]


def test_without_opentelemetry_calls_are_just_calls() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from airflow_provider_openai_batches.api.tracing import traced\n"
        "assert traced('x')(lambda: 5)() == 5"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_documented_spans_are_those_that_are_made() -> None:
    root = Path(__file__).parents[2]
    documented = (root / "docs" / "telemetry.md").read_text().partition("## Traces")[2]
    sources = "".join(path.read_text() for path in (root / "airflow_provider_openai_batches").rglob("*.py"))
    for name in SPANS:
        assert f"`{name}`" in documented
        assert f'@traced("{name}")' in sources
    assert sources.count("@traced(") == len(SPANS)
