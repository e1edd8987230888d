"""What a team has its Airflow send: metrics to StatsD, spans to OpenTelemetry, lineage to a file."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

HOST = "127.0.0.1"


class Span(NamedTuple):
    """A span that ended.

    :param parent: the name of its parent; None if that has not arrived
    :param trace: id of what all spans of a DAG run have in common
    """

    name: str
    parent: str | None
    trace: bytes


class Collector:
    """Takes in what arrives while the context is open.

    :param lineage_file: where OpenLineage writes
    """

    def __init__(self, lineage_file: Path) -> None:
        self._lineage_file = lineage_file
        self._lines: list[str] = []
        self._spans: list[Any] = []
        self._statsd = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._statsd.bind((HOST, 0))
        spans = self._spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                content = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                    spans.extend(span for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._threads = [threading.Thread(target=work) for work in (self._server.serve_forever, self._receive)]

    @property
    def environment(self) -> dict[str, str]:
        """The settings by which Airflow finds it; lineage is told of DAGs that ask for it."""
        return {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": HOST,
            "AIRFLOW__METRICS__STATSD_PORT": str(self._statsd.getsockname()[1]),
            "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
            "AIRFLOW__OPENLINEAGE__SELECTIVE_ENABLE": "True",
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "file", "log_file_path": str(self._lineage_file), "append": True}
            ),
            "AIRFLOW__TRACES__OTEL_ON": "True",
            "OTEL_TRACES_EXPORTER": "otlp_proto_http",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{self._server.server_port}",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        }

    def metrics(self, name: str, tag: str, **tags: str) -> Counter[str]:
        """Add up the amounts of a metric.

        :param tag: for each value of this one
        :param tags: only those with these
        """
        amounts: Counter[str] = Counter()
        for line in list(self._lines):
            found, _, rest = line.partition(",")
            if found == f"airflow.{name}":
                labels, value = rest.rpartition("|")[0].rsplit(":", 1)
                theirs = dict(label.split("=", 1) for label in labels.split(","))
                if tags.items() <= theirs.items():
                    amounts[theirs[tag]] += int(float(value))
        return amounts

    def spans(self) -> list[Span]:
        """List the spans that have arrived."""
        there = list(self._spans)
        names = {span.span_id: span.name for span in there}
        return [Span(span.name, names.get(span.parent_span_id), span.trace_id) for span in there]

    def lineage(self, job: str) -> list[dict[str, Any]]:
        """List the events of a DAG or task.

        :param job: ``dag_id`` or ``dag_id.task_id``
        """
        if not self._lineage_file.exists():
            return []
        events = map(json.loads, self._lineage_file.read_text().splitlines())
        return [event for event in events if event["job"]["name"] == job]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._statsd.sendto(b"", self._statsd.getsockname())
        for thread in self._threads:
            thread.join()
        self._server.server_close()
        self._statsd.close()

    def _receive(self) -> None:
        while packet := self._statsd.recv(65_536):
            self._lines += packet.decode().splitlines()
