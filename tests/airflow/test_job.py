"""OpenAIBatchOperator: one task from rows to answers, through retries, clears, kills and time-outs."""

from __future__ import annotations

import datetime
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath, TaskDeferred
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import DAG, Asset, task

from airflow_provider_openai_batches.api.errors import (
    AuthenticationError,
    InvalidInputError,
    OpenAIBatchesError,
    WaitTimeoutError,
)
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.jobs.ledger import LedgerError
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
from airflow_provider_openai_batches.results import read_results, read_results_frame
from tests.airflow.conftest import Attempts, Store, new_dag_bag, register
from tests.airflow.test_examples import ROOT
from tests.conftest import API_KEY

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection", "no_pauses")]

NIGHT = datetime.datetime(2026, 11, 20, 2, tzinfo=datetime.UTC)
STUCK = {"outcome": "stuck", "status": "validating"}
LITERAL = "{{ boom }} {% raw %} {# gone #}"
"""What Jinja would refuse."""

RunTrigger = Callable[..., list[Any]]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run_dag(airflow_db: None) -> Callable[..., Any]:
    """Run a DAG made in a test, with options of `dag.test()`."""

    def run(dag: DAG, **options: Any) -> Any:
        register(dag)
        return dag.test(**options)

    return run


class Task:
    """One task instance, run attempt after attempt as Airflow does it: a fresh operator in each segment.

    :param parameters: of the operator; those given to :meth:`run` change them for one attempt
    """

    def __init__(self, attempts: Attempts, run_trigger: RunTrigger, parameters: dict[str, Any]) -> None:
        self.attempts = attempts
        self.parameters = parameters
        self.segments = 0
        self._run_trigger = run_trigger

    def operator(self, **changes: Any) -> OpenAIBatchOperator:
        self.segments += 1
        return OpenAIBatchOperator(task_id="label", **self.parameters | changes)

    def begin(self, **changes: Any) -> TaskDeferred:
        """Begin an attempt, and return what it defers with."""
        with pytest.raises(TaskDeferred) as deferred:
            self.operator(**changes).execute(self.attempts.next())
        return deferred.value

    def run(self, **changes: Any) -> dict[str, Any]:
        """Run an attempt to its end."""
        context = self.attempts.next()
        try:
            return self.operator(**changes).execute(context)
        except TaskDeferred as deferred:
            return self.resume(deferred, context, **changes)

    def resume(self, deferred: TaskDeferred, context: Any, **changes: Any) -> dict[str, Any]:
        """Go on with an attempt to its end."""
        while True:
            assert deferred.method_name == "execute_complete"
            assert not deferred.kwargs, "dag.test() and some Airflow versions lose them"
            [event] = self._run_trigger(deferred.trigger)
            try:
                return self.operator(**changes).execute_complete(context, event)
            except TaskDeferred as again:
                deferred = again


@pytest.fixture
def new_task(attempts: Attempts, run_trigger: RunTrigger, tmp_path: Path) -> Callable[..., Task]:
    def make(**parameters: Any) -> Task:
        usual = {"requests": ["a", "b", "c"], "output_path": str(tmp_path), "model": "m", "poll_interval": 0.05}
        return Task(attempts, run_trigger, usual | parameters)

    return make


class Source:
    """A function that returns rows, counting its calls."""

    def __init__(self, *rows: Any) -> None:
        self.rows = list(rows)
        self.calls = 0

    def __call__(self) -> Iterator[Any]:
        self.calls += 1
        yield from self.rows


def bought(emulator: Emulator) -> Counter[tuple[str, str]]:
    """How many batches were created per shard and round."""
    pairs = [batch["metadata"] for batch in emulator.batches()]
    return Counter((each["airflow_shard"], each["airflow_round"]) for each in pairs)


def requests_sent(emulator: Emulator) -> list[int]:
    """Sizes of the batches, oldest first."""
    return [batch["request_counts"]["total"] for batch in reversed(emulator.batches())]


def wait_until(condition: Callable[[], object], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# --- rows in ---------------------------------------------------------------------------------------------------------


def rows() -> Iterator[dict[str, Any]]:
    yield {"prompt": LITERAL, "context": {"text": LITERAL}}


def add_task(form: str, dag: DAG, inbox: Path, output_path: str) -> None:
    """Add the task that gets one row, holding LITERAL as prompt and as context, in one of the forms a row can have."""
    mapped = f"{output_path}/{{{{ ti.map_index }}}}"
    usual: dict[str, Any] = {"task_id": "label", "model": "m", "poll_interval": 0.05}

    @task
    def upstream() -> list[Any]:
        return list(rows())

    @task
    def nested() -> list[Any]:
        return [list(rows())]

    match form:
        case "list":
            OpenAIBatchOperator(requests=list(rows()), output_path=output_path, **usual)
        case "generator function":
            OpenAIBatchOperator(requests=rows, output_path=output_path, **usual)
        case "generator":
            OpenAIBatchOperator(requests=rows(), output_path=output_path, **usual)
        case "XCom":
            OpenAIBatchOperator(requests=upstream(), output_path=output_path, **usual)
        case "JSONL" | "CSV":
            path = f"{inbox}/{{{{ ds }}}}.{form.lower()}"
            OpenAIBatchOperator(requests=path, output_path=output_path, **usual)
        case "ObjectStoragePath":
            path = ObjectStoragePath(f"file://{inbox}") / "{{ ds }}.jsonl"
            OpenAIBatchOperator(requests=path, output_path=output_path, **usual)
        case "path from XCom":

            @task
            def path_of(ds: str | None = None) -> str:
                return f"{inbox}/{ds}.jsonl"

            OpenAIBatchOperator(requests=path_of(), output_path=output_path, **usual)
        case "mapped":
            OpenAIBatchOperator.partial(output_path=mapped, **usual).expand(requests=[list(rows())])
        case "mapped XCom":
            OpenAIBatchOperator.partial(output_path=mapped, **usual).expand(requests=nested())
        case "partial":
            OpenAIBatchOperator.partial(requests=list(rows()), **usual).expand(output_path=[output_path])
        case "partial XCom":
            OpenAIBatchOperator.partial(requests=upstream(), **usual).expand(output_path=[output_path])


FORMS = [
    "list",
    "generator function",
    "generator",
    "XCom",
    "JSONL",
    "CSV",
    "ObjectStoragePath",
    "path from XCom",
    "mapped",
    "mapped XCom",
    "partial",
    "partial XCom",
]


@pytest.mark.parametrize("form", FORMS)
def test_row_arrives_as_it_is_in_whatever_form(form: str, run_dag: Callable[..., Any], tmp_path: Path) -> None:
    inbox, output_path = tmp_path / "inbox", tmp_path / "labels"
    inbox.mkdir()
    (inbox / "2026-11-20.jsonl").write_text(json.dumps({"prompt": LITERAL, "text": LITERAL}))
    (inbox / "2026-11-20.csv").write_text(f'prompt,text\n"{LITERAL}","{LITERAL}"\n')
    with DAG("rows_in", schedule=None, start_date=NIGHT) as dag:
        add_task(form, dag, inbox, f"{output_path}/{{{{ ds }}}}")
    run = run_dag(dag, logical_date=NIGHT)
    assert str(run.state) == "success"
    [part] = output_path.glob("2026-11-20/**/part-00000.jsonl")
    [result] = [json.loads(line) for line in part.read_text().splitlines()]
    assert result["context"] == {"text": LITERAL}
    [sent] = part.parents[1].glob("_job/shard-00000/round-1.requests.jsonl")
    assert json.loads(sent.read_text())["body"]["messages"] == [{"role": "user", "content": LITERAL}]


@pytest.mark.parametrize("form", ["literal", "XCom"])
def test_airflow_shows_how_many_rows_and_none_of_them(form: str, run_dag: Callable[..., Any], tmp_path: Path) -> None:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields

    many = [f"secretive row {number}" for number in range(300)]
    with DAG(f"shown_{form}", schedule=None, start_date=NIGHT) as dag:

        @task
        def upstream() -> list[str]:
            return many

        source = many if form == "literal" else upstream()
        OpenAIBatchOperator(task_id="label", requests=source, output_path=str(tmp_path), model="m", dry_run=True)
    run = run_dag(dag)
    ti = run.get_task_instance("label")
    shown = RenderedTaskInstanceFields.get_templated_fields(ti)
    assert shown["requests"] == "300 requests"
    assert shown["output_path"] == str(tmp_path)


def test_dag_is_the_same_at_each_parse(tmp_path: Path) -> None:
    """Airflow makes a new version of the DAG when it is not."""

    def parsed() -> dict[str, Any]:
        with DAG("parsed", schedule=None, start_date=NIGHT) as dag:
            usual: dict[str, Any] = {"output_path": str(tmp_path), "output_type": SCHEMA}
            OpenAIBatchOperator(task_id="list", requests=["secretive row"] * 300, **usual)
            OpenAIBatchOperator(task_id="function", requests=Source("secretive row"), **usual)
            OpenAIBatchOperator(task_id="generator", requests=rows(), **usual)
        return serialized(dag)

    first = parsed()
    assert first == parsed()
    assert "secretive row" not in json.dumps(first)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "example_dags").glob("*.py")))
def test_example_is_the_same_at_each_parse_and_holds_no_secret(name: str) -> None:
    def parsed() -> dict[str, Any]:
        bag = new_dag_bag(str(ROOT / "example_dags" / f"{name}.py"))
        assert not bag.import_errors
        return {dag_id: serialized(dag) for dag_id, dag in bag.dags.items()}

    first = parsed()
    assert first
    assert first == parsed()
    assert API_KEY not in json.dumps(first)


def serialized(dag: DAG) -> dict[str, Any]:
    from airflow.serialization import serialized_objects

    # Airflow 3.1 and 3.2 have it under another name.
    serialization = getattr(serialized_objects, "DagSerialization", serialized_objects.SerializedDAG)
    return json.loads(json.dumps(serialization.to_dict(dag), sort_keys=True))


SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}},
    "required": ["label"],
    "additionalProperties": False,
}


# --- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "in the worker"])
def test_every_row_is_answered_in_order(new_task: Callable[..., Task], deferrable: bool, emulator: Emulator) -> None:
    many = [f"row {number}" for number in range(12)]
    job = new_task(requests=many, max_requests_per_batch=5, deferrable=deferrable)
    manifest = job.run()
    assert (manifest["requests"], manifest["succeeded"], manifest["failed"]) == (12, 12, 0)
    found = list(read_results(json.loads(json.dumps(manifest))))
    assert [row["custom_id"] for row in found] == [f"row-{number}" for number in range(12)]
    assert all(row["output"].endswith(text) for row, text in zip(found, many, strict=True))
    assert requests_sent(emulator) == [5, 5, 2]
    assert len(read_results_frame(manifest)) == 12
    # A segment can see all batches end, and needs none of its own for that.
    assert job.segments <= (1 if not deferrable else 4)


def test_ids_and_link_are_there_while_the_task_waits(new_task: Callable[..., Task], emulator: Emulator) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": STUCK, "times": None})
    job = new_task(max_requests_per_batch=1)
    operator = job.operator()
    with pytest.raises(TaskDeferred):
        operator.execute(job.attempts.next())
    oldest_first = [batch["id"] for batch in reversed(emulator.batches())]
    assert job.attempts.xcoms["batch_ids"] == oldest_first
    links = {link.name: link.get_link(operator, ti_key=None) for link in operator.operator_extra_links}
    assert links["OpenAI Batches"].endswith(f"&batch={oldest_first[-1]}")


def test_full_queue_is_waited_for_without_worker_and_without_calls(
    new_task: Callable[..., Task], run_trigger: RunTrigger, emulator: Emulator, tmp_path: Path
) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "token_limit_exceeded"}})
    job = new_task(requests=["not to be split"])
    context = job.attempts.next()
    with pytest.raises(TaskDeferred) as deferred:
        job.operator().execute(context)
    run_trigger(deferred.value.trigger)  # The service finds out a moment after the create.
    creates = emulator.count("POST", "/v1/batches")
    for _ in range(3):
        # Whoever wakes it early finds it waiting still.
        with pytest.raises(TaskDeferred) as again:
            job.operator().execute_complete(context, None)
        assert isinstance(again.value.trigger, DateTimeTrigger)
        assert again.value.trigger.moment.timestamp() > time.time() + 30
    assert emulator.count("POST", "/v1/batches") == creates == 1
    let_pauses_pass(tmp_path)
    with pytest.raises(TaskDeferred) as again:
        job.operator().execute_complete(context, None)
    assert job.resume(again.value, context)["succeeded"] == 1
    assert emulator.count("POST", "/v1/batches") == 2


def test_shard_that_waits_for_a_slot_does_not_wake_the_task(new_task: Callable[..., Task], emulator: Emulator) -> None:
    job = new_task(requests=["a"] * 6, max_requests_per_batch=1, max_active_batches=1)
    assert job.run()["succeeded"] == 6
    assert job.segments <= 7


def let_pauses_pass(output_path: Path) -> None:
    """Make the ledger say that all pauses are over."""
    path = max(output_path.glob("_job/attempts/*.json"))
    ledger = json.loads(path.read_text())
    for shard in ledger["shards"]:
        for each in shard["rounds"]:
            each["not_before"] = 0.0
    path.write_text(json.dumps(ledger))


# --- retry -----------------------------------------------------------------------------------------------------------

UNAUTHORIZED = {"status": 401, "body": {"error": {"message": "no", "code": "invalid_api_key"}}}


@pytest.mark.parametrize(
    ("call", "skipped"),
    [
        ({"method": "POST", "path": "/files"}, 0),
        ({"method": "POST", "path": "/files"}, 1),
        ({"method": "POST", "path": "/batches"}, 0),
        ({"method": "POST", "path": "/batches"}, 2),
        ({"method": "GET", "path": "/files/*/content"}, 0),
        ({"method": "GET", "path": "/files/*/content"}, 1),
    ],
    ids=["first upload", "second upload", "first create", "last create", "first download", "second download"],
)
def test_retry_goes_on_without_reading_or_buying_again(
    new_task: Callable[..., Task], emulator: Emulator, call: dict[str, str], skipped: int
) -> None:
    emulator.add_fault({"on": call, "do": UNAUTHORIZED, "skip": skipped})
    source = Source("a", "b", "c")
    job = new_task(requests=source, max_requests_per_batch=1)
    with pytest.raises(AuthenticationError):
        job.run()
    assert job.run()["succeeded"] == 3
    assert source.calls == 1
    assert bought(emulator) == {("0", "1"): 1, ("1", "1"): 1, ("2", "1"): 1}


def test_retry_after_a_source_that_broke_reads_it_again(new_task: Callable[..., Task], emulator: Emulator) -> None:
    source = Source("a", {"prompt": 5})
    job = new_task(requests=source)
    with pytest.raises(InvalidInputError, match="row 1"):
        job.run()
    assert emulator.calls == []
    source.rows[1] = "b"
    assert job.run()["succeeded"] == 2
    assert source.calls == 2


def test_retry_of_a_task_whose_worker_died_adopts_its_batches(
    new_task: Callable[..., Task], emulator: Emulator
) -> None:
    source = Source("a", "b")
    job = new_task(requests=source, max_requests_per_batch=1)
    job.begin()  # and nobody ever resumes it
    assert job.run()["succeeded"] == 2
    assert source.calls == 1
    assert bought(emulator) == {("0", "1"): 1, ("1", "1"): 1}


def test_wait_that_cannot_see_its_batches_fails_and_the_next_attempt_goes_on(
    new_task: Callable[..., Task], emulator: Emulator
) -> None:
    job = new_task()
    context = job.attempts.next()
    with pytest.raises(TaskDeferred):
        job.operator().execute(context)
    for path in ("/batches", "/batches/*"):
        emulator.add_fault({"on": {"method": "GET", "path": path}, "do": UNAUTHORIZED, "times": None})
    # What the trigger says after ten minutes of this.
    event = {"status": "error", "batches": {}, "message": "401: the key was revoked"}
    with pytest.raises(OpenAIBatchesError, match="401"):
        job.operator().execute_complete(context, event)
    emulator.clear_faults()
    assert job.run()["succeeded"] == 3
    assert len(emulator.batches()) == 1


# --- clear -----------------------------------------------------------------------------------------------------------


def test_cleared_waiting_task_goes_on_with_its_batches(new_task: Callable[..., Task], emulator: Emulator) -> None:
    source = Source("a", "b")
    job = new_task(requests=source, max_requests_per_batch=1)
    job.begin()
    job.attempts.clear()
    assert job.run()["succeeded"] == 2
    assert source.calls == 1
    assert len(emulator.batches()) == 2


def test_cleared_finished_task_buys_only_changed_and_failed_rows(
    new_task: Callable[..., Task], emulator: Emulator
) -> None:
    emulator.add_fault({"on": {"custom_id": "row-1"}, "do": {"outcome": "error"}})
    source = Source("a", "b", "c", "d")
    job = new_task(requests=source, max_failed=1)
    first = job.run()
    assert (first["succeeded"], first["failed"]) == (3, 1)
    job.attempts.clear()
    source.rows[3] = "changed"
    second = job.run()
    assert (second["succeeded"], second["kept"], second["failed"]) == (4, 2, 0)
    assert requests_sent(emulator) == [4, 2]
    assert source.calls == 2
    assert [row["output"].split()[-1] for row in read_results(second)] == ["a", "b", "c", "changed"]


def test_other_task_with_the_same_questions_and_cache_is_done_without_a_batch(
    new_task: Callable[..., Task], emulator: Emulator, tmp_path: Path
) -> None:
    place = str(tmp_path / "cache")
    for run, cache in (("run-1", place), ("run-2", ObjectStoragePath(place))):
        job = new_task(requests=["a", "b", "a"], output_path=str(tmp_path / run), answer_cache=cache)
        job.attempts = Attempts(store=None, run_id=run)
        manifest = job.run()
        assert [row["output"].split()[-1] for row in read_results(manifest)] == ["a", "b", "a"]
    assert manifest["reused"]["cache"] == 2
    assert requests_sent(emulator) == [2]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"answer_cache": " "}, "answer_cache: expected a directory"),
        ({"answer_cache": "None"}, "answer_cache: expected a directory"),
        ({"answer_cache": 5}, "answer_cache: expected a directory or its URI, got 5"),
        ({"answer_cache": []}, r"answer_cache: expected a directory or its URI, got \[\]"),
        (
            {"answer_cache": "nosuch://bucket/a"},
            r"answer_cache: nosuch://bucket/a: .*nosuch.*. Install the Airflow provider",
        ),
        ({"answer_cache": "a\0b"}, r"answer_cache: 'a\\x00b' has the character '\\x00'"),
        ({"answer_cache_expires_after": 0}, "answer_cache_expires_after: expected a positive number"),
        ({"deduplicate": "False"}, "deduplicate: expected True or False"),
    ],
)
def test_cache_that_is_none_is_refused(
    new_task: Callable[..., Task], emulator: Emulator, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        new_task(**parameters).run()
    assert emulator.batches() == []


def test_retry_of_a_finished_task_buys_nothing(new_task: Callable[..., Task], emulator: Emulator) -> None:
    source = Source("a", "b")
    job = new_task(requests=source)
    first = job.run()
    assert job.run() == first
    assert (source.calls, len(emulator.batches())) == (1, 1)


def test_replan_never_returns_the_old_manifest_after_a_clear(new_task: Callable[..., Task], emulator: Emulator) -> None:
    source = Source("a", "b")
    job = new_task(requests=source, replan="never")
    first = job.run()
    job.attempts.clear()
    source.rows.append("c")
    assert job.run() == first
    assert (source.calls, len(emulator.batches())) == (1, 1)


def test_replan_always_reads_anew_what_is_cleared_while_it_waits(
    new_task: Callable[..., Task], emulator: Emulator
) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": STUCK})
    source = Source("a", "b")
    job = new_task(requests=source, replan="always")
    job.begin()
    job.attempts.clear()
    source.rows.append("c")
    assert job.run()["succeeded"] == 3
    assert source.calls == 2
    assert [batch["status"] for batch in reversed(emulator.batches())] == ["cancelled", "completed"]


# --- good enough? ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_failed", "is_green"), [(0, False), (1, False), (2, True), (0.0, False), (0.49, False), (0.5, True)]
)
def test_share_or_number_of_failed_rows_decides(
    new_task: Callable[..., Task], emulator: Emulator, max_failed: float, is_green: bool
) -> None:
    emulator.add_fault({"on": {"custom_id": "row-[13]"}, "do": {"outcome": "error"}, "times": None})
    for number in (1, 3):
        emulator.add_fault({"on": {"custom_id": f"row-{number}"}, "do": {"outcome": "error", "code": f"code_{number}"}})
    job = new_task(requests=["a", "b", "c", "d"], max_failed=max_failed)
    if is_green:
        assert job.run()["by_error"] == {"code_1": 1, "code_3": 1}
    else:
        with pytest.raises(AirflowFailException, match=r"2 of 4 rows failed.*\n +1  code_1\n +1  code_3\n"):
            job.run()


def test_job_without_one_good_row_is_never_green_and_its_results_are_there(
    new_task: Callable[..., Task], emulator: Emulator, tmp_path: Path
) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "all_failed", "status": 400}})
    job = new_task(max_failed=1.0)
    with pytest.raises(AirflowFailException, match="3 of 3 rows failed, and a job without one good row"):
        job.run()
    written = [json.loads(line) for line in (tmp_path / "results/part-00000.jsonl").read_text().splitlines()]
    assert [row["status"] for row in written] == ["failed"] * 3


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "in the worker"])
def test_timeout_keeps_what_is_finished_and_the_next_attempt_buys_the_rest(
    new_task: Callable[..., Task], emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    emulator.add_fault({"on": {"batch": {"metadata": {"airflow_shard": "1"}}}, "do": STUCK})
    source = Source("a", "b", "c")
    timeout = datetime.timedelta(seconds=0.5)
    job = new_task(requests=source, max_requests_per_batch=2, timeout=timeout, deferrable=deferrable)
    with pytest.raises(WaitTimeoutError, match=r"2 of 3 rows are answered.*buys only the rest"):
        job.run()
    written = [json.loads(line) for line in (tmp_path / "results/part-00000.jsonl").read_text().splitlines()]
    assert [row["status"] == "succeeded" for row in written] == [True, True, False]
    assert job.run()["succeeded"] == 3
    assert source.calls == 1
    assert bought(emulator) == {("0", "1"): 1, ("1", "1"): 1, ("1", "2"): 1}


@pytest.mark.openai_batches_emulator(speed=5000, seconds_per_look=0)  # the job's deadline is real time
@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "in the worker"])
def test_timeout_can_leave_the_batches_to_the_next_attempt(
    new_task: Callable[..., Task], emulator: Emulator, deferrable: bool
) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": {**STUCK, "seconds": 4000}})
    job = new_task(timeout=0.3, on_timeout="keep", deferrable=deferrable)
    with pytest.raises(WaitTimeoutError, match="goes on with them"):
        job.run()
    assert [batch["status"] for batch in emulator.batches()] == ["validating"]
    assert job.run(timeout=None)["succeeded"] == 3
    assert len(emulator.batches()) == 1


def test_kept_batches_go_on_even_if_the_time_is_up_while_the_rows_are_read(
    new_task: Callable[..., Task], emulator: Emulator
) -> None:
    emulator.add_fault({"on": {"batch": {}}, "do": STUCK})

    def slow() -> Iterator[str]:
        yield "a"
        enough = time.time() + 0.2
        wait_until(lambda: time.time() > enough)
        yield "b"

    with pytest.raises(WaitTimeoutError, match="1 batches go on"):
        new_task(requests=slow, timeout=0.1, on_timeout="keep").run()
    assert [batch["status"] for batch in emulator.batches()] == ["validating"]


# --- the end from outside --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "cancel_on_kill", "cancels"),
    [
        pytest.param("failed", True, True, id="ended by a user"),
        pytest.param("failed", False, False, id="ended, not to be cancelled"),
        pytest.param("running", True, False, id="evicted"),
        pytest.param("restarting", True, False, id="cleared"),
        pytest.param(None, True, False, id="unknown"),
    ],
)
def test_killed_task_stops_and_its_next_attempt_goes_on(
    new_task: Callable[..., Task],
    emulator: Emulator,
    task_is: Callable[[str | None], None],
    state: str | None,
    cancel_on_kill: bool,
    cancels: bool,
) -> None:
    emulator.add_fault({"on": {"batch": {"metadata": {"airflow_shard": "1"}}}, "do": {**STUCK, "seconds": 40_000}})
    source = Source("a", "b", "c")
    job = new_task(requests=source, max_requests_per_batch=1, max_active_batches=2, deferrable=False,
                   cancel_on_kill=cancel_on_kill)  # fmt: skip
    operator = job.operator()
    context = job.attempts.next()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            operator.execute(context)
        except OpenAIBatchesError as error:
            raised.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    wait_until(lambda: len(emulator.batches()) == 3 or not worker.is_alive())
    task_is(state)
    operator.on_kill()
    worker.join()

    emulator.advance(40_000)
    [error] = raised
    assert "ended from outside" in str(error)
    statuses = {batch["metadata"]["airflow_shard"]: batch["status"] for batch in emulator.batches()}
    assert (statuses["1"] in ("cancelling", "cancelled")) == cancels
    assert job.run()["succeeded"] == 3
    assert source.calls == 1
    again = {("1", "2"): 1} if cancels else {}
    assert bought(emulator) - Counter({("2", "2"): 1}) == {("0", "1"): 1, ("1", "1"): 1, ("2", "1"): 1} | again


@pytest.mark.parametrize("deferrable", [True, False], ids=["deferrable", "in the worker"])
def test_task_killed_while_it_reads_its_rows_buys_nothing(
    new_task: Callable[..., Task], emulator: Emulator, task_is: Callable[[str | None], None], deferrable: bool
) -> None:
    killed: list[OpenAIBatchOperator] = []

    def source() -> Iterator[str]:
        for operator in killed:
            operator.on_kill()
        yield "a"

    task_is("failed")
    job = new_task(requests=source, deferrable=deferrable)
    killed.append(job.operator())
    with pytest.raises(OpenAIBatchesError, match="ended from outside"):
        killed[0].execute(job.attempts.next())
    assert emulator.batches() == []
    killed.clear()
    assert job.run()["succeeded"] == 1
    assert len(emulator.batches()) == 1


# --- whose directory -------------------------------------------------------------------------------------------------


def test_resume_without_its_ledger_is_an_error_not_a_new_job(
    new_task: Callable[..., Task], emulator: Emulator, tmp_path: Path
) -> None:
    job = new_task()
    deferred = job.begin()
    with pytest.raises(LedgerError, match=r"is not there, but this job was begun before.*all workers share"):
        job.resume(deferred, job.attempts.next(), output_path=str(tmp_path / "elsewhere"))
    assert len(emulator.batches()) == 1


def test_retry_at_another_output_path_names_both(run_trigger: RunTrigger, emulator: Emulator, tmp_path: Path) -> None:
    usual = {"requests": ["a"], "model": "m", "poll_interval": 0.05}
    job = Task(Attempts(store=Store()), run_trigger, usual | {"output_path": str(tmp_path / "here")})
    job.begin()
    with pytest.raises(LedgerError) as error:
        job.run(output_path=str(tmp_path / "there"))
    assert str(tmp_path / "here") in str(error.value)
    assert str(tmp_path / "there") in str(error.value)
    assert len(emulator.batches()) == 1


def test_directory_of_another_task_instance_is_refused(
    new_task: Callable[..., Task], run_trigger: RunTrigger, emulator: Emulator
) -> None:
    job = new_task()
    job.run()
    other = Task(Attempts(store=None, map_index=3), run_trigger, job.parameters)
    with pytest.raises(LedgerError, match=r"job of dag\.submit of run run, not of dag\.submit\[3\]"):
        other.run()
    assert len(emulator.batches()) == 1


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        *(("max_requests_per_batch", value) for value in (0, 100_001, True, "many", 1.5)),
        *(("max_bytes_per_batch", value) for value in (0, 200_000_001, None)),
        *(("max_active_batches", value) for value in (0, -1, "2", True)),
        *(("max_attempts", value) for value in (0, "3", None, True)),
        *(("max_failed", value) for value in (-1, True, 1.5, "1%", None, float("nan"))),
        *(("poll_interval", value) for value in (0, -1, "60", None, True, datetime.timedelta(0), float("nan"))),
        *(("timeout", value) for value in (0, "24h", datetime.timedelta(-1), float("inf"))),
        *(("on_timeout", value) for value in ("fail", None, True)),
        *(("replan", value) for value in ("sometimes", None)),
        *(("output_format", value) for value in ("csv", None, ["jsonl"])),
        *(("max_cost", value) for value in (-1, "10", float("nan"), True)),
        *(("files_expire_after", value) for value in (0, 3_600, datetime.timedelta(days=31), "30d", True)),
        *((name, "False") for name in ("cancel_on_kill", "deferrable", "delete_remote_files", "dry_run")),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
def test_parameter_that_cannot_work_is_refused_when_the_dag_is_parsed(parameter: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"^{parameter}: ") as error:
        OpenAIBatchOperator(task_id="label", requests=["a"], output_path="/labels", **{parameter: value})
    assert repr(value) in str(error.value)


def test_the_log_says_what_is_sent_and_in_its_last_line_what_came_of_it(
    new_task: Callable[..., Task], emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.add_fault({"on": {"custom_id": "row-1"}, "do": {"outcome": "error", "code": "invalid_value"}, "times": 9})
    with caplog.at_level(logging.INFO):
        new_task(max_failed=1).run()
    assert "Rows planned: 3; 3 to send, in 1 shard of " in caplog.text
    told = "Rows: 3, succeeded: 2, failed: 1 (1 invalid_value). Batches: 1. "
    assert f"{told}Results: {tmp_path}/results" in caplog.text


@pytest.mark.parametrize("place", ["file/labels", "/proc/nowhere/labels"])
def test_an_output_path_that_cannot_be_made_is_named_before_anything_is_sent(
    new_task: Callable[..., Task], emulator: Emulator, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidInputError, match=rf"output_path: .*{place} cannot be read or made .* all workers"):
        new_task(output_path=str(tmp_path / place)).run()
    assert emulator.calls == []


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("output_path", ""),
        ("output_path", None),
        ("output_path", "None"),
        *(
            ("output_path", value)
            for value in (5, True, ["/labels"], {"a": 1}, b"/labels", "a\0b", "\ud800", "nosuch://b/labels")
        ),
        ("model", ""),
        ("model", "None"),
        ("model", 4),
        ("model", "\ud800"),
        ("endpoint", "chat"),
        ("endpoint", "/v1/\ud800"),
        ("system_prompt", " "),
        ("system_prompt", "\ud800"),
        ("body", ["max_tokens"]),
        *(("body", value) for value in (0, False, "", [], set())),
        ("body", {"messages": []}),
        ("output_type", {"type": "object", "properties": {"label": {"type": "string"}}}),
        ("output_type", str),
        ("prices", {"m": 5}),
        ("requests", "one prompt"),
        ("requests", {"prompt": "a"}),
        ("requests", None),
        ("requests", []),
    ],
)
def test_value_that_cannot_work_is_refused_before_anything_is_sent(
    new_task: Callable[..., Task], emulator: Emulator, tmp_path: Path, parameter: str, value: Any
) -> None:
    with pytest.raises(InvalidInputError, match=rf"^{parameter}\b"):
        new_task(**{parameter: value}).run()
    assert emulator.calls == []


# --- money -----------------------------------------------------------------------------------------------------------

PRICES = {"m": {"input": 1.0, "output": 2.0}}


def test_dry_run_plans_estimates_and_sends_nothing(
    new_task: Callable[..., Task], emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = new_task(dry_run=True, prices=PRICES)
    with caplog.at_level(logging.INFO):
        manifest = job.run()
    assert "nothing was sent. 3 of 3 rows would be bought for about " in caplog.text
    assert (manifest["requests"], manifest["results"], manifest["batch_ids"]) == (3, [], [])
    assert manifest["estimated_cost"] > 0
    assert emulator.calls == []
    # It has begun nothing, so the real run may be anywhere.
    assert job.run(dry_run=False, output_path=str(tmp_path / "real"))["succeeded"] == 3


def test_job_above_max_cost_is_refused_before_anything_is_sent(
    new_task: Callable[..., Task], emulator: Emulator
) -> None:
    with pytest.raises(InvalidInputError, match=r"^max_cost: the job is estimated at"):
        new_task(prices=PRICES, max_cost=0.0).run()
    assert emulator.calls == []


def test_cost_is_that_of_the_tokens_used(new_task: Callable[..., Task]) -> None:
    manifest = new_task(prices=PRICES, max_cost=1).run()
    usage = manifest["usage"]
    assert manifest["cost"] == pytest.approx((usage["input_tokens"] + 2 * usage["output_tokens"]) / 1e6)


@pytest.mark.parametrize(("delete", "left"), [(False, 4), (True, 0)])
def test_remote_files_are_deleted_only_if_asked_for(new_task: Callable[..., Task], delete: bool, left: int) -> None:
    new_task(max_requests_per_batch=2, delete_remote_files=delete).run()
    assert len(list(OpenAIBatchesHook().list_files())) == left


def test_files_are_kept_at_the_service_for_as_long_as_was_asked_for(new_task: Callable[..., Task]) -> None:
    new_task(files_expire_after=datetime.timedelta(days=5)).run()
    files = list(OpenAIBatchesHook().list_files())
    assert {file.purpose for file in files} == {"batch", "batch_output"}
    assert {(file.expires_at or 0) - (file.created_at or 0) for file in files} == {5 * 86_400}


# --- Airflow ---------------------------------------------------------------------------------------------------------


def test_manifest_goes_to_the_next_task_and_outlets_are_updated(run_dag: Callable[..., Any], tmp_path: Path) -> None:
    labels = Asset(f"labels_{tmp_path.name}")
    with DAG("downstream", schedule=None, start_date=NIGHT) as dag:

        @task
        def count(manifest: dict[str, Any]) -> list[int]:
            return [sum(1 for _ in read_results(manifest)), len(read_results_frame(manifest, library="polars"))]

        job = OpenAIBatchOperator(
            task_id="label", requests=["a", "b"], output_path=str(tmp_path), model="m", poll_interval=0.05,
            outlets=[labels],
        )  # fmt: skip
        count(job.output)
    run = run_dag(dag)
    label, counted = run.get_task_instance("label"), run.get_task_instance("count")
    assert counted.xcom_pull(task_ids="count") == [2, 2]
    manifest = label.xcom_pull(task_ids="label")
    assert label.xcom_pull(task_ids="label", key="batch_ids") == manifest["batch_ids"]
    assert label.xcom_pull(task_ids="label", key="openai_batches_page_link").endswith(manifest["batch_ids"][-1])
    assert asset_events(labels) == 1


def asset_events(asset: Asset) -> int:
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    with create_session() as session:
        events = select(func.count()).select_from(AssetEvent).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        return session.scalar(events.where(AssetModel.name == asset.name))


def test_upstream_without_rows_is_told_so(
    run_dag: Callable[..., Any], tmp_path: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    with DAG("no_rows", schedule=None, start_date=NIGHT) as dag:

        @task
        def upstream() -> list[str]:
            return []

        OpenAIBatchOperator(task_id="label", requests=upstream(), output_path=str(tmp_path), model="m")
    assert str(run_dag(dag).state) == "failed"
    assert "requests: there is no row" in capsys.readouterr().out
    assert emulator.calls == []


def test_mapped_tasks_that_share_a_directory_are_told_so(
    run_dag: Callable[..., Any], tmp_path: Path, emulator: Emulator
) -> None:
    with DAG("shared", schedule=None, start_date=NIGHT) as dag:
        OpenAIBatchOperator.partial(task_id="label", output_path=str(tmp_path), model="m", poll_interval=0.05).expand(
            requests=[["a"], ["b"]]
        )
    run = run_dag(dag)
    assert sorted(str(ti.state) for ti in run.get_task_instances()) == ["failed", "success"]
    assert len(emulator.batches()) == 1
