"""The changes of `tests/breakages.py` fit today's code, so that `python -m tests.mutations` can be run at any time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.breakages import BREAKAGES, PACKAGE, Breakage

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_a_breakage_fits_the_code_and_leaves_code(breakage: Breakage) -> None:
    whole = (ROOT / PACKAGE / breakage.file).read_text()
    assert whole.count(breakage.old) == 1
    compile(whole.replace(breakage.old, breakage.new), breakage.file, "exec")


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_its_mechanism_is_in_the_table(breakage: Breakage) -> None:
    assert f"| {breakage.name} | {breakage.how} | `" in (ROOT / "docs/proof.md").read_text()
