"""What waiting costs, in one event loop and in a real triggerer. ``python -m benchmarks.waiting``: see its --help."""

from __future__ import annotations

import argparse
import sys

from benchmarks.triggerer import measure_triggerer


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--triggers", type=int, default=5_000)
    options.add_argument("--poll-interval", type=float, default=30.0, metavar="SECONDS")
    options.add_argument("--watch-for", type=float, default=60.0, metavar="SECONDS")
    given = options.parse_args()
    tables, failed = measure_triggerer(given.triggers, given.poll_interval, given.watch_for)
    print(*tables, sep="\n")
    print(failed)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
