"""Whoever dies, and whoever wakes up again: each round is bought once, each row gets its one true result."""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from airflow_provider_openai_batches.api.session import TRANSFER_TIMEOUT_S as LONGEST_CALL_S
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.jobs.engine import Finished, Waiting, advance
from airflow_provider_openai_batches.jobs.ledger import LedgerError
from tests.jobs.doomed import killed
from tests.jobs.world import World

NewWorld = Callable[..., World]

IN_MEMORY = next((path for path in ["/dev/shm"] if os.access(path, os.W_OK)), None)

SMALL = {"rows": [f"say {index}" for index in range(4)], "per_batch": 3}
SMALL_FAULTS = (
    {"on": {"custom_id": "row-1"}, "do": {"outcome": "server_error"}},
    {"on": {"batch": {}}, "do": {"outcome": "expire"}, "skip": 2},
)
"""One row fails, and the batch that is to make up for it expires."""

DIRECT = {**SMALL, "finish_synchronously_below": 3}
DIRECT_FAULTS = (
    {"on": {"custom_id": "row-1"}, "do": {"outcome": "server_error"}},
    {"on": {"custom_id": "row-2"}, "do": {"outcome": "server_error"}},
)
"""Two rows fail, which are to be sent without a batch."""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory in memory: what a process wrote survives SIGKILL even if no disk has it yet."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
        yield Path(directory)


@pytest.mark.parametrize("part", range(8))
def test_sigkill_at_any_boundary_loses_and_repeats_nothing(new_world: NewWorld, part: int) -> None:
    boundaries = 0
    for kill_at in range(part + 1, 1000, 8):
        world = new_world(**SMALL)
        world.clear_faults()
        world.add_faults(*SMALL_FAULTS)
        was_killed = killed(world, SMALL, kill_at)
        outcome = world.run()
        rows = world.check_results(outcome)
        assert [row["status"] for row in rows] == ["succeeded"] * 4
        world.check_bought_once()
        assert len(world.batches()) in (3, 4)
        assert outcome.manifest["twins"] == []
        assert not list(world.location.glob("_job/.drafts/*"))
        if not was_killed:
            break
        boundaries += 1
    assert boundaries > 8, "the job has more steps than that"


@pytest.mark.parametrize("seed", range(32))
def test_chaos_buys_every_row_once(new_world: NewWorld, seed: int) -> None:
    chaos = random.Random(seed)
    rows = 40
    options: dict[str, Any] = {"rows": [f"say {index}" for index in range(rows)], "per_batch": 10}
    world = new_world(**options)
    failing = chaos.sample(range(rows), rows // 20)
    world.add_faults(
        *({"on": {"custom_id": f"row-{index}"}, "do": {"outcome": "server_error"}} for index in failing),
        {"on": {"batch": {}}, "do": {"outcome": "expire"}, "skip": chaos.randrange(4)},
        *(_http_fault(chaos) for _ in range(12)),
    )
    for _ in range(3):
        if not killed(world, options, kill_at=chaos.randrange(5, 150)):
            break
    outcome = world.run()
    results = world.check_results(outcome)
    assert [row["status"] for row in results] == ["succeeded"] * rows
    assert world.answered() == {f"row-{index}": 1 for index in range(rows)}
    world.check_bought_once()


def _http_fault(chaos: random.Random) -> dict[str, Any]:
    on, effects = chaos.choice(
        [
            ({"method": "POST", "path": "/batches"}, [{"drop": "after"}, {"drop": "before"}, {"status": 500}]),
            ({"method": "POST", "path": "/files"}, [{"drop": "after"}, {"status": 503}]),
            ({"method": "GET", "path": "/batches"}, [{"status": 500}, {"drop": "after"}]),
            ({"method": "GET", "path": "/batches/*"}, [{"status": 502}, {"set": {"output_file_id": ""}}]),
            ({"method": "GET", "path": "/files/*/content"}, [{"truncate": chaos.randrange(4000)}, {"status": 500}]),
        ]
    )
    return {"on": on, "do": chaos.choice(effects), "skip": chaos.randrange(6), "times": chaos.randrange(1, 4)}


@pytest.mark.parametrize("part", range(4))
def test_sigkill_while_the_last_rows_are_sent_repeats_only_the_one_whose_answer_was_under_way(
    emulator: Emulator, new_world: NewWorld, part: int
) -> None:
    seen = operations(new_world, DIRECT, DIRECT_FAULTS)
    boundaries = [number for number, operation in enumerate(seen, start=1) if _is_of_the_last_rows(operation)]
    assert len(boundaries) > 15
    for kill_at in boundaries[part::4]:
        # With texts of its own, what each job bought can be told from the others'.
        options = {**DIRECT, "rows": [f"say {index} and die at {kill_at}" for index in range(4)]}
        world = new_world(**options)
        world.clear_faults()
        world.add_faults(*DIRECT_FAULTS)
        assert killed(world, options, kill_at)
        rows = world.check_results(world.run())
        assert [row["status"] for row in rows] == ["succeeded"] * 4
        assert [row["batch_id"] is None for row in rows] == [False, True, True, False]
        bought = Counter(each.body["messages"][0]["content"] for each in emulator.requests() if each.billed)
        counts = [bought[row["context"]["prompt"]] for row in rows]
        assert set(counts) <= {1, 2}
        assert sum(counts) == 4 + _is_paid_and_not_written(seen[:kill_at]), seen[kill_at - 1]
        assert len(world.batches()) == 2


def _is_of_the_last_rows(operation: str) -> bool:
    return "direct" in operation or "POST chat" in operation or "round-2" in operation


def _is_paid_and_not_written(operations: list[str]) -> bool:
    calls = sum(operation == "after POST chat" for operation in operations)
    return calls > sum(operation.startswith("after write") and ".answer" in operation for operation in operations)


# --- two attempts at once ------------------------------------------------------------------------------------------


def operations(new_world: NewWorld, options: dict[str, Any] = SMALL, faults: Any = SMALL_FAULTS) -> list[str]:
    """What an undisturbed run does, in order."""
    seen: list[str] = []
    world = new_world(**options)
    world.add_faults(*faults)
    world.watch = seen.append
    world.run()
    return seen


def test_zombie_that_wakes_up_at_any_kind_of_boundary_after_the_job_is_done_changes_nothing(
    new_world: NewWorld,
) -> None:
    kinds: dict[str, int] = {}
    for number, operation in enumerate(operations(new_world)):
        kinds.setdefault(re.sub(r"shard-\d+", "shard", operation), number)
    # Nobody can stop this one; see the test of batches that were sent far too late.
    del kinds["before POST batches"]
    for number in kinds.values():
        world, _ = _replaced_at(number, new_world, SMALL, SMALL_FAULTS)
        world.check_bought_once()


def test_zombie_that_wakes_up_while_it_sends_the_last_rows_changes_nothing_and_buys_none(
    emulator: Emulator, new_world: NewWorld
) -> None:
    seen = operations(new_world, DIRECT, DIRECT_FAULTS)
    for number in (number for number, operation in enumerate(seen) if _is_of_the_last_rows(operation)):
        options = {**DIRECT, "rows": [f"say {index} and wake up at {number}" for index in range(4)]}
        _, rows = _replaced_at(number, new_world, options, DIRECT_FAULTS)
        bought = Counter(each.body["messages"][0]["content"] for each in emulator.requests() if each.billed)
        # Its call was taken for one that has ended: it comes far too late, and nobody can stop it or its answer.
        too_late = seen[number] == "before POST chat" or _is_paid_and_not_written(seen[: number + 1])
        assert sum(bought[row["context"]["prompt"]] for row in rows) == 4 + too_late, seen[number]


def _replaced_at(
    number: int, new_world: NewWorld, options: dict[str, Any], faults: Any
) -> tuple[World, list[dict[str, Any]]]:
    """Freeze an attempt before or after one of its operations until another has done the job."""
    world = new_world(**options)
    world.clear_faults()
    world.add_faults(*faults)
    manifests: list[Any] = []
    count = iter(range(1000))

    def replaced(_: str) -> None:
        if next(count) == number:
            world.watch = None
            manifests.append(world.run().manifest)

    world.watch = replaced
    try:
        outcome = world.run()
    except (LedgerError, FileNotFoundError):
        outcome = world.run(resuming=True)
    assert outcome == Finished(manifests[0])
    return world, world.check_results(outcome)


class _CrashError(BaseException):
    """Ends a puppet."""


class Puppet:
    """An attempt that goes from one boundary to the next only when it is told to."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.at: str | None = "begin"
        self.since = world.now
        self.error: BaseException | None = None
        self._crashing = False
        self._turn, self._parked = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Go on to the next boundary, or to the end."""
        if self.at is not None:
            self._turn.release()
            assert self._parked.acquire(timeout=60)

    @property
    def is_asking(self) -> bool:
        """Whether it has sent a row without a batch, or is about to, and has not written down what came of it."""
        at = self.at or ""
        return at.endswith("POST chat") or (at.startswith("before write") and ".answer" in at)

    def crash(self) -> None:
        """Die here."""
        self._crashing = True
        self.step()
        assert self.at is None

    def _live(self) -> None:
        self._turn.acquire()
        try:
            resuming = False
            while True:
                if isinstance(advance(self.world.attempt(self.name, resuming=resuming, watch=self._park)), Finished):
                    break
                resuming = True
                self._park("waiting")
        except (_CrashError, LedgerError, FileNotFoundError):
            pass  # Dead, or told that another attempt has the job.
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self.error = error
        finally:
            self.at = None
            self._parked.release()

    def _park(self, at: str) -> None:
        self.at, self.since = at, self.world.now
        self._parked.release()
        self._turn.acquire()
        if self._crashing:
            raise _CrashError


class TwoAttempts(RuleBasedStateMachine):
    """Two attempts of one task, either of which may be the zombie."""

    emulator: Emulator
    options: ClassVar[dict[str, Any]] = SMALL
    faults: ClassVar[tuple[dict[str, Any], ...]] = SMALL_FAULTS

    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="two-attempts-", dir=IN_MEMORY))
        # With texts of its own, what each job bought can be told from the others'.
        texts = [f"say {index} in {self.directory.name}" for index in range(4)]
        self.world = World(self.emulator.base_url, self.directory, **self.options | {"rows": texts})
        self.world.clear_faults()
        self.world.add_faults(*self.faults[: seed % 3])
        self.puppets: list[Puppet] = []
        self.begun = self.lost = 0

    @precondition(lambda self: len(self.alive) < 2)
    @rule()
    def start(self) -> None:
        self.begun += 1
        self.puppets.append(Puppet(self.world, f"puppet-{self.begun}"))
        self.puppets[-1].step()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), steps=st.integers(1, 25))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        puppet = data.draw(st.sampled_from(self.alive))
        for _ in range(steps):
            puppet.step()
            if puppet.at in (None, "waiting"):
                break

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self._crash(data.draw(st.sampled_from(self.alive)))

    @rule(seconds=st.sampled_from([1, 20, 31, 80, 130, 200]))
    def pass_time(self, seconds: int) -> None:
        for puppet in self.alive:
            # A call that is on its way arrives, or its client gives up.
            if puppet.at == "before POST batches" and self.world.now + seconds > puppet.since + 60:
                puppet.step()
            while puppet.is_asking and self.world.now + seconds > puppet.since + LONGEST_CALL_S / 3:
                puppet.step()  # There are three such boundaries.
        self.world.pass_time(seconds)

    @invariant()
    def no_twins(self) -> None:
        for puppet in self.puppets:
            if puppet.error is not None:
                raise puppet.error
        if (self.directory / "_job/job.json").exists():
            assert all(count == 1 for count in self.world.bought().values())

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for puppet in self.alive:
            self._crash(puppet)
        outcome = self.world.run()
        rows = self.world.check_results(outcome)
        assert [row["status"] for row in rows] == ["succeeded"] * 4
        self.world.check_bought_once()
        bought = Counter(each.body["messages"][0]["content"] for each in self.emulator.requests() if each.billed)
        assert sum(bought[row["context"]["prompt"]] for row in rows) <= 4 + self.lost
        assert outcome.manifest["twins"] == []
        shutil.rmtree(self.directory)

    def _crash(self, puppet: Puppet) -> None:
        self.lost += puppet.is_asking
        puppet.crash()

    @property
    def alive(self) -> list[Puppet]:
        return [puppet for puppet in getattr(self, "puppets", []) if puppet.at is not None]


class TwoAttemptsAtTheLastRows(TwoAttempts):
    """The same, where the last rows are sent without a batch."""

    options = DIRECT
    faults = DIRECT_FAULTS


@pytest.mark.parametrize("attempts", [TwoAttempts, TwoAttemptsAtTheLastRows])
def test_two_attempts_in_any_order_never_buy_a_round_or_row_twice(
    emulator: Emulator, attempts: type[TwoAttempts]
) -> None:
    attempts.emulator = emulator
    run_state_machine_as_test(
        attempts,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )


def test_waiting_is_never_for_nothing(new_world: NewWorld) -> None:
    world = new_world(**SMALL, max_active_batches=1)
    job = world.attempt()
    while isinstance(outcome := advance(job), Waiting):
        assert outcome.batch_ids or outcome.not_before is not None
        world.wait(outcome)
    assert isinstance(outcome, Finished)
