"""Every example DAG, run from file to answers."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_openai_batches.emulator import Emulator
from tests.airflow.conftest import register

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection")]

ROOT = Path(__file__).parents[2]
NIGHT = datetime.datetime(2026, 11, 20, 2, tzinfo=datetime.UTC)


@pytest.fixture
def run_example(airflow_db: None) -> Callable[..., dict[str, Any]]:
    """Run an example DAG with other params; returns what its tasks returned."""

    def run(name: str, **params: Any) -> dict[str, Any]:
        dag = load(ROOT / "example_dags" / f"{name}.py")
        # The examples look every few seconds and are patient for half a minute; here seconds would add up.
        for task in dag.task_dict.values():
            for attribute, seconds in (("poll_interval", 0.1), ("timeout", 1.0)):
                if getattr(task, attribute, None):
                    setattr(task, attribute, seconds)
        register(dag)
        run = dag.test(logical_date=NIGHT, run_conf=params)
        assert str(run.state) == "success", {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
        return {(ti.task_id, ti.map_index): ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index)
                for ti in run.get_task_instances()}  # fmt: skip

    return run


def load(path: Path) -> DAG:
    module = load_module(path)
    [dag] = [value for value in vars(module).values() if isinstance(value, DAG)] or [module_dag(module)]
    return dag


def load_module(path: Path) -> Any:
    spec = spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def module_dag(module: Any) -> DAG:
    """Build the DAG again: the files call their DAG function without keeping what it returns."""
    return getattr(module, module.__name__.removeprefix("example_"))()


def test_label_reviews(run_example: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    returned = run_example("label_reviews", outbox=str(tmp_path))
    assert sum(returned["count_by_topic", -1].values()) == 4
    rows = [json.loads(line) for line in next(tmp_path.rglob("part-00000.jsonl")).read_text().splitlines()]
    assert [row["context"] for row in rows] == [{"id": number} for number in (1, 2, 3, 4)]
    assert {row["output"]["sentiment"] for row in rows} <= {"positive", "neutral", "negative"}


def test_embed_table(run_example: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    returned = run_example("embed_table", outbox=str(tmp_path))
    assert returned["measure", -1] == 1536
    assert returned["embed", -1]["succeeded"] == 20
    assert list(tmp_path.rglob("part-00000.parquet"))


def test_nightly_incremental(run_example: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    returned = run_example("nightly_incremental", outbox=str(tmp_path))
    assert returned["report", -1].startswith("8 of 8 tickets")


def test_mapped_jobs(run_example: Callable[..., dict[str, Any]], tmp_path: Path, emulator: Emulator) -> None:
    returned = run_example("mapped_jobs", outbox=str(tmp_path))
    assert returned["total", -1] == 9
    assert len(emulator.batches()) == 3


def test_nightly_files(run_example: Callable[..., dict[str, Any]], tmp_path: Path, input_file: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for number in range(2):
        (inbox / f"{number}.jsonl").write_bytes(input_file.read_bytes())
    returned = run_example("nightly_files", inbox=str(inbox), outbox=str(tmp_path / "outbox"))
    assert returned["report", -1] == {"total": 6, "completed": 6, "failed": 0}


def test_cancel_when_late_keeps_what_was_in_time(
    run_example: Callable[..., dict[str, Any]], tmp_path: Path, input_file: Path
) -> None:
    returned = run_example("cancel_when_late", source=str(input_file), outbox=str(tmp_path))
    assert returned["share_answered", -1] == 1.0


def test_cancel_when_late_uses_what_is_finished(
    run_example: Callable[..., dict[str, Any]], tmp_path: Path, input_file: Path, emulator: Emulator
) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "stuck", "status": "in_progress"}})
    returned = run_example("cancel_when_late", source=str(input_file), outbox=str(tmp_path))
    assert returned["wait", -1] is None
    assert returned["cancel", -1]["status"] == "cancelled"
    assert returned["share_answered", -1] == 1.0


def test_started_by_events(airflow_db: None, tmp_path: Path) -> None:
    # What starts what is seen with a real scheduler and triggerer: tests/system.
    module = load_module(ROOT / "example_dags" / "started_by_events.py")
    label, count, note = module.label_tickets(), module.count_ticket_labels(), module.note_ended_batches()
    for task in label.task_dict.values():
        task.poll_interval = 0.1
    register(label)
    assert str(label.test(logical_date=NIGHT, run_conf={"outbox": str(tmp_path)}).state) == "success"
    assert len(next(tmp_path.rglob("part-00000.jsonl")).read_text().splitlines()) == 3
    register(count)
    assert str(count.test(logical_date=NIGHT).state) == "success"
    register(note)
    assert [watcher.trigger.dag_id for watcher in module.ENDED.watchers] == ["label_tickets"]
