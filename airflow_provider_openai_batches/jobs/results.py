"""A shard's rounds of requests and answers become one row per request, in input order.

Nothing here is a record of its own: what became of each row is worked out from the files every time, so that a crash
loses nothing. A million rows cost no more memory than the largest shard, because answers are found through an index of
offsets and are in memory one at a time.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_openai_batches.api.models import Batch, BatchStatus, Usage
from airflow_provider_openai_batches.jobs.changes import body_of, changed
from airflow_provider_openai_batches.jobs.classify import (
    NOT_SUBMITTED,
    Done,
    Outcome,
    Retry,
    RetryLimits,
    RowFailure,
    RowStatus,
    classify,
    ran,
)
from airflow_provider_openai_batches.jobs.lines import parse_line
from airflow_provider_openai_batches.jobs.rounds import (
    LineIndex,
    Oddities,
    RoundFiles,
    RoundReader,
    read_requests,
)

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.structured import Parsed


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What a job says about its answers.

    :param endpoint: path of its requests
    :param limits: how often a row may be tried
    :param parse_output: validates the text of an answer; None where any text will do
    :param output_schema: the schema that it goes by
    """

    endpoint: str
    limits: RetryLimits = RetryLimits()
    parse_output: Callable[[str], Parsed] | None = None
    output_schema: dict[str, Any] | None = None


class ResultRow(msgspec.Struct, kw_only=True):
    """One row of a job's results. ``output`` and ``context`` may be JSON that is passed through undecoded."""

    custom_id: str
    index: int
    status: RowStatus
    output: Any
    error: RowFailure | None
    finish_reason: str | None
    model: str | None
    usage: Usage | None
    batch_id: str | None
    request_id: str | None
    attempts: int
    context: Any


class ShardReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a shard stands after its rounds so far.

    :param rows: rows of the shard
    :param retries: rows for the next round; the shard is finished when there are none
    :param ran: rows of the last round that reached the model; 0 means that the round brought nothing
    :param by_status: rows by the status they have if no round follows
    :param by_error: rows by error code, likewise
    :param usage: tokens of all rounds together
    :param direct_requests: answers and refusals that came without a batch
    :param direct_usage: their share of the tokens
    :param oddities: of all rounds together
    """

    rows: int
    retries: int
    ran: int
    by_status: dict[str, int]
    by_error: dict[str, int]
    usage: Usage
    direct_requests: int
    direct_usage: Usage
    oddities: Oddities


class NextRound(msgspec.Struct, frozen=True):
    """Size of a request file that was written."""

    requests: int
    bytes: int
    tokens: int


class ShardReview:
    """What became of each row of a shard, and what follows from it.

    The files have to stay where they are while it is in use.

    :param context: the shard's context file, one line per row in input order
    :param rounds: all rounds so far, in order; the first sent every row, the later ones a part, all in input order
    :param rules: what the job says about its answers
    :param unsent: what a row is that no round has sent
    """

    def __init__(
        self, context: Path, rounds: Sequence[RoundFiles], rules: Rules, *, unsent: Outcome = NOT_SUBMITTED
    ) -> None:
        self.context = context
        self.rounds = rounds
        self.rules = rules
        self._unsent = unsent
        self._positions = _read_positions(context)
        rows = len(self._positions)
        # The round that says what the row is, counted from 1; 0 while it was never sent.
        self._rounds = array("H", bytes(2 * rows))
        self._answers = LineIndex(rows)
        self._attempts = array("H", bytes(2 * rows))
        self._retries = bytearray(rows)
        self._outdated = self._outdated_direct = Usage()
        self._direct_requests = 0
        self._ran = 0
        self._oddities = Oddities()
        self._report: ShardReport | None = None
        with ExitStack() as stack:
            readers = self._readers(stack)
            for number in range(1, len(rounds) + 1):
                self._replay(number, readers)

    @property
    def report(self) -> ShardReport:
        """How the shard stands. At no further cost if its rows have been iterated over."""
        if self._report is None:
            for _ in self._outcomes():
                pass
        assert self._report is not None
        return self._report

    def rows(self) -> Iterator[ResultRow]:
        """Iterate over the shard's result rows, one per request, in input order."""
        return (row for row, _ in self.rows_and_outcomes())

    def rows_and_outcomes(self) -> Iterator[tuple[ResultRow, Outcome]]:
        """Iterate over the shard's result rows, each with what it was made of."""
        with self.context.open("rb") as contexts:
            for position, (outcome, raw) in enumerate(zip(self._outcomes(), contexts, strict=True)):
                row = _context_decoder.decode(raw)
                number = self._rounds[position]
                result = ResultRow(
                    custom_id=row.custom_id,
                    index=row.index,
                    status=outcome.status,
                    output=outcome.output,
                    error=outcome.error,
                    finish_reason=outcome.finish_reason,
                    model=outcome.model,
                    usage=outcome.usage,
                    batch_id=self.rounds[number - 1].batch_id if number else None,
                    request_id=outcome.request_id,
                    attempts=self._attempts[position],
                    context=row.context,
                )
                yield result, outcome

    def decided_by(self, position: int) -> int:
        """Return the number of the round that says what a row is, counted from 1; 0 for a row that was never sent.

        :param position: of the row in the shard, from 0
        """
        return self._rounds[position]

    def write_next_round(
        self,
        destination: Path,
        count_tokens: Callable[[bytes], int],
        *,
        max_bytes: float = math.inf,
        max_tokens: float = math.inf,
    ) -> NextRound:
        """Write the request file of the next round: each row's last request again, changed where that may help.

        Rows beyond a limit are left to the round after it; one row is always written.

        :param destination: the new file
        :param count_tokens: estimates a request's tokens by its body
        :param max_bytes: of the file; default: no limit
        :param max_tokens: of the file, estimated; default: no limit
        """
        requests = size = tokens = 0
        with ExitStack() as stack:
            readers = self._readers(stack)
            sink = stack.enter_context(destination.open("wb"))
            # A row is usually in the last round, but one given up earlier may be taken up again with a higher limit.
            numbers = range(1, len(self.rounds) + 1) if self.report.retries else ()
            latest = map(self._open_requests, numbers)
            for position, request in heapq.merge(*latest, key=itemgetter(0)):
                outcome = self._outcome(position, readers)
                if isinstance(outcome, Retry) and outcome.change is not None:
                    request = changed(request, outcome.change)
                more = count_tokens(body_of(request))
                if requests and (size + len(request) >= max_bytes or tokens + more > max_tokens):
                    break
                size += sink.write(request + b"\n")
                tokens += more
                requests += 1
        return NextRound(requests, size, tokens)

    def _replay(self, number: int, readers: Sequence[RoundReader]) -> None:
        """Note where one round's answers are, and which rows they decide."""
        self._ran = 0
        direct = self.rounds[number - 1].direct
        for position, place, line in readers[number - 1].answers(self._sent(number), self._oddities):
            self._direct_requests += direct and line is not None
            if self._rounds[position]:
                earlier = self._outcome(position, readers)
                # What is answered stays answered, even if stricter rules sent it once more.
                if isinstance(earlier, Done):
                    continue
                self._outdated += earlier.usage or Usage()
                if self._is_direct(position):
                    self._outdated_direct += earlier.usage or Usage()
            self._rounds[position] = number
            self._answers[position] = place
            if ran(line):
                self._attempts[position] += 1
                self._ran += 1

    def _outcomes(self) -> Iterator[Outcome]:
        """Iterate over what each row came to, in input order. The report is there when all are counted."""
        kinds: Counter[tuple[RowStatus, str | None]] = Counter()
        usage, direct_usage = self._outdated, self._outdated_direct
        with ExitStack() as stack:
            readers = self._readers(stack)
            for position in range(len(self._positions)):
                outcome = self._outcome(position, readers)
                self._retries[position] = isinstance(outcome, Retry)
                kinds[outcome.status, outcome.error.code if outcome.error else None] += 1
                if outcome.usage is not None:
                    usage += outcome.usage
                    if self._is_direct(position):
                        direct_usage += outcome.usage
                yield outcome
        by_status: Counter[str] = Counter()
        by_error: Counter[str] = Counter()
        for (status, code), count in kinds.items():
            by_status[status.value] += count
            if code is not None:
                by_error[code] += count
        self._report = ShardReport(
            rows=len(self._positions),
            retries=sum(self._retries),
            ran=self._ran,
            by_status=dict(by_status),
            by_error=dict(by_error),
            usage=usage,
            direct_requests=self._direct_requests,
            direct_usage=direct_usage,
            oddities=self._oddities,
        )

    def _is_direct(self, position: int) -> bool:
        """Whether a row is what a round without a batch made of it."""
        number = self._rounds[position]
        return number > 0 and self.rounds[number - 1].direct

    def _sent(self, number: int) -> bytearray:
        """Which rows a round sent, by position."""
        rows = len(self._positions)
        if number == 1:
            return bytearray(b"\1") * rows
        sent = bytearray(rows)
        for position, _, _ in read_requests(self.rounds[number - 1].requests, self._positions):
            sent[position] = True
        return sent

    def _open_requests(self, number: int) -> Iterator[tuple[int, bytes]]:
        """Position and line of the rows that are to be tried again, and were sent in this round last."""
        for position, _, request in read_requests(self.rounds[number - 1].requests, self._positions):
            if self._retries[position] and self._rounds[position] == number:
                yield position, request

    def _readers(self, stack: ExitStack) -> list[RoundReader]:
        return [stack.enter_context(RoundReader(files, self._positions)) for files in self.rounds]

    def _outcome(self, position: int, readers: Sequence[RoundReader]) -> Outcome:
        """What a row came to in the round that says what it is."""
        number = self._rounds[position]
        if not number:
            return self._unsent
        reader = readers[number - 1]
        return classify(
            reader.answer(self._answers[position]),
            batch_status=reader.files.batch_status,
            attempts=self._attempts[position],
            limits=self.rules.limits,
            endpoint=self.rules.endpoint,
            request=partial(reader.request, position),
            parse_output=self.rules.parse_output,
            output_schema=self.rules.output_schema,
        )


def check_counts(batch: Batch, output_lines: int, error_lines: int, requests: int = 0) -> str | None:
    """Compare fetched files with what the batch says it did; if it says nothing, with what it was asked to do.

    More lines than counted are fine: expired batches do not count requests that never ran, some services count
    nothing, and others write all lines to one file.

    :param batch: the batch in its terminal state
    :param output_lines: lines of its output file, see :func:`count_lines`
    :param error_lines: lines of its error file
    :param requests: that it was created with; default: not known
    :return: what is wrong, or None
    """
    counts = batch.request_counts
    if not counts.total and batch.status == BatchStatus.COMPLETED and output_lines + error_lines < requests:
        missing = f"it had {requests:,} requests, but its files have {output_lines + error_lines:,} lines"
    elif output_lines < counts.completed:
        missing = f"{counts.completed:,} requests completed, but the output file has {output_lines:,} lines"
    elif output_lines + error_lines < counts.completed + counts.failed:
        missing = f"{counts.failed:,} requests failed, but the error file has {error_lines:,} lines"
    else:
        return None
    return f"Batch {batch.id}: {missing}. The file is not complete."


def count_lines(path: Path) -> int:
    """Count the lines of a result file. A last one that was cut off does not count; it would be bought again."""
    count = 0
    last = b""
    with path.open("rb") as file:
        for last in file:
            count += not last.isspace()
    if last and not last.endswith(b"\n") and parse_line(last) is None:
        count -= 1
    return count


class _ContextLine(msgspec.Struct):
    custom_id: str
    index: int
    context: msgspec.Raw = msgspec.Raw(b"null")


_context_decoder = msgspec.json.Decoder(_ContextLine)


def _read_positions(context: Path) -> dict[str, int]:
    with context.open("rb") as lines:
        return {_context_decoder.decode(line).custom_id: position for position, line in enumerate(lines)}
