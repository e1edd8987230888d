"""What other pages say of measurements is what their commands wrote."""

from __future__ import annotations

from itertools import dropwhile, takewhile
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
OURS, COMMON_AI, OPENAI = "OpenAIBatchOperator", "common-ai: LLMBatchOperator", "openai: OpenAITriggerBatchOperator"


def table(page: str, heading: str) -> list[dict[str, str]]:
    """Return the rows of the first table below a heading, by the names of its columns; the first one's is ``""``."""
    lines = (DOCS / page).read_text().partition(f"\n## {heading}\n")[2].splitlines()
    rows = takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), lines))
    names, _, *rest = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [dict(zip(["", *names[1:]], row, strict=True)) for row in rest]


def of(rows: list[dict[str, str]], name: str) -> dict[str, str]:
    """Return the last row of a contender."""
    return [row for row in rows if row[""] == name][-1]


def test_the_readme_quotes_what_was_measured() -> None:
    faults = table("faults.md", "Summary")
    ours, common_ai, openai = (of(faults, name) for name in (OURS, COMMON_AI, OPENAI))
    memory = table("benchmarks.md", "50,000 requests of 3.5 KB, from generator to results")
    waiting = table("benchmarks.md", "Triggers that wait in one event loop, 30 s between looks, 200 ms a call")
    calls = [
        round(float(of(waiting, name)["calls per 100 and interval"]))
        for name in ("airflow-provider-openai-batches", "common-ai", "openai")
    ]
    peaks = [round(float(of(memory, name)["peak MB"])) for name in (OURS, COMMON_AI)]
    twice, lost = ([each[what] for each in (ours, common_ai, openai)] for what in ("bought twice", "rows lost"))
    readme = (DOCS.parent / "README.md").read_text()
    for line in (
        "| [faults of the service](docs/faults.md), each at each of its calls | "
        f"{ours['cases']} | {common_ai['cases']} | {openai['cases']} |",
        "| good answers bought twice by them | " + " | ".join(twice) + " |",
        "| good answers lost by them | " + " | ".join(lost) + " |",
        f"| [memory for 50,000 requests of 3.5 KB](docs/benchmarks.md) | {peaks[0]} MB | {peaks[1]:,} MB | - |",
        "| calls an interval for 100 tasks that wait | {} | {} | {} |".format(*calls),
    ):
        assert line in readme


def test_operations_quotes_what_was_measured() -> None:
    [*_, million] = table("benchmarks.md", "Jobs of small requests, 50,000 to a shard")
    memory = table("benchmarks.md", "50,000 requests of 3.5 KB, from generator to results")
    operations = " ".join((DOCS / "operations.md").read_text().split())
    assert million[""] == "1,000,000"
    assert (
        f"a job of one million small requests needs {million['peak MB']} MB above what Airflow's task runner has "
        f"anyway, one of 50,000 requests of 3.5 KB {of(memory, OURS)['peak MB']} MB."
    ) in operations
    assert (
        f"**CPU**: {million['CPU µs a request']} µs for a small request, from generator to results; a million of them "
        f"take {float(million['CPU s']):.0f} s."
    ) in operations


def test_migrating_quotes_what_was_measured() -> None:
    memory = table("benchmarks.md", "50,000 requests of 3.5 KB, from generator to results")
    theirs, ours = (round(float(of(memory, name)["peak MB"])) for name in ("common-ai: @task.llm_batch", OURS))
    quoted = f"| memory for 50,000 requests of 3.5 KB | {theirs:,} MB | {ours} MB ([measured](benchmarks.md)) |"
    assert quoted in (DOCS / "migrating-from-common-ai.md").read_text()
