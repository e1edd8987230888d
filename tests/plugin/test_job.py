"""The tab on a task: jobs that DAG runs of a real Airflow have left behind."""

from __future__ import annotations

import datetime
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.operators.job import OpenAIBatchOperator
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchSubmitOperator
from airflow_provider_openai_batches.testing import faults
from tests.airflow.conftest import request_lines
from tests.conftest import API_KEY
from tests.plugin.auth import GRANTS, OTHER_DAG
from tests.plugin.conftest import CONN_ID, Browser, until

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection", "no_pauses")]

Browse = Callable[[str | None], Browser]

PRICES = json.dumps({"prices": {"m": {"input": 1000, "output": 1000}}})


@pytest.fixture
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """An emulator whose time runs fast, or one whose time stands still."""
    with Emulator(speed=getattr(request, "param", 1250), api_key=API_KEY) as server:
        yield server


still = pytest.mark.parametrize("emulator", [0], indirect=True, ids=["still"])


@pytest.fixture
def run_job(run_dag: Callable[[DAG], Any], request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Run a task of a DAG to its end; return what names it."""

    def run(operator: Any = OpenAIBatchOperator, *, name: str = "", **parameters: Any) -> dict[str, Any]:
        name = "".join(char if char.isalnum() else "_" for char in request.node.name + name)
        with DAG(name, schedule=None, start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)) as dag:
            if operator is OpenAIBatchOperator:
                usual = {"requests": ["a", "b", "c"], "output_path": str(tmp_path / "out"), "model": "m"}
                parameters = {**usual, "max_requests_per_batch": 2, **parameters}
            operator(task_id="label", poll_interval=0.05, **parameters)
        done = run_dag(dag)
        return {"dag_id": dag.dag_id, "run_id": done.run_id, "task_id": "label"}

    return run


def show(browse: Browse, task: dict[str, Any], user: str = "admin", **query: Any) -> dict[str, Any]:
    answer = browse(user).get("/api/job", **task, **query)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


class TestFinished:
    @pytest.fixture
    def task(self, run_job: Callable[..., Any], connection: Any) -> dict[str, Any]:
        connection(extra=PRICES)
        task: dict[str, Any] = run_job()
        return task

    def test_job(self, browse: Browse, task: dict[str, Any], tmp_path: Path, emulator: Emulator) -> None:
        job = show(browse, task)
        newest, oldest = (batch["id"] for batch in emulator.batches())
        assert job["output_path"] == str(tmp_path / "out")
        assert (job["found"], job["finished"], job["conn_id"], job["note"]) == (True, True, CONN_ID, None)
        assert (job["requests"], job["by_status"]) == (3, {"succeeded": 3})
        assert job["usage"]["output_tokens"] > 0
        assert job["cost"] == pytest.approx((job["usage"]["input_tokens"] + job["usage"]["output_tokens"]) / 1000)
        assert job["shards"] == [
            {
                "index": index,
                "requests": requests,
                "model": "m",
                "rounds": [
                    {
                        "number": 1,
                        "batch_id": batch_id,
                        "status": "completed",
                        "requests": requests,
                        "landed": True,
                        "direct": False,
                    }
                ],
            }
            for index, requests, batch_id in ((0, 2, oldest), (1, 1, newest))
        ]
        assert job["direct"] == {"requests": 0, "cost": 0.0}

    def test_rows_that_were_sent_without_a_batch(
        self, browse: Browse, run_job: Callable[..., Any], connection: Any, emulator: Emulator
    ) -> None:
        connection(extra=PRICES)
        emulator.add_fault(faults.row_fails("row-1", 503))
        job = show(browse, run_job(finish_synchronously_below=5))
        assert job["by_status"] == {"succeeded": 3}
        assert job["shards"][0]["rounds"][1] == {
            "number": 2,
            "batch_id": None,
            "status": "completed",
            "requests": 1,
            "landed": True,
            "direct": True,
        }
        assert (job["direct"]["requests"], 0 < job["direct"]["cost"] < job["cost"]) == (1, True)

    def test_rows_that_were_not_bought(self, browse: Browse, run_job: Callable[..., Any], connection: Any) -> None:
        connection(extra=PRICES)
        job = show(browse, run_job(requests=["a", "b", "a", "a"], deduplicate=True))
        assert (job["requests"], job["by_status"]) == (4, {"succeeded": 4})
        reused = job["reused"]
        assert (reused["kept"], reused["cache"], reused["duplicates"]) == (0, 0, 2)
        assert reused["cost"] > 0

    def test_without_the_ledger_the_xcoms_tell(self, browse: Browse, task: dict[str, Any], tmp_path: Path) -> None:
        with_ledger = show(browse, task)
        shutil.rmtree(tmp_path / "out")
        job = show(browse, task)
        same = ("found", "finished", "requests", "by_status", "cost", "usage", "reused", "output_path")
        assert {key: job[key] for key in same} == {key: with_ledger[key] for key in same}
        assert [shard["rounds"][0]["batch_id"] for shard in job["shards"]] == [
            shard["rounds"][0]["batch_id"] for shard in with_ledger["shards"]
        ]
        assert "is not there" in job["note"]

    def test_a_damaged_ledger_is_told_of(self, browse: Browse, task: dict[str, Any], tmp_path: Path) -> None:
        for path in (tmp_path / "out/_job/attempts").iterdir():
            path.write_text("{")
        job = show(browse, task)
        assert job["finished"] is True
        assert "it is damaged" in job["note"]

    def test_another_tasks_ledger_is_not_shown(self, browse: Browse, task: dict[str, Any], tmp_path: Path) -> None:
        for path in (tmp_path / "out/_job").rglob("*.json"):
            path.write_text(path.read_text().replace(task["dag_id"], "a_hidden_dag"))
        job = show(browse, task)
        assert job["shards"][0]["rounds"][0]["landed"] is False, "the XComs tell, not the ledger"
        assert "another task's" in job["note"]
        assert "a_hidden_dag" not in str(job)

    def test_a_storage_that_hangs_holds_one_thread_and_is_waited_for_once(
        self, browse: Browse, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow_provider_openai_batches.plugin import job as page
        from airflow_provider_openai_batches.plugin import readers

        released, opened, clock = threading.Event(), [], Ahead()
        with monkeypatch.context() as patch:
            patch.setattr(readers, "WITHIN_S", 0.5)
            patch.setattr(readers, "time", clock)
            patch.setattr(page, "open_directory", lambda path: opened.append(path) or released.wait(100))
            try:
                jobs = [show(browse, task)]
                while not opened:
                    jobs.append(show(browse, task))
                # From here on a wait is longer than a test may take, and this reading has had its own.
                patch.setattr(readers, "WITHIN_S", 3600.0)
                clock.ahead_s = 3600.0
                jobs += [show(browse, task) for _ in range(12)]
                until(lambda: hanging() == 1)
            finally:
                released.set()
                until(lambda: hanging() == 0)
        assert len(opened) == 1
        assert all(job["finished"] and "TimeoutError" in job["note"] for job in jobs)
        assert show(browse, task)["note"] is None, "it is read again once it answers"

    def test_it_needs_no_service(self, browse: Browse, task: dict[str, Any], emulator: Emulator) -> None:
        before = len(emulator.calls)
        show(browse, task)
        assert len(emulator.calls) == before


class TestGoingOn:
    @pytest.fixture
    def task(self, run_job: Callable[..., Any], connection: Any, emulator: Emulator) -> dict[str, Any]:
        connection(extra=PRICES)
        task: dict[str, Any] = run_job(timeout=0.2, on_timeout="keep")
        return task

    @still
    def test_rows_and_batches(self, browse: Browse, task: dict[str, Any], emulator: Emulator) -> None:
        emulator.advance(100)
        job = show(browse, task)
        counts = [batch["request_counts"]["completed"] for batch in emulator.batches()]
        assert (job["found"], job["finished"], job["requests"]) == (True, False, 3)
        assert sum(counts) in (1, 2), "or the test shows nothing"
        assert job["by_status"] == {"answered": sum(counts), "pending": 3 - sum(counts)}
        assert [shard["rounds"][0]["status"] for shard in job["shards"]] == ["in_progress", "in_progress"]
        assert (job["cost"], job["usage"]) == (None, None)

    @still
    def test_cost_so_far(self, browse: Browse, task: dict[str, Any], emulator: Emulator) -> None:
        emulator.advance(500)
        job = show(browse, task)
        assert job["by_status"] == {"answered": 3}
        usages = [batch["usage"] for batch in emulator.batches()]
        assert job["usage"]["output_tokens"] == sum(usage["output_tokens"] for usage in usages)
        assert job["cost"] == pytest.approx(sum(usage["total_tokens"] for usage in usages) / 1000)

    @still
    @pytest.mark.parametrize("user", ["viewer", "user"])
    def test_who_may_not_read_the_connection_sees_what_airflow_knows(
        self, user: str, browse: Browse, task: dict[str, Any], emulator: Emulator
    ) -> None:
        emulator.advance(500)
        before = len(emulator.calls)
        job = show(browse, task, user)
        assert (job["requests"], job["by_status"], job["cost"]) == (3, {"pending": 3}, None)
        assert len(emulator.calls) == before

    @still
    def test_while_the_service_is_down(self, browse: Browse, task: dict[str, Any], emulator: Emulator) -> None:
        emulator.add_fault({"on": {"path": "**"}, "do": {"status": 500}, "times": None})
        assert show(browse, task)["by_status"] == {"pending": 3}

    @still
    def test_before_airflow_3_3(self, browse: Browse, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        from airflow_provider_openai_batches.plugin import database

        with_store = show(browse, task)
        monkeypatch.setattr(database, "stored_state", lambda place, key: None)
        assert show(browse, task) == with_store
        assert with_store["output_path"].endswith("out")

    @still
    def test_neither_ledger_nor_manifest(
        self, browse: Browse, task: dict[str, Any], emulator: Emulator, tmp_path: Path
    ) -> None:
        shutil.rmtree(tmp_path / "out")
        job = show(browse, task)
        assert job["found"] is True
        assert len(job["shards"]) == 2
        assert {shard["rounds"][0]["batch_id"] for shard in job["shards"]} == {
            each["id"] for each in emulator.batches()
        }
        assert job["note"]


@pytest.fixture
def bucket() -> Iterator[None]:
    """An object storage at memory://, also behind connections."""
    from airflow.sdk.io import attach
    from fsspec.implementations.memory import MemoryFileSystem

    for conn_id in (None, CONN_ID, "keepers_own"):
        attach("memory", conn_id=conn_id, fs=MemoryFileSystem())
    yield
    MemoryFileSystem.store.clear()


class TestWhatIsRead:
    """The API server reads with its own rights: who may write an XCom or see a DAG must not choose what."""

    def test_a_path_in_an_xcom_is_not_followed(
        self, browse: Browse, run_job: Callable[..., Any], tmp_path: Path
    ) -> None:
        made = run_job()
        assert show(browse, made)["shards"][0]["rounds"][0]["landed"] is True
        manifest = {
            "job_id": "j",
            "output_path": str(tmp_path / "copy"),
            "requests": 3,
            "by_status": {"succeeded": 3},
            "batch_ids": ["batch_x"],
            "usage": {},
            "cost": None,
            "estimated_cost": None,
        }
        forged = run_job(Returning, name="forged", returned=manifest)
        # A ledger that says it is this task's, so that only the path stands in the way.
        shutil.copytree(tmp_path / "out", tmp_path / "copy")
        for path in (tmp_path / "copy/_job").rglob("*.json"):
            text = path.read_text()
            for key in ("dag_id", "run_id"):
                text = text.replace(made[key], forged[key])
            path.write_text(text)
        job = show(browse, forged)
        assert (job["found"], job["note"]) == (True, None), "no ledger was looked for"
        assert [each["batch_id"] for shard in job["shards"] for each in shard["rounds"]] == ["batch_x"]
        assert job["shards"][0]["rounds"][0]["landed"] is False

    @pytest.mark.parametrize("form", ["memory://{}@bucket/out", "memory:/\t/{}@bucket/out", "memory:/\n/{}@bucket/out"])
    def test_the_connection_in_a_path_needs_its_own_permission(
        self,
        browse: Browse,
        run_job: Callable[..., Any],
        bucket: None,
        monkeypatch: pytest.MonkeyPatch,
        form: str,
    ) -> None:
        from airflow_provider_openai_batches.plugin import database

        # Without what the operator itself has noted, the path is as somebody wrote it.
        monkeypatch.setattr(database, "stored_state", lambda place, key: None)
        task = run_job(output_path=form.format("keepers_own"))
        landed = [
            show(browse, task, user)["shards"][0]["rounds"][0]["landed"] for user in ("admin", "narrow", "viewer")
        ]
        assert landed == [True, False, False], "the others see what is in Airflow's database"
        job = show(browse, task, "narrow")
        assert (job["found"], job["requests"]) == (True, 3)
        assert "may not read" in job["note"]
        assert "keepers_own" not in job["note"]

    @pytest.mark.parametrize("path", ["memory://[/out", "memory://a\x00b@bucket/out"])
    def test_a_path_that_cannot_be_taken_apart_is_not_read(
        self, browse: Browse, run_job: Callable[..., Any], path: str
    ) -> None:
        job = show(browse, run_job(Elsewhere, output_path=path, batch_id="batch_x"))
        assert (job["found"], job["shards"][0]["rounds"][0]["landed"]) == (True, False)
        assert "cannot be read" in job["note"] or "may not read" in job["note"]

    def test_a_batch_of_a_dag_that_one_may_not_see_is_not_looked_at(
        self,
        browse: Browse,
        run_job: Callable[..., Any],
        buy: Callable[..., Any],
        emulator: Emulator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        hidden = buy(OTHER_DAG)
        until(lambda: emulator.batches()[0]["status"] == "completed")
        task = run_job(Pushing, pushed=[hidden.id])
        monkeypatch.setitem(GRANTS, "reader", {("GET", "connection", None), ("GET", "dag", task["dag_id"])})
        jobs = {user: show(browse, task, user) for user in ("admin", "reader")}
        rounds = {user: job["shards"][0]["rounds"][0] for user, job in jobs.items()}
        assert (rounds["admin"]["status"], rounds["admin"]["requests"]) == ("completed", 3), "or the test shows nothing"
        assert rounds["reader"] == {
            "number": 1, "batch_id": hidden.id, "status": None, "requests": 0, "landed": False,
            "direct": False,
        }  # fmt: skip
        told = ("requests", "by_status", "cost", "usage", "note")
        nobodys = show(browse, run_job(Pushing, name="nobodys", pushed=["batch_nobody"]))
        assert {key: jobs["reader"][key] for key in told} == {key: nobodys[key] for key in told}

    @pytest.mark.parametrize("form", ["http://{}/out", "http:/{}/out", "simplecache::http://{}/out"])
    def test_a_path_that_is_no_store_of_airflows_is_not_called(
        self, browse: Browse, run_job: Callable[..., Any], emulator: Emulator, form: str
    ) -> None:
        task = run_job(Elsewhere, output_path=form.format(emulator.base_url.split("/")[2]), batch_id="batch_x")
        before = len(emulator.calls)
        job = show(browse, task)
        assert (job["found"], len(emulator.calls)) == (True, before)
        assert "cannot be read" in job["note"], "Airflow opens no path of a scheme that no provider serves"

    def test_one_that_the_user_may_read_is_read(
        self, browse: Browse, run_job: Callable[..., Any], bucket: None
    ) -> None:
        task = run_job(output_path=f"memory://{CONN_ID}@bucket/out")
        job = show(browse, task, "narrow")
        assert (job["note"], job["shards"][0]["rounds"][0]["landed"]) == (None, True)


class Elsewhere(BaseOperator):
    """Has an output_path of somebody's choice, and a batch, as a job before its first result."""

    template_fields = ("output_path",)

    def __init__(self, *, output_path: str, batch_id: str, poll_interval: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.output_path, self.batch_id = output_path, batch_id

    def execute(self, context: Any) -> None:
        context["ti"].xcom_push(key="batch_ids", value=[self.batch_id])


class Pushing(BaseOperator):
    """Says of any batches that they are its own."""

    template_fields = ("conn_id",)

    def __init__(self, *, pushed: list[str], poll_interval: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pushed, self.conn_id = pushed, CONN_ID

    def execute(self, context: Any) -> None:
        context["ti"].xcom_push(key="batch_ids", value=self.pushed)


class Returning(BaseOperator):
    """Returns what somebody wants it to return."""

    def __init__(self, *, returned: Any, poll_interval: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.returned = returned

    def execute(self, context: Any) -> Any:
        return self.returned


class TestReaders:
    """Few threads may hang, and who asks when they do is told so at once."""

    def test_no_more_than_a_few_hang(self) -> None:
        from airflow_provider_openai_batches.plugin import readers

        released = threading.Event()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(readers, "WITHIN_S", 0.05)
            for number in range(50):
                with pytest.raises(TimeoutError):
                    readers.read_in_time(number, lambda: released.wait(100))
            until(lambda: hanging() == readers.MOST)
            patch.setattr(readers, "WITHIN_S", 3600.0)  # longer than a test may take
            with pytest.raises(TimeoutError):
                readers.read_in_time("another", lambda: 1)
            released.set()
            until(lambda: hanging() == 0)
            assert readers.read_in_time("another", lambda: 1) == 1

    def test_who_asks_for_the_same_shares_one_reading(self) -> None:
        from airflow_provider_openai_batches.plugin import readers

        released, readings = threading.Event(), []

        def read() -> int:
            readings.append(1)
            released.wait(60)
            return len(readings)

        with ThreadPoolExecutor(4) as tabs:
            answers = [tabs.submit(readers.read_in_time, "same", read) for _ in range(4)]
            until(lambda: readings == [1] and hanging() == 1)
            released.set()
            assert {answer.result(60) for answer in answers} <= {1, 2}, "2 for one who came when it was done"

    def test_a_failure_is_told_to_who_waits(self) -> None:
        from airflow_provider_openai_batches.plugin import readers

        def fail() -> int:
            raise PermissionError("no")

        for _ in range(2 * readers.MOST):
            with pytest.raises(PermissionError):
                readers.read_in_time("same", fail)


class Ahead:
    """Stands in for the module `time`."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


def hanging() -> int:
    """Threads that read a ledger, or have just told what they read and are about to end."""
    return sum(thread.name == "job-ledger" for thread in threading.enumerate())


class TestOther:
    def test_a_batch_without_a_job(self, browse: Browse, run_job: Callable[..., Any], client: Any) -> None:
        import io

        file = client.upload_file(lambda: io.BytesIO(request_lines(3)), filename="rows.jsonl")
        task = run_job(
            OpenAIBatchSubmitOperator, input_file_id=file.id, endpoint="/v1/chat/completions", wait_for_completion=True
        )
        job = show(browse, task)
        assert (job["found"], job["output_path"], job["note"]) == (True, None, None)
        (shard,) = job["shards"]
        assert (shard["requests"], shard["model"]) == (3, "gpt-4o-mini")
        assert job["by_status"] == {"answered": 3}

    def test_another_operator(self, browse: Browse, dags: None) -> None:
        job = show(browse, {"dag_id": "made_by_us", "run_id": "nothing", "task_id": "label"})
        assert (job["found"], job["shards"], job["requests"]) == (False, [], 0)

    @pytest.mark.parametrize("returned", [{"job_id": 1}, {"output_path": "/x"}, ["x"], "text", None, 7])
    def test_whatever_a_task_returned(self, returned: Any) -> None:
        from airflow_provider_openai_batches.plugin.job import _manifest

        assert _manifest(returned) is None

    @pytest.mark.parametrize(
        "query",
        [
            {"dag_id": ""},
            {"dag_id": "a\x00b"},
            {"run_id": "x" * 251},
            {"task_id": "\n"},
            {"map_index": -2},
            {"map_index": 2**31},
            {"map_index": "x"},
        ],
    )
    def test_a_request_that_makes_no_sense(self, query: dict[str, Any], browse: Browse) -> None:
        names = {"dag_id": "made_by_us", "run_id": "run", "task_id": "label"}
        answer = browse("admin").get("/api/job", **{**names, **query})
        assert (answer.status_code, answer.json()["detail"]["code"]) == (400, "bad_request")
