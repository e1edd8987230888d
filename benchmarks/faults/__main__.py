"""Every fault of the service against every operation: ``python -m benchmarks.faults``, or ``make bench-faults``.

Writes docs/faults.md. Ends with 1 if ours lost a row, bought one twice, or came to another outcome than the table of
:mod:`benchmarks.faults.cases` says.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults.cases import OURS, RIVALS, cases
from benchmarks.faults.matrix import Result, Workers, run_case
from benchmarks.faults.page import page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/faults.md"


def main() -> int:
    """Run the matrix.

    :return: exit code
    """
    options = argparse.ArgumentParser(prog="make bench-faults", description=__doc__)
    options.add_argument("--rivals", type=Path, default=ROOT / ".venv-rivals", help="their virtual environment")
    options.add_argument("--only", metavar="TEXT", default="", help="cases with it in their name; writes no docs")
    given = options.parse_args()
    pythons = dict.fromkeys(OURS, sys.executable) | dict.fromkeys(RIVALS, str(given.rivals / "bin/python"))
    results, began = list[Result](), time.monotonic()
    with tempfile.TemporaryDirectory() as home, Workers() as workers:
        os.environ["AIRFLOW_HOME"] = home
        for operation, python in pythons.items():
            for case in cases(operation):
                if given.only not in f"{case.operation}: {case.fault} at {case.at}":
                    continue
                result = run_case(case, workers, python)
                results.append(result)
                if given.only:
                    print(result, file=sys.stderr)
            print(f"{operation}: done after {time.monotonic() - began:.0f} s", file=sys.stderr)
    wrong = [each for each in results if each.case.operation in OURS and (problem(each))]
    if not given.only:
        DOCS.write_text(page(results), encoding="utf-8")
    for each in wrong:
        case = each.case
        print(f"{case.operation}, {case.fault} at {case.at}: {problem(each)}; {each.message}", file=sys.stderr)
    return int(bool(wrong))


def problem(result: Result) -> str:
    """Return what is wrong with a result of ours; nothing if it is as it has to be."""
    found = []
    if result.lost:
        found.append(f"{result.lost} rows lost")
    if result.twice:
        found.append(f"{result.twice} rows bought twice")
    if result.outcome != result.case.expected:
        found.append(f"{result.outcome}, expected {result.case.expected}")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
