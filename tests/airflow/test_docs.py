"""The code in README and docs does what they say: each page's blocks, one after the other, are a DAG file that runs.

Which blocks are part of it, and how a page says that one is not: `tests/docs/pages.py`.
"""

from __future__ import annotations

import ast
import datetime
import inspect
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
from airflow_provider_openai_batches.sql import SQLRequests
from airflow_provider_openai_batches.testing.connection import EmulatorConnection
from airflow_provider_openai_batches.transfers.openai_batches_to_sql import OpenAIBatchResultsToSQLOperator
from tests.airflow.conftest import register
from tests.docs.pages import PAGES, Block, blocks

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection")]

ROOT = Path(__file__).parents[2]
NIGHT = datetime.datetime(2026, 11, 20, 2, tzinfo=datetime.UTC)


@pytest.fixture
def data(tmp_path: Path, input_file: Path) -> Path:
    """What stands where the pages say /data."""
    (tmp_path / "requests.jsonl").write_bytes(input_file.read_bytes())
    return tmp_path


@pytest.fixture
def page(airflow_db: None, data: Path) -> Callable[[str], Page]:
    return lambda name: Page(name, data)


def dag_file(page: str) -> list[Block]:
    """The blocks that are one DAG file."""
    ours = [block for block in blocks(page) if block.language == "python" and block.file is None]
    return [block for block in ours if block.mark in ("", "only parsed")]


def dags(block: Block) -> list[str]:
    """Functions that make the DAGs of a block."""
    functions = [node for node in ast.parse(block.code).body if isinstance(node, ast.FunctionDef)]
    return [node.name for node in functions if any("dag" in ast.unparse(each) for each in node.decorator_list)]


class Page:
    """The names that a page's code leaves behind; paths under /data are the test's."""

    def __init__(self, name: str, data: Path) -> None:
        # Airflow reads the source of a task's function, so there has to be a file.
        file = data / f"{Path(name).stem.replace('-', '_')}_page.py"
        file.write_text("\n".join(block.code for block in dag_file(name)).replace("/data/", f"{data}/"))
        self.names: dict[str, Any] = {"__name__": file.stem, "__file__": str(file)}
        exec(compile(file.read_text(), str(file), "exec", dont_inherit=True), self.names)

    def dag(self, function: str) -> DAG:
        dag: DAG = self.names[function]()
        for task in dag.task_dict.values():
            for interval in ("poll_interval", "poke_interval"):
                if hasattr(task, interval):
                    setattr(task, interval, 0.1)
        register(dag)
        return dag

    def run(self, function: str, logical_date: datetime.datetime = NIGHT) -> dict[str, Any]:
        """Run a DAG; return what its tasks returned."""
        run = self.dag(function).test(logical_date=logical_date)
        assert str(run.state) == "success"
        return {ti.task_id: ti.xcom_pull(task_ids=ti.task_id) for ti in run.get_task_instances()}


def result_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in next(folder.rglob("part-00000.jsonl")).read_text().splitlines()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in PAGES if dag_file(name)])
def test_every_dag_of_a_page_runs(
    name: str, page: Callable[[str], Page], connection: EmulatorConnection, data: Path
) -> None:
    connection("openai_default", conn_type="openai")
    written = page(name)
    for block in dag_file(name):
        assert set(block.parsed) <= set(dags(block)), f"{block} is not where these DAGs are: {block.parsed}"
        for function in set(dags(block)) - set(block.parsed):
            written.run(function)
        for function in block.parsed:
            assert isinstance(written.dag(function), DAG)


def test_a_connection_of_common_ai_leads_to_the_same_service(
    emulator: Emulator, connection: EmulatorConnection, data: Path
) -> None:
    """As docs/migrating-from-common-ai.md says."""
    hook = OpenAIBatchesHook(connection("pydanticai_default", conn_type="pydanticai", extra={"model": "openai:gpt-5"}))
    assert hook.upload_file(data / "requests.jsonl").id == emulator.files()[0]["id"]


RIVALS = ROOT / ".venv-rivals" / "bin" / "python"
CONSTRUCTED = """
import runpy, sys
from airflow.sdk import DAG
made = runpy.run_path(sys.argv[1])
for name in sys.argv[2:]:
    dag = made[name]()
    assert isinstance(dag, DAG) and dag.task_dict, name
    print(*sorted(type(task).__name__ for task in dag.task_dict.values()))
"""


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("docs/migrating-from-openai.md", "OpenAITriggerBatchOperator"),
        ("docs/migrating-from-common-ai.md", "_LLMBatchDecoratedOperator"),
    ],
)
def test_the_other_side_of_a_migration_is_constructed(name: str, operator: str, tmp_path: Path) -> None:
    """With the packages and versions of `make bench`."""
    theirs = [block for block in blocks(name) if block.mark == "rival"]
    assert theirs
    if not RIVALS.exists():
        pytest.skip("the rivals are not installed: make .venv-rivals/.installed")
    file = tmp_path / "theirs.py"
    file.write_text("\n".join(block.code for block in theirs))
    functions = [function for block in theirs for function in dags(block)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "PYTEST"))}
    ended = subprocess.run(
        [str(RIVALS), "-c", CONSTRUCTED, str(file), *functions],
        env=environment | {"AIRFLOW_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert operator in ended.stdout


def test_the_readmes_first_dag(page: Callable[[str], Page], data: Path) -> None:
    page("README.md").run("nightly_labels")
    assert [row["context"]["review"] for row in result_rows(data)] == ["I love it.", "It broke on day one."]


def test_the_readmes_steps(page: Callable[[str], Page], data: Path) -> None:
    page("README.md").run("nightly_answers")
    assert list((data / "answers").glob("*.output.jsonl"))


def test_the_guide_labels_its_reviews(page: Callable[[str], Page], data: Path) -> None:
    page("docs/guide.md").run("label_reviews")
    assert [row["custom_id"] for row in result_rows(data / "labels")] == ["review-1", "review-2"]
    assert {row["status"] for row in result_rows(data / "labels")} == {"succeeded"}


def test_the_guides_estimate_sends_nothing(page: Callable[[str], Page], emulator: Emulator) -> None:
    manifest = page("docs/guide.md").run("what_would_it_cost")["estimate"]
    assert 0 < manifest["estimated_cost"] < 20
    assert emulator.batches() == []


def test_the_events_pages_job_starts_its_reader(page: Callable[[str], Page]) -> None:
    events = page("docs/events.md")
    assert events.run("label_tickets")["label"]["succeeded"] == 1
    # What starts what is seen with a real scheduler and triggerer: tests/system.
    assert list(events.dag("count").timetable.asset_condition.objects) == [events.names["LABELS"]]


def test_the_events_pages_watcher_has_its_filters(page: Callable[[str], Page]) -> None:
    events = page("docs/events.md")
    [watcher] = events.names["ENDED"].watchers
    assert (watcher.trigger.statuses, watcher.trigger.dag_id) == (["expired", "failed"], "label_tickets")
    for function in ("look", "answer"):
        assert isinstance(events.dag(function), DAG)
    assert isinstance(events.names["SAID"], Asset)


def test_the_sources_page_keeps_labels_by_day(page: Callable[[str], Page], data: Path) -> None:
    names = page("docs/sources-and-sinks.md").names
    rows = [{"prompt": f"Review {number}", "context": {"id": number, "day": day}} for number, day in enumerate("aab")]
    with DAG("keeping", schedule=None, start_date=NIGHT) as dag:
        names["keep"](OpenAIBatchOperator(
            task_id="label", requests=rows, model="m", output_path=str(data / "out"), poll_interval=0.1
        ))  # fmt: skip
    register(dag)
    assert str(dag.test(logical_date=NIGHT).state) == "success"
    assert sorted(file.parent.name for file in data.glob("labels-by-day/*/part-00000.parquet")) == ["day=a", "day=b"]


def test_the_sources_page_knows_every_parameter() -> None:
    text = (ROOT / "docs/sources-and-sinks.md").read_text()
    described = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))
    for kind in (SQLRequests, OpenAIBatchResultsToSQLOperator):
        parameters = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs", "results"}
        assert parameters <= described | {"conn_id"}


def test_the_guide_knows_every_parameter_of_a_job() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\|", (ROOT / "docs/guide.md").read_text(), re.MULTILINE)
    signature = inspect.signature(OpenAIBatchOperator.__init__).parameters.values()
    ours = {
        parameter.name: "" if parameter.default is parameter.empty else json_like(parameter.default)
        for parameter in signature
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert dict(rows) == ours | {"conn_id": '"openai_batches_default"'}


def json_like(default: object) -> str:
    return f'"{default}"' if isinstance(default, str) else str(default)


def test_the_answer_caches_page_does_what_it_says(page: Callable[[str], Page], emulator: Emulator) -> None:
    answers = page("docs/answer-cache.md")
    first = answers.run("label_everything")["label"]
    assert (first["reused"]["cache"], first["reused"]["duplicates"], len(first["batch_ids"])) == (0, 1, 1)
    second = answers.run("label_everything", NIGHT + datetime.timedelta(days=1))["label"]
    assert (second["reused"]["cache"], second["reused"]["duplicates"], second["batch_ids"]) == (2, 1, [])
    assert second["succeeded"] == 3
    assert len(emulator.batches()) == 1
