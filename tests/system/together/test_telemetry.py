"""What a team's collectors get of a job, from a real Airflow: metrics, spans and lineage."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from airflow_provider_openai_batches.api.tracing import SPANS
from demo.airflow import Airflow
from tests.collector import Collector
from tests.stores import NAME
from tests.system.dags.reuse import ROWS
from tests.system.together.conftest import STORES, TICKETS
from tests.system.together.run import Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

STORE = STORES[0]


def test_metrics_of_a_job_arrive(airflow: Airflow, with_cache: dict[str, Run], collector: Collector) -> None:
    run = with_cache[STORE]
    manifest = run.finish()
    conn_id = run.params["conn_id"]
    tags = {"dag_id": run.dag_id, "conn_id": conn_id}

    def costs() -> int:
        return collector.metrics("openai_batches.cost_microusd", "endpoint", **tags)["/v1/chat/completions"]

    airflow.processes.wait_for(costs, timeout_s=30, what="the metrics")
    assert costs() == round(manifest["cost"] * 1_000_000)
    assert collector.metrics("openai_batches.created", "model", **tags) == {"gpt-4o-mini": 1}
    assert collector.metrics("openai_batches.ended", "status", **tags) == {"completed": 1}
    assert collector.metrics("openai_batches.rows", "outcome", **tags)["succeeded"] >= ROWS
    tokens = collector.metrics("openai_batches.tokens", "kind", **tags)
    assert tokens == {"input": manifest["usage"]["input_tokens"], "output": manifest["usage"]["output_tokens"]}
    polls = collector.metrics("openai_batches.poll_calls", "conn_id", conn_id=conn_id)
    looks = run.service.count("GET", "/v1/batches") + run.service.count("GET", "/v1/batches/{batch_id}")
    assert 0 < polls[conn_id] <= looks


def test_calls_of_a_job_are_spans_of_its_task(
    airflow: Airflow, with_cache: dict[str, Run], collector: Collector
) -> None:
    with_cache[STORE].finish()

    if not find_spec("airflow.sdk.observability"):
        pytest.skip("this Airflow traces no tasks (3.1)")

    def parents() -> dict[str, set[str | None]]:
        spans = collector.spans()
        # Only the first run of this DAG has sent rows without a batch.
        run = {span.trace for span in spans if span.name == "openai_batches.direct"}
        return {name: {span.parent for span in spans if span.name == name and span.trace in run} for name in SPANS}

    def have_arrived() -> bool:
        return all(found and None not in found for found in parents().values())

    airflow.processes.wait_for(have_arrived, timeout_s=30, what="the spans")
    inside = {"openai_batches.download": {"openai_batches.land"}}
    assert parents() == {name: inside.get(name, {"worker.label"}) for name in SPANS}


def test_lineage_leads_from_the_rows_to_the_results(
    airflow: Airflow, from_bucket: dict[str, Run], collector: Collector
) -> None:
    manifest = from_bucket[STORE].finish()
    ended = airflow.processes.wait_for(
        lambda: [event for event in collector.lineage("in_bucket.label") if event["eventType"] == "COMPLETE"],
        timeout_s=30,
        what="the lineage",
    )
    [event] = ended
    bucket = f"{STORE}://{NAME}"
    assert [(read["namespace"], read["name"]) for read in event["inputs"]] == [(bucket, "in/rows.jsonl")]
    [written] = event["outputs"]
    assert (written["namespace"], written["name"]) == (bucket, "out")
    assert written["outputFacets"]["outputStatistics"]["rowCount"] == len(TICKETS)
    facets = event["run"]["facets"]
    assert facets["externalQuery"]["externalQueryId"].split(",") == manifest["batch_ids"]
    assert facets["openai_batches"]["rows"] == {"succeeded": len(TICKETS)}
