"""Attempts of one task that go from one boundary to the next only when they are told to."""

from __future__ import annotations

import threading
from typing import Any

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.jobs.engine import Finished, Job, Stopped, Waiting, advance
from airflow_provider_openai_batches.jobs.ledger import LedgerError, owns
from tests.jobs.world import World

WAITING = "waiting"
"""Where an attempt is whose task is deferred. It goes on in another process."""

_LONGEST_STEP_S = 60


class CrashError(BaseException):
    """The end of a process, as no code of ours expects it."""


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

    def _live(self) -> None:
        self._turn.acquire()
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
