"""The fault matrix: its table fits its cases, and it counts what it claims to count."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.faults import matrix
from benchmarks.faults.__main__ import problem
from benchmarks.faults.cases import EXPECTED, FAILED, LEFT_OUT, OURS, RIVALS, SUCCESS, cases
from benchmarks.faults.operations import JOB, SENSOR, SUBMIT

OK = {"value": "batch_a", "messages": [], "xcoms": [], "waited_for": [], "cleared": False, "endless": False}


def found(operation: str, fault: str) -> Any:
    return next(case for case in cases(operation) if case.fault == fault)


@pytest.mark.parametrize("operation", OURS)
def test_every_expected_fault_is_one_that_is_tried(operation: str) -> None:
    names = {name for case in cases(operation) for name in (case.fault, f"{case.fault} @ {case.at}")}
    expected = [name for faults in EXPECTED.get(operation, {}).values() for name in faults]
    assert set(expected) <= names
    assert len(expected) == len(set(expected))
    assert not {fault for left_out, fault in LEFT_OUT if left_out == operation} & names


@pytest.mark.parametrize(("rival", "ours"), RIVALS.items())
def test_rivals_meet_the_same_cases(rival: str, ours: str) -> None:
    assert [(case.fault, case.at, case.rules) for case in cases(rival)] == [
        (case.fault, case.at, case.rules) for case in cases(ours)
    ]


@pytest.mark.parametrize(
    ("operation", "good", "landed", "lost", "twice"),
    [
        (JOB, {"batch_a": {0, 1}, "batch_b": {2, 3}}, {0, 1, 2, 3}, 0, 0),
        (JOB, {"batch_a": {0, 1}, "batch_b": {1}}, {0}, 1, 1),
        (SUBMIT, {"batch_a": {0, 1}}, set(), 0, 0),
        (SUBMIT, {"batch_a": {0, 1}, "batch_b": {2}}, set(), 1, 0),
        (SUBMIT, {"batch_a": {0, 1}, "batch_b": {0, 1}}, set(), 0, 2),
    ],
)
def test_rows_lost_and_bought_twice_are_counted_and_told(
    operation: str, good: dict[str, set[int]], landed: set[int], lost: int, twice: int
) -> None:
    result = matrix._judged(found(operation, "500"), OK, good, landed)
    assert (result.lost, result.twice) == (lost, twice)
    assert bool(problem(result)) == bool(lost or twice)


def test_another_outcome_than_the_expected_one_is_told() -> None:
    case = replace(found(JOB, "500"), expected=FAILED)
    assert problem(matrix._judged(case, OK, {}, set())) == f"{SUCCESS}, expected {FAILED}"


def test_a_day_of_waiting_passes_at_once() -> None:
    with matrix.Workers() as workers:
        result = matrix.run_case(found(SENSOR, "stuck in in_progress"), workers, sys.executable)
    assert (result.outcome, result.message) == (FAILED, "Batch batch_… did not get there within 93,600 seconds.")


def test_a_lost_create_response_is_bought_once() -> None:
    case = next(case for case in cases(SUBMIT) if (case.fault, case.at) == ("connection reset, applied", "create"))
    with matrix.Workers() as workers:
        result = matrix.run_case(case, workers, sys.executable)
    assert (result.outcome, result.answered, result.lost, result.twice) == (SUCCESS, 4, 0, 0)


def test_what_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "BOUND_S", 0.01)
    with matrix.Workers() as workers:
        result = matrix.run_case(found(SENSOR, "500"), workers, sys.executable)
        assert not workers._running
    assert result.outcome == "does not end"
