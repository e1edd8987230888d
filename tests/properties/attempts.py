"""Attempts of one task that go from one boundary to the next only when they are told to."""

from __future__ import annotations

import os
import sys
import threading
from functools import cache
from typing import Any

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.jobs.engine import Finished, Stopped, Waiting, advance
from airflow_provider_openai_batches.jobs.job import Job
from airflow_provider_openai_batches.jobs.ledger import LedgerError
from airflow_provider_openai_batches.jobs.ownership import owns
from tests.jobs.world import World

WAITING = "waiting"
"""Where an attempt is whose task is deferred. It goes on in another process."""

BOUNDARIES = (
    "before POST batches",
    "after POST batches",
    "after claim _job/shard",
    "after POST files",
    "before write _job/attempts",
    "after write _job/attempts",
    "publish results",
    "publish v1/",
    "requests.jsonl",
    "output.jsonl",
    "clean",
)
"""Parts of the names of operations between which much can go wrong."""

DIRECT_BOUNDARIES = (".claim-1", "before POST chat", "after POST chat", "answer.json", ".ended-")
"""The same, for rows that are sent without a batch."""

_LONGEST_STEP_S = 60


_CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
"""Events of Python's audit by which a file system is changed; besides them ``open`` for writing."""

_here = threading.local()


class CrashError(BaseException):
    """The end of a process, as no code of ours expects it."""


@cache
def _audited() -> None:
    """Have Python tell of each change of a file, in time to prevent it. That cannot be undone, and costs little."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            changing()

    sys.addaudithook(hook)


def changing() -> None:
    """Tell the attempt in whose thread this is that something is about to be changed. It may die of it."""
    attempt: Attempt | None = getattr(_here, "attempt", None)
    if attempt is not None:
        attempt._before_change()


class Attempt:
    """One attempt, in a thread that runs only while :meth:`step` waits for it.

    :param world: its job
    :param name: its name
    :param options: how it opens the job, see :meth:`World.attempt`
    """

    def __init__(self, world: World, name: str, **options: Any) -> None:
        self.world, self.name, self.options = world, name, options
        self.at: str | None = "begin"
        """The boundary at which it stands; None once it is over."""
        self.since = world.now
        self.outcome: Finished | Stopped | OpenAIBatchesError | None = None
        """How it ended, unless it crashed or lost the job."""
        self.defect: BaseException | None = None
        """What no attempt may end with."""
        self._crashing = False
        self._changes_left: int | None = None
        _audited()
        self._turn, self._parked = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._live, daemon=True).start()

    def step(self) -> None:
        """Go on to the next boundary, or to the end."""
        if self.at is not None:
            self._turn.release()
            assert self._parked.acquire(timeout=_LONGEST_STEP_S), f"stuck at {self.at}"

    def crash(self) -> None:
        """Die here."""
        self._crashing = True
        self.step()
        assert self.at is None

    def doom(self, changes: int) -> None:
        """Let it die within one of its operations.

        :param changes: of files, that it still carries out
        """
        self._changes_left = changes

    def _before_change(self) -> None:
        if self._changes_left is not None:
            self._changes_left -= 1
            self._crashing |= self._changes_left < 0
        if self._crashing:
            # Again and again: what is dead does not tidy up either.
            raise CrashError

    def _live(self) -> None:
        self._turn.acquire()
        _here.attempt = self
        try:
            if not self._crashing:
                self._run()
        except CrashError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self.defect = error
        finally:
            self.at = None
            self._parked.release()

    def _run(self) -> None:
        options, number = self.options, 0
        while True:
            number += 1
            outcome = self._advance(f"{self.name}-{number}", options)
            if not isinstance(outcome, Waiting):
                self.outcome = outcome
                return
            options = {"resuming": True}
            self._park(WAITING)

    def _advance(self, name: str, options: dict[str, Any]) -> Any:
        job: Job | None = None
        try:
            job = self.world.attempt(name, watch=self._park, **options)
            return advance(job)
        except (LedgerError, FileNotFoundError) as error:
            # Told that another attempt has the job, or robbed of what it had in the making by that one.
            lost = "has taken over" in str(error) if job is None else not owns(job.directory, job.ledger)
            if not lost:
                raise
            return None
        except OpenAIBatchesError as error:
            return error

    def _park(self, at: str) -> None:
        self.at, self.since = at, self.world.now
        self._parked.release()
        self._turn.acquire()
        if self._crashing:
            raise CrashError
