"""What jobs cost: ``python -m benchmarks [--full]``, or ``make bench``. Writes docs/benchmarks.md.

The ways beside ours and how they are run: :mod:`benchmarks.contenders`.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from benchmarks.event_loop import MOST_CALLS, MOST_KB, MOST_LAG_MS, MOST_OWN_LAG_MS, compare_waiting
from benchmarks.jobs import MOST_RATIO, MOST_RESUME_S, grow
from benchmarks.machine import machine, versions
from benchmarks.measuring import exit_code
from benchmarks.rivals import MOST_CPU, MOST_MEMORY, compare

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/benchmarks.md"


def main() -> int:
    """Print the tables and write them down.

    :return: exit code: 1 if a figure is over its limit
    """
    options = argparse.ArgumentParser(prog="make bench", description=__doc__)
    options.add_argument("--rows", type=int, default=50_000, help="requests of 3.5 KB (default: %(default)s)")
    options.add_argument("--shards", type=int, default=5, help="shards of 50,000 small ones (%(default)s)")
    options.add_argument("--batches", type=int, default=1_000, help="that wait in one event loop (%(default)s)")
    options.add_argument("--full", action="store_true", help="20 shards, which is a million rows; 10,000 batches")
    options.add_argument("--rivals", type=Path, default=ROOT / ".venv-rivals", help="their virtual environment")
    given = options.parse_args()
    shards, batches = (20, 10_000) if given.full else (given.shards, given.batches)
    compared, failed = compare(given.rows, given.rivals)
    grown, over = grow(shards)
    waiting, over_too = compare_waiting(batches, given.rivals)
    failed += over + over_too
    arguments = " BENCH_ARGS=--full" if given.full else ""
    text = "\n".join([_head(f"make bench{arguments}"), *map(str, [*compared, *grown, *waiting])])
    DOCS.write_text(text, encoding="utf-8")
    print(text)
    return exit_code(failed)


def _head(command: str) -> str:
    return f"""# Benchmarks

Written by `{command}` on {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}: {machine()};
{versions(rivals=True)}.

Each figure is of a process of its own, with one emulator for all in another. CPU is user and system time of that
process alone. Peak is its resident memory above what it was before the work, when all was imported and a job of one row
was done; "first" is the CPU time until then, from the start of the process. Wall time is without the time in which the
emulator made up the answers.

Operators run as in Airflow's task runner: their template fields are rendered, `execute()` runs until it defers, the
trigger until its event, then a fresh operator is rendered and resumes. Nothing else of Airflow is in the figures.
Rendering is what makes common-ai's operator slow: its prompts are templates. Its decorator avoids that. Both take a
list of rows, and write results in the order of the service's file. Ours takes a generator, and writes them in input
order, as the bare script does, which keeps no record of what it bought, checks nothing and repeats nothing.

Limits that make the command fail: CPU above {MOST_CPU:.2f} and peak above {MOST_MEMORY:.3f} of common-ai's operator;
many shards that need more than {MOST_RATIO:.2f} times the memory of one; a resume of {MOST_RESUME_S:g} s; for waiting
batches, an event loop that is late by more than {MOST_LAG_MS:g} ms (p99), a lag of the loop or of a thread above
{MOST_OWN_LAG_MS:g} ms that is not Python's garbage collector, more than {MOST_CALLS} calls per 100 batches and
interval, more than {MOST_KB:g} KB a trigger, or a completion noticed later than one interval.

In the last two tables, each trigger waits for its own batch in one event loop, as in a triggerer. The loop's lag is
measured by a ticker beside them, and "to_thread" is an unrelated `asyncio.to_thread` in the same loop, as any other
trigger may use it. "Own" is without the time in which Python's garbage collector ran: what it looks through grows with
the triggers, whatever they do. Memory is above that of a loop with one trigger. A tenth of the batches completes here
and there within an interval, the rest at once; "noticed" is the longest time from a completion to its trigger's event.
A real triggerer: [what waiting costs](waiting.md).
"""


if __name__ == "__main__":
    sys.exit(main())
