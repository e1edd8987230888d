"""@task.openai_batch: a function gives the rows, the task the answers."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import DAG, Asset, task

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.results import read_results
from tests.airflow.conftest import Attempts, register

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection", "no_pauses")]

NIGHT = datetime.datetime(2026, 11, 20, 2, tzinfo=datetime.UTC)
LITERAL = "{{ boom }} {% raw %}"
"""What Jinja would refuse."""

Answers = Callable[[Callable[[], Any]], dict[int, list[Any]]]


@pytest.fixture
def answers(airflow_db: None) -> Answers:
    """Run a DAG of the tasks a function makes; returns the contexts of the rows of `label`, by map index."""

    def run(make_tasks: Callable[[], Any]) -> dict[int, list[Any]]:
        with DAG("decorated", schedule=None, start_date=NIGHT) as dag:
            make_tasks()
        register(dag)
        run = dag.test(logical_date=NIGHT)
        assert str(run.state) == "success", {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
        labels = [ti for ti in run.get_task_instances() if ti.task_id == "label"]
        manifests = {ti.map_index: ti.xcom_pull(task_ids="label", map_indexes=ti.map_index) for ti in labels}
        return {
            index: [row["context"]["text"] for row in read_results(manifest)] for index, manifest in manifests.items()
        }

    return run


def row(text: str) -> dict[str, Any]:
    return {"prompt": text, "context": {"text": text}}


@pytest.fixture
def usual(tmp_path: Path) -> dict[str, Any]:
    """Parameters of the task; the path holds the date and the map index."""
    path = f"{tmp_path}/{{{{ ds }}}}/{{{{ ti.map_index }}}}"
    return {"task_id": "label", "model": "m", "poll_interval": 0.05, "output_path": path}


@pytest.mark.parametrize("form", ["list", "generator"])
def test_function_returns_or_yields_rows_that_are_never_rendered(
    form: str, answers: Answers, usual: dict[str, Any], tmp_path: Path
) -> None:
    def returning() -> list[Any]:
        return [row(LITERAL)]

    def yielding() -> Iterator[Any]:
        yield row(LITERAL)

    decorate = task.openai_batch(**usual)
    assert answers(decorate(returning if form == "list" else yielding)) == {-1: [LITERAL]}
    [sent] = tmp_path.glob("2026-11-20/-1/_job/shard-00000/round-1.requests.jsonl")
    assert json.loads(sent.read_text())["body"]["messages"][0]["content"] == LITERAL


def test_arguments_come_from_upstream_as_they_are(answers: Answers, usual: dict[str, Any]) -> None:
    def tasks() -> None:
        @task
        def reviews() -> list[str]:
            return [LITERAL, "b"]

        @task.openai_batch(**usual)
        def label(texts: list[str], *, suffix: str) -> Iterator[Any]:
            yield from (row(text + suffix) for text in texts)

        label(reviews(), suffix="!")

    assert answers(tasks) == {-1: [LITERAL + "!", "b!"]}


def test_function_gets_the_context_it_asks_for(answers: Answers, usual: dict[str, Any]) -> None:
    def tasks() -> None:
        @task.openai_batch(**usual)
        def label(number: int, ds: str | None = None, ti: Any = None, **context: Any) -> list[Any]:
            return [row(f"{number} {ds} {ti.task_id} {context['dag'].dag_id}")]

        label(7)

    assert answers(tasks) == {-1: ["7 2026-11-20 label decorated"]}


def test_expanded_over_upstream_each_has_a_job_of_its_own(
    answers: Answers, usual: dict[str, Any], emulator: Emulator
) -> None:
    def tasks() -> None:
        @task
        def languages() -> list[str]:
            return ["French", LITERAL]

        @task.openai_batch(**usual)
        def label(language: str) -> list[Any]:
            return [row(language)]

        label.expand(language=languages())

    assert answers(tasks) == {0: ["French"], 1: [LITERAL]}
    assert len(emulator.batches()) == 2


def test_partial_and_expand(answers: Answers, usual: dict[str, Any]) -> None:
    def tasks() -> None:
        @task.openai_batch(**usual)
        def label(word: str, number: int) -> Iterator[Any]:
            yield row(f"{word} {number}")

        label.partial(word="take").expand(number=[1, 2])

    assert answers(tasks) == {0: ["take 1"], 1: ["take 2"]}


def test_override_changes_the_task_and_the_job(usual: dict[str, Any], tmp_path: Path) -> None:
    @task.openai_batch(**usual)
    def label() -> list[Any]:
        return ["a"]

    with DAG("overridden", schedule=None, start_date=NIGHT) as dag:
        label()
        label.override(task_id="other", retries=7, output_path=str(tmp_path / "other"), max_attempts=1)()
    assert (dag.get_task("label").retries, dag.get_task("other").retries) == (0, 7)
    assert dag.get_task("other").output_path == str(tmp_path / "other")
    assert (dag.get_task("label").max_attempts, dag.get_task("other").max_attempts) == (3, 1)


def test_outlets_are_updated_and_the_next_task_reads_the_rows(
    answers: Answers, usual: dict[str, Any], tmp_path: Path
) -> None:
    counted = tmp_path / "counted"

    def tasks() -> None:
        @task.openai_batch(**usual, outlets=[Asset(f"decorated_{tmp_path.name}")])
        def label() -> list[Any]:
            return [row("a"), row("b")]

        @task
        def count(manifest: dict[str, Any]) -> None:
            counted.write_text(str(sum(1 for _ in read_results(manifest))))

        count(label())

    answers(tasks)
    assert counted.read_text() == "2"


def test_dag_is_the_same_at_each_parse(usual: dict[str, Any]) -> None:
    from tests.airflow.test_job import serialized

    def parsed() -> dict[str, Any]:
        with DAG("parsed", schedule=None, start_date=NIGHT) as dag:

            @task.openai_batch(**usual)
            def label(language: str) -> list[Any]:
                return [language]

            label("English")
            label.override(task_id="mapped").expand(language=["a", "b"])
        return serialized(dag)

    assert parsed() == parsed()


def test_decorator_is_known_to_airflow_by_its_name() -> None:
    try:
        from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime as Providers
    except ImportError:  # Airflow 3.1
        from airflow.providers_manager import ProvidersManager as Providers
    assert Providers().taskflow_decorators["openai_batch"].__name__ == "openai_batch_task"


# --- once per plan ---------------------------------------------------------------------------------------------------


class Calls:
    """A decorated function that counts its calls; each operator is made anew, as in another process."""

    def __init__(self, usual: dict[str, Any]) -> None:
        self.usual = usual
        self.count = 0
        self.rows: list[Any] = ["a", "b"]

    def operator(self) -> Any:
        def label() -> Iterator[Any]:
            self.count += 1
            yield from self.rows

        with DAG("called", schedule=None, start_date=NIGHT):
            return task.openai_batch(**self.usual)(label)().operator


@pytest.fixture
def calls(usual: dict[str, Any], tmp_path: Path) -> Calls:
    return Calls(usual | {"output_path": str(tmp_path)})


def run(calls: Calls, context: Any, run_trigger: Callable[..., list[Any]]) -> dict[str, Any]:
    """Run an attempt to its end. One that finds all batches over does not defer."""
    try:
        return calls.operator().execute(context)
    except TaskDeferred as deferral:
        deferred = deferral
    while True:
        [event] = run_trigger(deferred.trigger)
        try:
            return calls.operator().execute_complete(context, event)
        except TaskDeferred as again:
            deferred = again


def test_function_is_called_once_per_plan(
    calls: Calls, attempts: Attempts, run_trigger: Callable[..., list[Any]], emulator: Emulator
) -> None:
    with pytest.raises(TaskDeferred):
        calls.operator().execute(attempts.next())
    # The worker died: a retry.
    assert run(calls, attempts.next(), run_trigger)["succeeded"] == 2
    assert calls.count == 1

    attempts.clear()
    calls.rows.append("c")
    assert run(calls, attempts.next(), run_trigger)["kept"] == 2
    assert calls.count == 2
    assert len(emulator.batches()) == 2


@pytest.mark.parametrize("returned", [None, "a prompt", {"prompt": "a"}, 7])
def test_function_that_returns_no_rows_is_told_so(
    calls: Calls, attempts: Attempts, emulator: Emulator, returned: Any
) -> None:
    with DAG("called", schedule=None, start_date=NIGHT):
        operator = task.openai_batch(**calls.usual)(lambda: returned)().operator
    with pytest.raises(InvalidInputError, match=r"^requests: "):
        operator.execute(attempts.next())
    assert emulator.calls == []
