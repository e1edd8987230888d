"""docs/faults.md, made of the results."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.faults.cases import CLEARED, ENDLESS, FAILED, LEFT_OUT, OURS, RETRIED, RIVALS, SUCCESS
from benchmarks.faults.matrix import Result
from benchmarks.faults.operations import CANCEL, PROMPTS, SENSOR, TRIGGER, UPLOAD, WATCHER

_OUTCOMES = (SUCCESS, RETRIED, CLEARED, FAILED, ENDLESS)
_LONGEST_MESSAGE = 200
_NO_ROWS = (SENSOR, TRIGGER, WATCHER, UPLOAD, CANCEL)
"""Operations that neither buy rows nor hand them on."""

_NOTES = """## Where a comparison does not apply

- OpenAITriggerBatchOperator begins with a file that somebody has uploaded, and ends with a batch id. So it is compared
  with our submit operator, which does the same, and neither is charged with rows that nobody downloaded: a row is lost
  only if the task names its batch nowhere. Both succeed where some rows of a batch failed.
- LLMBatchOperator runs with `fail_on_partial_error=True`. By default it succeeds whatever became of its rows, and
  counts them in its manifest. It does not claim to buy missing rows anew: such a case ends as "failed", with the rows
  that are good in its results.
- "401 for ever" and "insufficient_quota for ever" last until somebody mends them: to fail is right. A single 401 or
  `insufficient_quota` is rather an odd answer of the service.
- A row whose answer was cut by the token cap counts as one without an answer; LLMBatchOperator takes it for good.
- Neither rival claims to know Azure's spelling.
- The download operator is green with what the batch has: the rows that failed are in its error file. A sensor waits
  for an end, a trigger for its event, whatever the batch came to; neither buys or hands on rows.
- Left out: {left_out}.
- Sensor, trigger, watcher, upload, download and cancel have no counterpart there, or are part of the operators above.
- A clear an hour later is only tried where an operator is made to resume from it. To clear one of the two submit
  operators means to buy the whole file once more, by their documentation.
- All run with one retry; Airflow's default is none, and production often has more. Each may wait for 26 hours.
- Only faults of the service are here. What becomes of workers and triggerers that die is not.
"""


def page(results: Sequence[Result]) -> str:
    """Return the page."""
    parts = [_head(), _summary(results), *(_beside(results, ours, rival) for rival, ours in RIVALS.items()), _notes()]
    for operation, group in groupby(results, key=lambda each: each.case.operation):
        parts.append(_cases(operation, list(group)))
    return "\n".join(parts)


def _notes() -> str:
    left_out = (f'{operation} and "{fault}", because {why}' for (operation, fault), why in LEFT_OUT.items())
    return _NOTES.format(left_out="; ".join(left_out))


def _head() -> str:
    versions = [f"Python {platform.python_version()}", f"Airflow {importlib.metadata.version('apache-airflow')}"]
    pins = (Path(__file__).parents[1] / "rivals.txt").read_text().splitlines()
    versions += [line.replace("==", " ") for line in pins if not line.startswith("#")]
    return f"""# What faults of the service do

Written by `make bench-faults` on {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}; {", ".join(versions)}.

Each fault of the emulator meets each operation, at each of its calls in turn, with {len(PROMPTS)} rows and a fresh
emulator for every case. Operators run as in Airflow's task runner: template fields are rendered, `execute()` runs until
it defers, its trigger until the event, then a fresh operator resumes; a task has one retry, five minutes later. Time is
virtual: pauses of minutes and outages of hours pass at once, for all operators alike. What runs longer than two weeks
of that, or hangs for a minute of real time, "does not end". A task that failed for good is cleared an hour later, when
the fault is over, where that is meant to resume.

- **rows lost**: rows with a good answer, paid for and there to be fetched, that are in no result at the end. For
  operators that return a batch id: that are in a batch which the task names nowhere, be it in its result, an XCom, its
  message or what it waits for.
- **bought twice**: good answers that were bought although there was one for that row. To repeat a row that failed, was
  cut or cannot be fetched is not counted.
- **message**: the first line of the first error, which is also the log's where a retry went well.

The command fails if ours loses a row, buys one twice, or comes to another outcome than is written down in
`benchmarks/faults/cases.py`. A failure is expected there where it is the truth, or the cheaper end: a key that stays
wrong, a batch that failed or never ends, a row the model refuses, a retry that would buy finished rows again.
"""


def _summary(results: Sequence[Result]) -> str:
    heads = ["", "cases", *_OUTCOMES, "success without all rows", "rows lost", "bought twice"]
    rows = []
    for operation in [*OURS, *RIVALS]:
        own = [each for each in results if each.case.operation == operation]
        counts = [sum(each.outcome == outcome for each in own) for outcome in _OUTCOMES]
        partial = "-" if operation in _NO_ROWS else f"{sum(_is_partial(each) for each in own)}"
        totals = sum(each.lost for each in own), sum(each.twice for each in own)
        rows.append([operation, f"{len(own)}", *map(str, counts), partial, *map(str, totals)])
    return _table("Summary", heads, rows)


def _beside(results: Sequence[Result], ours: str, rival: str) -> str:
    own = {(each.case.fault, each.case.at): each for each in results if each.case.operation == ours}
    better, worse = list[list[str]](), list[list[str]]()
    for theirs in results:
        key = (theirs.case.fault, theirs.case.at)
        if theirs.case.operation != rival or key not in own or _rank(theirs) == _rank(own[key]):
            continue
        row = [_fault(theirs, [theirs.case.at]), _short(own[key]), _short(theirs)]
        (better if _rank(theirs) < _rank(own[key]) else worse).append(row)
    heads = ["fault", ours, rival]
    alike = len(own) - len(better) - len(worse)
    text = f"""Of the same {len(own)} cases, {alike} end alike. The worst end is a row lost or bought twice, then a task
that is green without all rows, then one that does not end, that failed, that took a clear, that took a retry.
"""
    return "\n".join(
        [
            f"## {ours} and {rival}\n",
            text,
            _table(f"Cases that end better for {rival}: {len(better)}", heads, better, level=3) if better else
            f"No case ends better for {rival}.\n",
            _table(f"Cases that end better for {ours}: {len(worse)}", heads, worse, level=3),
        ]
    )  # fmt: skip


def _rank(result: Result) -> tuple[int, ...]:
    """How bad an end is: lost or doubly paid rows, then a green task without all rows, then what a person has to do."""
    return result.lost + result.twice, int(_is_partial(result)), _OUTCOMES.index(result.outcome)


def _is_partial(result: Result) -> bool:
    """Whether a task is green although rows have no answer."""
    is_green = result.outcome in (SUCCESS, RETRIED, CLEARED)
    return is_green and result.case.operation not in _NO_ROWS and result.answered < len(PROMPTS)


def _short(result: Result) -> str:
    found = [result.outcome]
    if _is_partial(result):
        found.append(f"{result.answered} of {len(PROMPTS)} rows")
    found += [f"{count} {what}" for count, what in ((result.lost, "lost"), (result.twice, "bought twice")) if count]
    return ", ".join(found)


def _cases(operation: str, results: Iterable[Result]) -> str:
    """One row for all calls at which a fault comes to the same; plain successes last."""
    rows: dict[tuple[str, ...], list[Result]] = {}
    for each in sorted(results, key=lambda each: max(_rank(each)) == 0):
        outcome = each.outcome + (f", {each.answered} of {len(PROMPTS)} rows" if _is_partial(each) else "")
        key = (each.case.fault, outcome, f"{each.lost}", f"{each.twice}", _message(each))
        rows.setdefault(key, []).append(each)
    heads = ["fault", "outcome", "rows lost", "bought twice", "message"]
    return _table(
        operation,
        heads,
        [[_fault(group[0], [each.case.at for each in group]), *key[1:]] for key, group in rows.items()],
    )


def _fault(result: Result, calls: Iterable[str]) -> str:
    at = ", ".join(call for call in calls if call)
    return f"{result.case.fault} (at {at})" if at else result.case.fault


def _message(result: Result) -> str:
    text = result.message if len(result.message) <= _LONGEST_MESSAGE else result.message[: _LONGEST_MESSAGE - 1] + "…"
    return text.replace("|", "\\|").replace("<", "\\<")


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], level: int = 2) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(
        [f"{'#' * level} {title}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *lines, ""]
    )
