"""Do the tests bite? Breaks one mechanism at a time in a copy of the repository, and says which test notices it first.

    python -m tests.mutations                   all of them; some minutes
    python -m tests.mutations intent results    those whose names have one of these words in them
    python -m tests.mutations --write           all, and the table of docs/proof.md with what came of it
    python -m tests.mutations --list            their names

Ends with 1 if a broken mechanism goes unnoticed, or if a change does not fit the code any more. A test counts only if
it passes in the copy as long as nothing is broken there.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.breakages import BREAKAGES, PACKAGE, Breakage

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(?<=<!-- mutations -->\n).*?(?=<!-- /mutations -->)", re.DOTALL)
LONGEST_RUN_S = 1800
NOT_CAUGHT = "**NOT CAUGHT**"

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::\S.*?)(?: - .*)?$", re.MULTILINE)


class MisfitError(Exception):
    """A change that cannot be made, or a test run that proves nothing."""


@dataclass(frozen=True)
class Finding:
    """What came of one breakage.

    :param caught_by: the test that failed first; None if none did
    :param seconds: how long that took
    """

    breakage: Breakage
    caught_by: str | None
    seconds: float


def copy_repository(target: Path) -> None:
    """Copy what is or could be committed, as it is now."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in filter(None, names.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def try_one(breakage: Breakage, copy: Path) -> Finding:
    """Break a mechanism, run its tests until one fails, and mend it again.

    :raises MisfitError: the change does not fit the code, or the tests fail for another reason
    """
    path = copy / PACKAGE / breakage.file
    whole = path.read_text()
    if whole.count(breakage.old) != 1:
        raise MisfitError(
            f"{breakage.name}: its text is {whole.count(breakage.old)} times in {breakage.file}, not once."
        )
    began = time.monotonic()
    try:
        path.write_text(whole.replace(breakage.old, breakage.new))
        caught_by = _first_failure(breakage.tests, copy)
    finally:
        path.write_text(whole)
    if caught_by is not None and _first_failure((caught_by,), copy) is not None:
        raise MisfitError(f"{breakage.name}: {caught_by} fails even if nothing is broken.")
    return Finding(breakage, caught_by, time.monotonic() - began)


def _first_failure(tests: tuple[str, ...], copy: Path) -> str | None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "--tb=line", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
    done = subprocess.run(
        command,
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST_RUN_S,
        check=False,
    )
    if done.returncode == 0:
        return None
    failed = _FAILED.search(done.stdout)
    if done.returncode != 1 or failed is None:
        raise MisfitError(f"The tests did not run:\n{done.stdout[-3000:]}")
    return failed[1]


def table(findings: list[Finding]) -> str:
    """Return the findings as a table in Markdown."""
    rows = ["| mechanism | broken by | first test that fails |", "|---|---|---|"]
    for finding in findings:
        name = NOT_CAUGHT if finding.caught_by is None else f"`{_short(finding.caught_by)}`"
        rows.append(f"| {finding.breakage.name} | {finding.breakage.how} | {name} |")
    return "\n".join(rows) + "\n"


def _short(test: str) -> str:
    path, _, name = test.partition("::")
    # What is in brackets may hold anything, and says little here.
    return f"{path.removeprefix('tests/')}: {name.partition('[')[0]}"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only mechanisms whose names have one of these words in them")
    parser.add_argument("--write", action="store_true", help="put the table into docs/proof.md")
    parser.add_argument("--list", action="store_true", help="only show the names")
    given = parser.parse_args()
    chosen = [each for each in BREAKAGES if not given.words or any(word in each.name for word in given.words)]
    if given.list:
        print(*(each.name for each in chosen), sep="\n")
        return 0
    findings: list[Finding] = []
    misfits = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as copy:
        copy_repository(Path(copy))
        for breakage in chosen:
            try:
                finding = try_one(breakage, Path(copy))
            except (MisfitError, subprocess.TimeoutExpired) as error:
                misfits += 1
                print(f"{breakage.name}: MISFIT {error}", flush=True)
                continue
            findings.append(finding)
            print(f"{breakage.name}: {finding.caught_by or NOT_CAUGHT} ({finding.seconds:.0f} s)", flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{table(findings)}\n{used.ru_utime + used.ru_stime:.0f} s of processor time")
    if given.write and not misfits and not given.words:
        page = ROOT / "docs" / "proof.md"
        page.write_text(TABLE.sub(lambda _: table(findings), page.read_text()))
    return 1 if misfits or any(finding.caught_by is None for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
