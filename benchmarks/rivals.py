"""What a job costs beside the rivals' ways and a bare script.

The same work by each of :mod:`benchmarks.contenders`, one after the other, at one emulator. Then each operator loses
the answer to its first ``POST /batches``, as networks do: how many batches does the service run, and bill, for it?
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.contenders import BARE, COMMON_AI, COMMON_AI_TASK, OFFICIAL, OURS
from benchmarks.measuring import Table, emulator, in_own_process

LONG_BYTES = 3_300
"""Size of a prompt. The request around it makes it 3.5 KB."""

MOST_CPU, MOST_MEMORY = 1 / 4, 1 / 8
"""Ours to common-ai's operator."""

_LOST_ANSWER = {"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "after"}}


def compare(rows: int, rivals: Path) -> tuple[list[Table], list[str]]:
    """Measure all ways.

    :param rows: requests
    :param rivals: the virtual environment of the rivals
    :return: the tables, and which limits are passed
    """
    pythons = {BARE: sys.executable, OURS: sys.executable}
    pythons |= dict.fromkeys((COMMON_AI, COMMON_AI_TASK, OFFICIAL), str(rivals / "bin/python"))

    def measured(way: str, rows: int, faults: list[Any] = []) -> dict[str, float]:  # noqa: B006
        given = {"base_url": base_url, "rows": rows, "size": LONG_BYTES, "faults": faults}
        used: dict[str, float] = in_own_process(pythons[way], "benchmarks.contenders", way, json.dumps(given))
        return used

    with emulator() as base_url:
        used = {way: measured(way, rows) for way in (BARE, OURS, COMMON_AI_TASK, COMMON_AI)}
        bought = {way: measured(way, 10, [_LOST_ANSWER])["batches"] for way in (OURS, COMMON_AI, OFFICIAL)}

    ours = used[OURS]
    work = Table(
        f"{rows:,} requests of 3.5 KB, from generator to results",
        ["", "CPU s", "ours to it", "wall s", "peak MB", "ours to it", "API calls", "first CPU s"],
    )
    for way, cost in used.items():
        cpu, memory = (f"{ours[what] / cost[what]:.2f}" for what in ("cpu_s", "peak_mb"))
        work.add(
            way, f"{cost['cpu_s']:.2f}", cpu, f"{cost['wall_s']:.2f}", f"{cost['peak_mb']:.1f}", memory,
            f"{cost['calls']:.0f}", f"{cost['first_s']:.2f}",
        )  # fmt: skip
    lost = Table("The answer to the first POST /batches is lost, one retry", ["", "batches bought"])
    for way, count in bought.items():
        lost.add(way, f"{count:.0f}")

    failed = []
    for what, most in (("cpu_s", MOST_CPU), ("peak_mb", MOST_MEMORY)):
        if ours[what] > most * used[COMMON_AI][what]:
            failed.append(f"{what} is more than {most:.3f} of common-ai's operator")
    if bought[OURS] != 1:
        failed.append("a lost answer buys more than one batch")
    return [work, lost], failed
