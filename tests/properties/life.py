"""The life of a job as a state machine: whatever happens to it, in whatever order.

Attempts run until they stand before or after an operation that others can see. There they may die, freeze while another
attempt takes over, and wake up again. Meanwhile the service fails in all its ways, time passes, somebody cancels
batches in the dashboard, users change rows and clear the task, and other jobs use the same answer cache. The service is
OpenAI, or any other that has a dialect.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.emulator.dialects import DIALECTS
from airflow_provider_openai_batches.jobs.engine import Finished, Stopped, Waiting, advance
from airflow_provider_openai_batches.jobs.parts import read_results
from tests.jobs.world import BATCH_S
from tests.properties import object_store
from tests.properties.account import TERMINAL, Account, Purchase, check_once, purchases
from tests.properties.attempts import BOUNDARIES, DIRECT_BOUNDARIES, WAITING, Attempt
from tests.properties.chronicle import Chronicle
from tests.properties.direct_calls import BEFORE_CALL, Receipts
from tests.properties.faults import DIRECT_FAULTS, FAULTS, MODEL, NO_METADATA, ailing
from tests.properties.service import new_service
from tests.properties.shared_cache import SharedCache

LONGEST_CALL_S = {"before POST batches": 60, BEFORE_CALL: 1_200}
"""A call that is on its way for longer has arrived, or its client has given up."""

DAY_S = 86_500
_MOST_DAYS = 5
_MOST_ROWS = 12
_MOST_FAULTS = 8
_MOST_OTHERS = 3
_PATIENT_ATTEMPTS = 4
_WAITS_TO_SEND = 3

_SERVICES = ["openai", "openai", *DIALECTS]
_QUESTIONS = st.lists(st.integers(0, 5), min_size=1, max_size=8)
_EXPIRY_S = st.sampled_from([None, 3_000, 100_000])


class JobLife(RuleBasedStateMachine):
    """One task instance's job, from its first attempt to its last."""

    in_memory: str | None = None
    """Where directories are made; None for the usual place."""

    @initialize(
        questions=_QUESTIONS,
        per_batch=st.integers(2, 4),
        max_attempts=st.integers(1, 3),
        most_active=st.sampled_from([None, None, 1]),
        queue=st.sampled_from([None, None, 60, 100_000]),
        storage=st.sampled_from(["disk", "object store"]),
        service=st.sampled_from(_SERVICES),
        deduplicate=st.booleans(),
        has_cache=st.booleans(),
        expires_after_s=_EXPIRY_S,
        directly=st.sampled_from([0, 2, 100]),
        failing=st.sets(st.integers(0, 3), max_size=3),
        troubles=st.lists(DIRECT_FAULTS, max_size=2),
    )
    def begin(
        self,
        questions: list[int],
        per_batch: int,
        max_attempts: int,
        most_active: int | None,
        queue: int | None,
        storage: str,
        service: str,
        deduplicate: bool,
        has_cache: bool,
        expires_after_s: int | None,
        directly: int,
        failing: set[int],
        troubles: list[dict[str, Any]],
    ) -> None:
        # A service of its own costs less than to tell its batches from those of other examples.
        self.closing = ExitStack()
        self.emulator = self.closing.enter_context(new_service(service))
        if service == "litellm":
            self.emulator.add_fault(NO_METADATA)
        for fault in [*map(ailing, sorted(failing)), *troubles] if directly else ():
            self.emulator.add_fault(fault)
        self.receipts = Receipts(self.emulator)
        self.batches: list[Purchase] = []
        self.folder = Path(tempfile.mkdtemp(prefix="life-", dir=self.in_memory))
        self.is_on_disk = storage == "disk"
        self.settings: dict[str, Any] = {
            "per_batch": per_batch,
            "max_attempts": max_attempts,
            "max_active_batches": most_active,
            "queue_limits": {} if queue is None else {MODEL: queue},
            "deduplicate": deduplicate,
            "finish_synchronously_below": directly,
        }
        self.cache = SharedCache(self._location("cache")) if has_cache else None
        self.job = self._new_job("job", questions, expires_after_s)
        self.others: list[Chronicle] = []
        self.attempts: list[Attempt] = []
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
        change=st.sampled_from(["nothing", "one", "all", "more", "again", "as the last", "fewer", "turn"]),
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

    @precondition(lambda self: self.alive and self.settings["finish_synchronously_below"])
    @rule(data=st.data(), kind=st.sampled_from(DIRECT_BOUNDARIES), has_rival=st.booleans())
    def live_on_until_it_sends_rows(self, data: st.DataObject, kind: str, has_rival: bool) -> None:
        """Let a task go on until it stands at a boundary between which rows are sent without a batch.

        Perhaps it is taken for dead there, and the next attempt takes over.
        """
        attempt = data.draw(st.sampled_from(self.alive))
        for _ in range(_WAITS_TO_SEND):
            self._go_on_to(attempt, kind)
            if attempt.at != WAITING:
                break
            self._pass_time(BATCH_S)
        if has_rival and attempt.at is not None and len(self.alive) < 2:
            self._start()
            self._go_on_to(self.attempts[-1], BEFORE_CALL)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self._crash(data.draw(st.sampled_from(self.alive)))

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

    @precondition(lambda self: self.settings["finish_synchronously_below"] and self.faults < _MOST_FAULTS)
    @rule(fault=DIRECT_FAULTS, skip=st.integers(0, 1))
    def fail_without_a_batch(self, fault: dict[str, Any], skip: int) -> None:
        self.faults += 1
        self.emulator.add_fault(fault | {"skip": skip})

    @precondition(lambda self: self.open_batches)
    @rule(data=st.data())
    def cancel_from_outside(self, data: st.DataObject) -> None:
        """Cancel a batch in the dashboard."""
        ids = sorted(each.batch["id"] for each in self.open_batches)
        with suppress(OpenAIBatchesError):  # It may be a fault's turn.
            self.job.world.client(attempts=1).cancel_batch(ids[data.draw(st.integers(0, len(ids) - 1))])

    @precondition(lambda self: self.cache is not None and len(self.others) < _MOST_OTHERS)
    @rule(questions=_QUESTIONS, expires_after_s=_EXPIRY_S)
    def run_another_job(self, questions: list[int], expires_after_s: int | None) -> None:
        """Let a job of another task have an attempt, with the same cache."""
        other = self._new_job(f"other-{len(self.others)}", questions, expires_after_s)
        self.others.append(other)
        with suppress(OpenAIBatchesError):
            self._run_to_the_end(other, "other", pass_time=self._pass_time, max_tries=0)

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_bought_twice(self) -> None:
        if hasattr(self, "job"):
            self.batches = purchases(self.emulator)
            check_once(self.batches)

    def teardown(self) -> None:
        if not hasattr(self, "job"):
            return
        try:
            self._finish()
            if self.alive:
                # Who is frozen wakes up when all is done. Who was about to take the job over does it now.
                for attempt in self.alive:
                    self._go_on_to(attempt, WAITING)
                    self._crash(attempt)
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
        ledger = self.job.ledger
        assert ledger is not None
        assert ledger.manifest is not None
        assert ledger.manifest["twins"] == []
        still_open = [each.batch["id"] for each in self.open_batches if each.job == ledger.job_id]
        assert not still_open, f"forgotten: {still_open}"
        latest = self.job.generations[ledger.generation]
        assert list(read_results(ledger.manifest)) == latest.results, "changed after the job was done"
        jobs = [job for job in [self.job, *self.others] if job.ledger is not None]
        assert {each.job for each in self.batches} <= {job.ledger.job_id for job in jobs if job.ledger is not None}
        for job in jobs:
            self._check(job)
        if self.cache is not None:
            self.cache.check({origin: at for job in jobs for origin, at in job.landed.items()})

    def _check(self, job: Chronicle) -> None:
        ledger = job.ledger
        assert ledger is not None
        account = Account(job.world, (each for each in self.batches if each.job == ledger.job_id), job.calls)
        for number, generation in sorted(job.generations.items()):
            if generation.results is not None:
                account.check(number, generation, job.generations.get(number + 1))

    def _finish(self) -> None:
        """Let the task go on until it is done. Where its retries do not help, somebody does what the error says."""
        options: dict[str, Any] = {}
        for number in range(12):
            if number == _PATIENT_ATTEMPTS:
                # Answers that are paid for and never named are not bought again without being told to.
                self.tries += 1
                options = {"replan": "always"}
            try:
                outcome = self._run_to_the_end(
                    self.job, self._name(), pass_time=self._pass_time, max_tries=self.tries, **options
                )
            except OpenAIBatchesError:
                continue
            if isinstance(outcome, Finished):
                return
        raise AssertionError("the job does not come to an end")

    def _run_to_the_end(
        self, job: Chronicle, name: str, *, pass_time: Callable[[float], None], **options: Any
    ) -> Finished | Stopped:
        for turn in range(60):
            running = job.running = f"{name}-{turn}"
            try:
                opened = job.world.attempt(running, watch=lambda at, name=running: job.note(name, at), **options)
                outcome = advance(opened)
            finally:
                job.note(running, None)
            if not isinstance(outcome, Waiting):
                return outcome
            # There may be a batch that takes days.
            pass_time(DAY_S if turn % 15 == 14 else job.world.wait_s(outcome))
            options["resuming"] = True
        raise AssertionError("an attempt does not come to an end")

    # --- how it is done ----------------------------------------------------------------------------------------------

    @property
    def alive(self) -> list[Attempt]:
        """Attempts that are not over, be it that they wait in a trigger."""
        return [attempt for attempt in getattr(self, "attempts", []) if attempt.at is not None]

    @property
    def open_batches(self) -> list[Purchase]:
        """Those that were not over after the last step."""
        return [each for each in getattr(self, "batches", []) if each.batch["status"] not in TERMINAL]

    def _location(self, name: str) -> Path | str:
        return self.folder / name if self.is_on_disk else object_store.new_location(f"{self.folder.name}/{name}")

    def _new_job(self, name: str, questions: list[int], expires_after_s: int | None) -> Chronicle:
        return Chronicle(
            self.emulator,
            self.receipts,
            self._location(name),
            [f"say {number}" for number in questions],
            cache=self.cache,
            expires_after_s=expires_after_s,
            **self.settings,
        )

    def _name(self) -> str:
        return f"attempt-{len(self.attempts)}-{self.job.world.attempts}"

    def _start(self, **options: Any) -> None:
        self.attempts.append(Attempt(self.job.world, self._name(), max_tries=self.tries, **options))
        self._step(self.attempts[-1])

    def _step(self, attempt: Attempt) -> None:
        self.job.running = attempt.name
        attempt.step()
        if attempt.defect is not None:
            raise attempt.defect
        self.job.note(attempt.name, attempt.at)

    def _crash(self, attempt: Attempt) -> None:
        attempt.crash()
        self.job.note(attempt.name, attempt.at)

    def _go_on_to(self, attempt: Attempt, kind: str) -> None:
        while True:
            self._step(attempt)
            if attempt.at in (None, WAITING) or kind in attempt.at:
                break

    def _pass_time(self, seconds: float) -> None:
        for attempt in self.alive:
            longest = LONGEST_CALL_S.get(attempt.at or "")
            if longest is not None and self.job.world.now + seconds > attempt.since + longest:
                self._step(attempt)
        self.job.world.pass_time(seconds)
        for other in self.others:
            other.world.pass_time(0)

    def _change_rows(self, change: str) -> None:
        self.versions += 1
        new, texts = f"say version {self.versions}", self.job.texts
        match change:
            case "one":
                texts[0] = new
            case "all":
                texts[:] = [f"{new} of {index}" for index in range(len(texts))]
            case "more" if len(texts) < _MOST_ROWS:
                texts.append(new)
            case "again" if len(texts) < _MOST_ROWS:
                texts.append(texts[0])
            case "as the last":
                texts[0] = texts[-1]
            case "fewer" if len(texts) > 1:
                texts.pop()
            case "turn":
                texts.append(texts.pop(0))
