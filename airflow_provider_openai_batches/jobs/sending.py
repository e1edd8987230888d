"""Sending rows without a batch, a few at a time, each of them once, whoever dies and whoever wakes up again.

A call that is repeated after a crash may be paid twice, and unlike a batch it cannot be found again. So what is known
of each row is in files of its own, beside the round's others, and each of them is whole or absent:

- ``0007.claim-1.json``: a process has the right to send the row once, for :data:`LEASE_S`. Of several, one gets it.
- ``0007.answer.json``: what came back, written before that process sends anything else.
- ``0007.ended-1.json``: the call has ended, and gave no answer. The row may be claimed once more.

A claim with nothing after it belongs to a process that is waiting for the answer, or died while it did. It is left
alone until the answer could not come any more (:func:`settles_s`). Then the row is sent again: this one call may have
been billed, and nobody can tell. Nothing else is paid for and lost, or sent twice.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from airflow_provider_openai_batches.api.direct import DirectAnswer, DirectClient
from airflow_provider_openai_batches.api.errors import APIStatusError, OpenAIBatchesError, QuotaExhaustedError
from airflow_provider_openai_batches.api.session import longest_call_s
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.jobs.changes import body_of
from airflow_provider_openai_batches.jobs.ledger import LedgerError, Shard
from airflow_provider_openai_batches.jobs.ownership import check_owns
from airflow_provider_openai_batches.jobs.purchase import Claim

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.job import Job

log = logging.getLogger(__name__)

LEASE_S = 60.0
"""How long after its claim a row may be sent, or sent again."""

_FAILURES_IN_A_ROW = 8
"""After these the trouble is taken to be the service's, not the rows'."""

_GRACE_S = 20.0
"""How long a task that is being ended waits for the answers that are under way."""

_OF_THE_ROW = (400, 413, 422)
"""Statuses that say that a request cannot be answered, as an error line of a batch does."""


def settles_s(settings: ClientSettings) -> float:
    """Return how many seconds after a claim its answer may still come.

    :param settings: of the connection
    """
    return LEASE_S + longest_call_s(settings) + 30.0


_OF_THE_MODEL = frozenset({"operationnotsupported", "deploymentnotfound", "model_not_found", "model_not_available"})
"""Codes, in small letters, with which a model is refused that is there for batches alone. Azure's deployments are of
one kind or the other, and say so with a 400: github.com/openai/openai-python, issue 2173."""


class Meaning(Enum):
    """What a call that gave no answer means."""

    ROW_FAILED = auto()
    TRY_LATER = auto()
    USE_A_BATCH = auto()


def meaning(error: OpenAIBatchesError) -> Meaning:
    """Decide what follows from a call that failed.

    What is not about this one request must not use up its attempts: a wrong key or path, a quota that is used up, a
    model that is for batches.
    """
    if error.transient:
        return Meaning.TRY_LATER
    # Some services say with a 400 that there is no money left.
    is_of_all = isinstance(error, QuotaExhaustedError) or (error.code or "").lower() in _OF_THE_MODEL
    is_of_the_row = error.status in _OF_THE_ROW and not is_of_all
    return Meaning.ROW_FAILED if is_of_the_row else Meaning.USE_A_BATCH


@dataclass
class Row:
    """One line of a round that is sent without a batch, and what its files say.

    :param shard: whose
    :param number: of the line, from 0
    :param path: the round's request file, on this machine
    :param offset: of the line
    :param length: of the line
    """

    shard: Shard
    number: int
    path: Path
    offset: int
    length: int
    answered: bool = False
    claims: int = 0
    ended: int = 0
    settled_at: float = 0.0

    def file(self, kind: str) -> str:
        """Name one of its files."""
        return f"{sending_folder(self.shard)}/{self.number:04d}.{kind}.json"

    def request(self) -> bytes:
        """Read the line."""
        with self.path.open("rb") as lines:
            lines.seek(self.offset)
            return lines.read(self.length).rstrip(b"\n")


@dataclass
class Sent:
    """What came of a turn at sending.

    :param answers: rows that have one now, refusals of single requests included
    :param lost: calls that may have been billed though their answer never came
    :param failure: the last call that gave no answer
    :param error: what ended the turn
    """

    answers: int = 0
    lost: int = 0
    failure: OpenAIBatchesError | None = None
    error: BaseException | None = None
    _in_a_row: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self) -> None:
        """Count an answer."""
        with self._lock:
            self.answers += 1
            self._in_a_row = 0

    def failed(self, error: OpenAIBatchesError) -> bool:
        """Count a call without an answer; return whether it is time to stop."""
        with self._lock:
            if self.failure is None or meaning(self.failure) is not Meaning.USE_A_BATCH:
                self.failure = error
            self._in_a_row += 1
            is_enough = self._in_a_row >= _FAILURES_IN_A_ROW or error.retry_after_s is not None
            return is_enough or meaning(error) is Meaning.USE_A_BATCH


def sending_folder(shard: Shard) -> str:
    """Name the folder of the files of a shard's rows that are sent without a batch."""
    return f"{shard.folder}/round-{shard.round.number}.direct"


def look_at_rows(job: Job, shard: Shard, requests: Path) -> list[Row]:
    """List the rows of a shard's round, each with what its files say.

    :param requests: the round's request file, on this machine
    """
    rows = []
    with requests.open("rb") as lines:
        offset = 0
        for number, line in enumerate(lines):
            rows.append(Row(shard, number, requests, offset, len(line)))
            offset += len(line)
    for name in job.directory.names(sending_folder(shard)):
        digits, _, rest = name.partition(".")
        kind, _, count = rest.removesuffix(".json").partition("-")
        if not digits.isdecimal() or int(digits) >= len(rows):
            continue
        row = rows[int(digits)]
        match kind:
            case "answer":
                row.answered = True
            case "claim":
                row.claims = max(row.claims, int(count))
            case "ended":
                row.ended = max(row.ended, int(count))
    for row in rows:
        if not row.answered and row.claims > row.ended:
            row.settled_at = _settled_at(job, row)
    return rows


def send(job: Job, rows: Iterable[Row]) -> Sent:
    """Send rows until all have an answer, the time is up, the task is being ended, or the service has trouble.

    This thread is one of those that send.

    :param rows: those that may be sent now
    """
    left = deque(rows)
    turn = _Turn(job, left)
    others = [
        threading.Thread(target=turn.work, name="openai-batches-direct", daemon=True)
        for _ in range(min(job.most_at_once, len(left)) - 1)
    ]
    for thread in others:
        thread.start()
    try:
        turn.work()
        for thread in others:
            while thread.is_alive() and not turn.is_overdue():
                thread.join(0.5)
    finally:
        turn.over.set()  # Also if this thread is torn away. What is under way is written down when it comes.
    if turn.sent.error is not None:
        raise turn.sent.error
    return turn.sent


class _Turn:
    """What the threads of one turn share."""

    def __init__(self, job: Job, left: deque[Row]) -> None:
        self.job = job
        self.left = left
        self.sent = Sent()
        self.over = threading.Event()
        self._halted_at: float | None = None

    def goes_on(self) -> bool:
        """Whether anything may be sent now."""
        deadline = self.job.ledger.deadline
        is_late = deadline is not None and self.job.now() >= deadline
        return not (self.over.is_set() or self.job.halted.is_set() or is_late)

    def is_overdue(self) -> bool:
        """Whether a task that is at its end has waited for its answers for long enough."""
        if self.sent.error is None and not self.job.halted.is_set():
            return False
        now = self.job.monotonic()
        self._halted_at = now if self._halted_at is None else self._halted_at
        return now - self._halted_at > _GRACE_S

    def pause(self, seconds: float) -> None:
        """Sleep between two tries of one call, unless the time is up before."""
        deadline = self.job.ledger.deadline
        left = seconds if deadline is None else min(seconds, deadline - self.job.now())
        self.job.halted.wait(max(left, 0.0))

    def work(self) -> None:
        """Send one row after the other."""
        try:
            with ExitStack() as stack:
                client = stack.enter_context(self.job.asker(self.job.client.settings, self.pause))
                try:
                    while self.left and self.goes_on():
                        try:
                            row = self.left.popleft()
                        except IndexError:  # Another thread was faster.
                            break
                        self._send(client, row)
                finally:
                    self.sent.lost += client.lost
        except BaseException as error:  # noqa: BLE001 - raised again by whoever began the turn
            self.sent.error = self.sent.error or error
            self.over.set()

    def _send(self, client: DirectClient, row: Row) -> None:
        job, number = self.job, row.claims + 1
        claim, claimed_at = Claim(job.ledger.attempt, job.now()), job.monotonic()
        if not job.directory.claim(row.file(f"claim-{number}"), msgspec.json.encode(claim)):
            return  # Another attempt is at it.
        try:
            # After the claim: whoever takes the job over from here on finds it, and leaves the row alone.
            check_owns(job.directory, job.ledger)
        except LedgerError:
            job.directory.write(row.file(f"ended-{number}"), b"{}")
            raise
        raw = row.request()
        custom_id = msgspec.json.decode(raw, type=_CustomId).custom_id
        token = job.ledger.token(row.shard, row.shard.round.number, number)

        def in_time() -> bool:
            return self.goes_on() and job.monotonic() - claimed_at < LEASE_S

        line = None
        if in_time():
            try:
                answer = client.ask(
                    job.ledger.endpoint, body_of(raw), request_id=f"{token}:{quote(custom_id)}", go_on=in_time
                )
                line = _answer_line(custom_id, answer)
            except OpenAIBatchesError as error:
                if meaning(error) is Meaning.ROW_FAILED:
                    line = _error_line(custom_id, error)
                elif self.sent.failed(error):
                    self.over.set()
        if line is not None:
            job.directory.write(row.file("answer"), line)
            self.sent.answered()
        else:
            job.directory.write(row.file(f"ended-{number}"), b"{}")


class _CustomId(msgspec.Struct):
    custom_id: str


class _Response(msgspec.Struct):
    status_code: int | None
    request_id: str | None
    body: msgspec.Raw


class _Line(msgspec.Struct):
    """A line as a batch's output and error files have them."""

    custom_id: str
    response: _Response
    error: None = None


def _answer_line(custom_id: str, answer: DirectAnswer) -> bytes:
    response = _Response(answer.status, answer.request_id, msgspec.Raw(answer.body))
    return msgspec.json.encode(_Line(custom_id, response)) + b"\n"


def _error_line(custom_id: str, error: OpenAIBatchesError) -> bytes:
    message = error.reason if isinstance(error, APIStatusError) else str(error)
    body = msgspec.json.encode({"error": {"message": message, "code": error.code, "param": error.param}})
    return msgspec.json.encode(_Line(custom_id, _Response(error.status, error.request_id, msgspec.Raw(body)))) + b"\n"


def _settled_at(job: Job, row: Row) -> float:
    content = job.directory.read(row.file(f"claim-{row.claims}"))
    try:
        claim = msgspec.json.decode(content or b"", type=Claim)
        return claim.at + settles_s(job.client.settings) * job.patience
    except msgspec.DecodeError:
        # Its maker died before it had any content, and so before it sent anything, or an object store does not show it
        # yet. It is as old as our first look, which is what the round has waited for since.
        return row.shard.round.not_before or job.now() + LEASE_S * job.patience
