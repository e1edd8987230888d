"""The soak's verdict: what grows or is left is told, what only goes up and down is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.soak.record import Sample, Tally
from benchmarks.soak.verdict import MOST_MORE, MOST_RSS_MB, judge

EMPTY = Sample(rss_mb=100, files=9, sockets=0, threads=2, tasks=0)


def told(samples: list[Sample], after: Sample = EMPTY) -> list[str]:
    tally = Tally({}, 0, 0, [])
    judge(samples, EMPTY, after, tally)
    return tally.wrong


def rising(by: float) -> list[Sample]:
    """Samples whose last quarter has more of everything than the second."""
    return [
        Sample(
            rss_mb=130 + by * quarter, files=int(40 + by * quarter), sockets=int(30 + by * quarter),
            threads=int(14 + by * quarter), tasks=int(100 + by * quarter),
        )
        for quarter in (0, 0, 1, 1)
        for _ in range(4)
    ]  # fmt: skip


def test_steady_is_fine() -> None:
    assert not told(rising(0))


def test_a_little_more_is_no_growth() -> None:
    assert not told(rising(min(MOST_RSS_MB, MOST_MORE)))


def test_growth_is_told() -> None:
    assert [line.split()[0] for line in told(rising(20))] == ["rss_mb", "files", "sockets", "threads", "tasks"]


def test_memory_only_rises_to_its_limit_at_first() -> None:
    """What the first quarter takes is not counted."""
    samples = rising(0)
    samples[:4] = [Sample(rss_mb=90, files=9, sockets=0, threads=2, tasks=0)] * 4
    assert not told(samples)


@pytest.mark.parametrize("left", ["files", "sockets", "threads", "tasks"])
def test_one_that_is_left_is_told(left: str) -> None:
    after = replace(EMPTY, **{left: getattr(EMPTY, left) + 1})
    assert told(rising(0), after) == [f"1 {left} more at the end than before"]
