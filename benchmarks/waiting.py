"""What thousands of waits cost: ``python -m benchmarks.waiting``, or ``make bench-waiting``. Writes docs/waiting.md.

10,000 waits in one event loop (:mod:`benchmarks.event_loop`), then 5,000 deferred tasks in a real triggerer, beside
triggers that only sleep (:mod:`benchmarks.triggerer`).
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import sys
from pathlib import Path

from benchmarks.event_loop import LATENCY_S, MOST_CALLS, MOST_KB, MOST_LAG_MS, MOST_OWN_LAG_MS, OURS, measure_waiting
from benchmarks.machine import machine, versions
from benchmarks.measuring import Table, exit_code
from benchmarks.triggerer import measure_triggerer

DOCS = Path(__file__).parents[1] / "docs/waiting.md"


def main() -> int:
    """Print the tables, and write them down unless only a part was asked for.

    :return: exit code: 1 if a figure is over its limit
    """
    options = argparse.ArgumentParser(prog="make bench-waiting", description=__doc__)
    options.add_argument("--batches", type=int, default=10_000, help="in one event loop (default: %(default)s)")
    options.add_argument("--triggers", type=int, default=5_000, help="in a triggerer (default: %(default)s)")
    options.add_argument("--poll-interval", type=float, default=30.0, metavar="SECONDS", help="there (%(default)s)")
    options.add_argument(
        "--watch-for", type=float, default=60.0, metavar="SECONDS", help="before all end (%(default)s)"
    )
    options.add_argument("--only", choices=("loop", "triggerer"), help="print one part, and write nothing down")
    given = options.parse_args()
    _allow_files(2 * given.triggers)
    load = os.getloadavg()[0]
    tables: list[Table] = []
    failed: list[str] = []
    if given.only != "triggerer":
        tables, failed = measure_waiting([(sys.executable, OURS, given.batches)])
    if given.only != "loop":
        more, over = measure_triggerer(given.triggers, given.poll_interval, given.watch_for)
        tables, failed = tables + more, failed + over
    text = "\n".join([_head(load, given.triggers, given.poll_interval), *map(str, tables)])
    if given.only is None:
        DOCS.write_text(text, encoding="utf-8")
    print(text)
    return exit_code(failed)


def _allow_files(files: int) -> None:
    """Let a triggerer have a log file open for each trigger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise SystemExit(f"{files:,} open files are needed, and the limit is {hard:,}: raise it (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))


def _head(load: float, triggers: int, poll_interval: float) -> str:
    return f"""# What waiting costs

Written by `make bench-waiting` on {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}: {machine()}; {versions()}.
Other work gave the machine a load of {load:.1f} at the start.

How to size a triggerer is in [the guide](guide.md#thousands-of-waiting-tasks); here is what that rests on.

Each trigger waits for a batch of its own, {poll_interval:.0f} s between looks, {LATENCY_S * 1e3:.0f} ms a call.

Limits that make the command fail, in one event loop: a lag above {MOST_LAG_MS:g} ms (p99) while nothing happens; one
above {MOST_OWN_LAG_MS:g} ms at any time, of the loop or of an unrelated `asyncio.to_thread`, Python's garbage collector
apart; more than {MOST_CALLS} calls per 100 batches and interval; more than {MOST_KB:g} KB a trigger; a completion
noticed later than one interval. In the triggerer: p99, memory, and the time until our poll loop has told a trigger.

- **Noticed**: a tenth of the batches ends here and there within an interval, then the rest at once. The figure is the
  longest time from the end of a batch to the event of its trigger. What a page of the listing says is told before the
  next page is asked for.
- **Lag**: a ticker measures how late the loop is. "Own" is without the time in which Python's garbage collector ran: it
  stops the loop and all threads, for longer the more objects a process has, whatever its triggers do.
- **Told, fired, scheduled**: our poll loop has handed over that the batch is over; the trigger has given its event to
  Airflow; Airflow has written it to the database, and with it that the task goes on. The last step is the work of
  Airflow's supervisor, one event after the other. Triggers that only sleep, {triggers:,} of them in a triggerer of
  their own, show what it takes at least when all fire at one moment.
- **While they end**: Airflow logs "Trigger fired event" and "trigger completed" from the loop's default executor, and
  its supervisor reads no line while it writes events. The lines wait, and each `asyncio.to_thread` of the triggerer
  behind them: with those that sleep as with ours. Our own calls and log lines have threads of their own.
- A triggerer keeps a log file open for each trigger; its limit of open files has to be above its capacity:
  [what to set](guide.md#thousands-of-waiting-tasks). The command raises its own.
"""


if __name__ == "__main__":
    sys.exit(main())
