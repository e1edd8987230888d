"""The life of a job as a state machine: whatever happens to it, in whatever order.

Attempts run until they stand before or after an operation that others can see. There they may die, freeze while another
attempt takes over, and wake up again. Meanwhile the service fails in all its ways, time passes, somebody cancels
batches in the dashboard, and users change rows and clear the task.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import requests
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.jobs.engine import Finished, Stopped, Waiting, advance
from airflow_provider_openai_batches.jobs.ledger import Ledger, load_ledger
from airflow_provider_openai_batches.jobs.parts import read_results
from airflow_provider_openai_batches.jobs.purchase import JOB_KEY
from tests.conftest import API_KEY
from tests.jobs.world import AUTHORIZED, BATCH_S, OWNER, World
from tests.properties import object_store
from tests.properties.account import TERMINAL, Account, Generation, check_once
from tests.properties.attempts import WAITING, Attempt

MODEL = "gpt-4o-mini"
LONGEST_CALL_S = 60
"""A create that is on its way for longer has arrived, or its client has given up."""

DAY_S = 86_500
_MOST_DAYS = 5
_MOST_ROWS = 12
_MOST_FAULTS = 8
_PATIENT_ATTEMPTS = 4


def _queue_full(limit: int) -> dict[str, Any]:
    message = f"Enqueued token limit reached for {MODEL} in organization org. Limit: {limit} enqueued tokens."
    return {"status": 429, "body": {"error": {"code": "token_limit_exceeded", "message": message}}}


def _on(method: str, path: str, *effects: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"on": {"method": method, "path": path}, "do": effect} for effect in effects]


_DROPS = ({"drop": "before"}, {"drop": "after"}, {"status": 500})
CALL_FAULTS = [
    *_on("POST", "/batches", *_DROPS, {"status": 429}, {"status": 400}, _queue_full(40), _queue_full(90_000)),
    *_on("POST", "/files", *_DROPS),
    *_on("POST", "/batches/*/cancel", *_DROPS),
    *_on("GET", "/batches", *_DROPS, {"ignore_after": True}, {"patch": {"output_file_id": None}}),
    *_on("GET", "/batches/*", *_DROPS, {"status": 404}, {"set": {"output_file_id": ""}}, {"azure": True}),
    *_on("GET", "/files/*/content", *_DROPS, {"truncate": 0}, {"truncate": 700}, {"gzip": True}, {"status": 404}),
]
BATCH_FAULTS: list[dict[str, Any]] = [
    {"on": {"batch": {}}, "do": effect}
    for effect in (
        {"outcome": "failed"},
        {"outcome": "failed", "errors": [{"code": "model_not_found", "message": "No such model."}]},
        {"outcome": "token_limit_exceeded"},
        {"outcome": "file_not_found"},
        {"outcome": "expire", "finished": 0.0},
        {"outcome": "expire", "finished": 0.5},
        {"outcome": "all_failed"},
        {"outcome": "empty_error_file"},
        {"outcome": "skip_states"},
        {"outcome": "stuck", "status": "in_progress", "seconds": 90_000},
        {"outcome": "stuck", "status": "validating", "seconds": 600},
        {"outcome": "stuck", "status": "cancelling", "seconds": 600},
    )
]
BOUNDARIES = (
    "before POST batches",
    "after POST batches",
    "after claim _job/shard",
    "after POST files",
    "before write _job/attempts",
    "after write _job/attempts",
    "publish results",
    "requests.jsonl",
    "output.jsonl",
    "clean",
)
"""Parts of the names of operations between which much can go wrong."""

ROW_FATES = ("error", "server_error", "timeout", "missing", "duplicate", "unknown", "broken_line", "length")

FAULTS = st.one_of(
    st.builds(lambda fault, times: fault | {"times": times}, st.sampled_from(CALL_FAULTS), st.sampled_from([1, 1, 6])),
    st.sampled_from(BATCH_FAULTS),
    st.builds(
        lambda row, outcome: {"on": {"custom_id": f"row-{row}"}, "do": {"outcome": outcome}},
        st.integers(0, 3),
        st.sampled_from(ROW_FATES),
    ),
)


class JobLife(RuleBasedStateMachine):
    """One task instance's job, from its first attempt to its last."""

    in_memory: str | None = None
    """Where directories are made; None for the usual place."""

    @initialize(
        rows=st.integers(1, 8),
        per_batch=st.integers(2, 4),
        max_attempts=st.integers(1, 3),
        most_active=st.sampled_from([None, None, 1]),
        queue=st.sampled_from([None, None, 60, 100_000]),
        storage=st.sampled_from(["disk", "object store"]),
    )
    def begin(
        self, rows: int, per_batch: int, max_attempts: int, most_active: int | None, queue: int | None, storage: str
    ) -> None:
        # A service of its own costs less than to tell its batches from those of other examples.
        self.closing = ExitStack()
        self.emulator = self.closing.enter_context(Emulator(speed=0, api_key=API_KEY))
        self.batches: list[dict[str, Any]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="life-", dir=self.in_memory))
        self.texts = [f"say {index}" for index in range(rows)]
        self.world = World(
            self.emulator.base_url,
            self.folder / "job" if storage == "disk" else object_store.new_location(self.folder.name),
            self._read_rows,
            per_batch=per_batch,
            max_attempts=max_attempts,
            max_active_batches=most_active,
            queue_limits={} if queue is None else {MODEL: queue},
        )
        self.attempts: list[Attempt] = []
        self.running = ""
        self.read: dict[str, list[str]] = {}
        self.generations: dict[int, Generation] = {}
        self.versions = self.tries = self.days = self.faults = 0

    # --- attempts ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.alive) < 2)
    @rule()
    def start(self) -> None:
        """Begin the task's next attempt, whatever the one before is doing."""
        self._start()

    @precondition(lambda self: len(self.alive) < 2)
    @rule(timeout_s=st.sampled_from([1, 90, 100_000]))
    def start_with_little_time(self, timeout_s: int) -> None:
        self._start(timeout_s=timeout_s)

    @precondition(lambda self: len(self.alive) < 2)
    @rule(
        replan=st.sampled_from(["when_finished", "always", "never"]),
        change=st.sampled_from(["nothing", "one", "all", "more", "fewer", "turn"]),
    )
    def clear(self, replan: str, change: str) -> None:
        """Clear the task, perhaps with other rows."""
        self.tries += 1
        self._change_rows(change)
        self._start(replan=replan)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), steps=st.sampled_from([1, 2, 5, 12]))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        """Let an attempt do some operations."""
        attempt = data.draw(st.sampled_from(self.alive))
        for _ in range(steps):
            if attempt.at is not None:
                self._step(attempt)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), kind=st.sampled_from(BOUNDARIES))
    def go_on_to(self, data: st.DataObject, kind: str) -> None:
        """Let an attempt go to the next boundary of a kind, unless it waits or ends before."""
        attempt = data.draw(st.sampled_from(self.alive))
        self._go_on_to(attempt, kind)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), waits=st.integers(1, 4))
    def live_on(self, data: st.DataObject, waits: int) -> None:
        """Let a task go on as it usually does: in steps, each after a wait."""
        attempt = data.draw(st.sampled_from(self.alive))
        for _ in range(waits):
            self._go_on_to(attempt, WAITING)
            if attempt.at is None:
                break
            self._pass_time(BATCH_S)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.alive)).crash()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), changes=st.integers(0, 20))
    def crash_within(self, data: st.DataObject, changes: int) -> None:
        """Let an attempt die in the middle of an operation, when it has changed some more files."""
        data.draw(st.sampled_from(self.alive)).doom(changes)

    # --- the world around them ---------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 31, 80, 130, 200, 2_000]))
    def pass_time(self, seconds: int) -> None:
        self._pass_time(seconds)

    @precondition(lambda self: self.days < _MOST_DAYS)
    @rule()
    def pass_a_day(self) -> None:
        """Every batch is over by then."""
        self.days += 1
        self._pass_time(DAY_S)

    @precondition(lambda self: self.faults < _MOST_FAULTS)
    @rule(fault=FAULTS, skip=st.integers(0, 2))
    def fail(self, fault: dict[str, Any], skip: int) -> None:
        self.faults += 1
        self.emulator.add_fault(fault | {"skip": skip})

    @precondition(lambda self: self.open_batches)
    @rule(data=st.data())
    def cancel_from_outside(self, data: st.DataObject) -> None:
        """Cancel a batch in the dashboard."""
        ids = sorted(batch["id"] for batch in self.open_batches)
        at = data.draw(st.integers(0, len(ids) - 1))
        url = f"{self.emulator.base_url}/batches/{ids[at]}/cancel"
        with suppress(requests.ConnectionError):  # It may be a fault's turn.
            requests.post(url, headers=AUTHORIZED, timeout=60)

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_bought_twice(self) -> None:
        if hasattr(self, "world"):
            self.batches = self.emulator.batches()
            check_once(self.batches)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            for attempt in self.alive:
                attempt.crash()
            self._finish()
            # What is worked out from the service's files must not meet its faults.
            self.emulator.clear_faults()
            self._check_all()
        finally:
            for attempt in self.alive:
                attempt.crash()
            shutil.rmtree(self.folder)
            object_store.forget_all()
            self.closing.close()

    def _check_all(self) -> None:
        self.nothing_is_bought_twice()
        still_open = [batch["id"] for batch in self.open_batches]
        assert not still_open, f"forgotten: {still_open}"
        ledger = self.ledger
        assert ledger is not None
        assert ledger.manifest is not None
        assert ledger.manifest["twins"] == []
        assert {batch["metadata"][JOB_KEY] for batch in self.batches} <= {ledger.job_id}
        latest = self.generations[ledger.generation]
        assert list(read_results(ledger.manifest)) == latest.results, "changed after the job was done"
        account = Account(self.emulator.base_url, self.batches)
        numbers = sorted(self.generations)
        for number in numbers:
            if self.generations[number].results is not None:
                account.check(number, self.generations[number], self.generations.get(number + 1))

    def _finish(self) -> None:
        """Let the task go on until it is done. Where its retries do not help, somebody does what the error says."""
        options: dict[str, Any] = {}
        for number in range(12):
            if number == _PATIENT_ATTEMPTS:
                # Answers that are paid for and never named are not bought again without being told to.
                self.tries += 1
                options = {"replan": "always"}
            try:
                outcome = self._run_to_the_end(self._name(), **options)
            except OpenAIBatchesError:
                continue
            if isinstance(outcome, Finished):
                return
        raise AssertionError("the job does not come to an end")

    def _run_to_the_end(self, name: str, **options: Any) -> Finished | Stopped:
        options = {"watch": self._watch, "max_tries": self.tries} | options
        for turn in range(60):
            self.running = f"{name}-{turn}"
            job = self.world.attempt(self.running, **options)
            outcome = advance(job)
            if not isinstance(outcome, Waiting):
                return outcome
            if turn % 15 == 14:
                self.world.pass_time(DAY_S)  # There may be a batch that takes as long.
            else:
                self.world.wait(outcome)
            options["resuming"] = True
        raise AssertionError("an attempt does not come to an end")

    # --- how it is done ----------------------------------------------------------------------------------------------

    @property
    def alive(self) -> list[Attempt]:
        """Attempts that are not over, be it that they wait in a trigger."""
        return [attempt for attempt in getattr(self, "attempts", []) if attempt.at is not None]

    @property
    def open_batches(self) -> list[dict[str, Any]]:
        """Those that were not over after the last step."""
        return [batch for batch in getattr(self, "batches", []) if batch["status"] not in TERMINAL]

    @property
    def ledger(self) -> Ledger | None:
        """The ledger, which can be read at any moment."""
        return load_ledger(self.world.directory, OWNER)

    def _name(self) -> str:
        return f"attempt-{len(self.attempts)}-{self.world.attempts}"

    def _start(self, **options: Any) -> None:
        self.attempts.append(Attempt(self.world, self._name(), max_tries=self.tries, **options))
        self._step(self.attempts[-1])

    def _step(self, attempt: Attempt) -> None:
        self.running = attempt.name
        attempt.step()
        if attempt.defect is not None:
            raise attempt.defect
        self._look()

    def _go_on_to(self, attempt: Attempt, kind: str) -> None:
        while True:
            self._step(attempt)
            if attempt.at in (None, WAITING) or kind in attempt.at:
                break

    def _watch(self, _: str) -> None:
        self._look()

    def _pass_time(self, seconds: float) -> None:
        for attempt in self.alive:
            if attempt.at == "before POST batches" and self.world.now + seconds > attempt.since + LONGEST_CALL_S:
                self._step(attempt)
        self.world.pass_time(seconds)

    def _read_rows(self) -> Iterable[str]:
        self.read[self.running] = list(self.texts)
        return list(self.texts)

    def _change_rows(self, change: str) -> None:
        self.versions += 1
        new = f"say version {self.versions}"
        match change:
            case "one":
                self.texts[0] = new
            case "all":
                self.texts = [f"{new} of {index}" for index in range(len(self.texts))]
            case "more" if len(self.texts) < _MOST_ROWS:
                self.texts = [*self.texts, new]
            case "fewer" if len(self.texts) > 1:
                self.texts = self.texts[:-1]
            case "turn":
                self.texts = [*self.texts[1:], self.texts[0]]

    def _look(self) -> None:
        """Take notes of each new plan and of each plan's results."""
        ledger = self.ledger
        if ledger is None:
            return
        before = self.generations.get(ledger.generation - 1)
        if before is not None and before.results is None and ledger.earlier_results:
            before.results = list(read_results({"results": ledger.earlier_results}))
        if ledger.planned and ledger.generation not in self.generations:
            # Rows are read by the attempt that makes the plan, in the same step.
            kept = set() if before is None else before.answered()
            rows = self.read[self._reader(ledger.attempt)]
            self.generations[ledger.generation] = Generation(rows, ledger.first_shard, kept)
        generation = self.generations.get(ledger.generation)
        if ledger.manifest is not None and generation is not None and generation.results is None:
            generation.results = list(read_results(ledger.manifest))

    def _reader(self, attempt: str) -> str:
        return attempt if attempt in self.read else attempt.rpartition("-")[0]
