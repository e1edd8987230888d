"""What was done to the run and what was seen, as the table that is printed at the end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Event:
    """One row of the table.

    :param at_s: seconds since the Airflow was ready
    :param when: the condition that had come true
    """

    at_s: float
    done: str
    when: str
    seen: str = ""
    _began: float = field(default_factory=time.monotonic)

    def saw(self, what: str) -> None:
        """Fill in what was seen; ``{s}`` in it stands for the seconds that it took."""
        self.seen = what.replace("{s}", f"{time.monotonic() - self._began:.0f} s")


@dataclass
class Chronicle:
    """The events of a run, and what it took."""

    began: float = field(default_factory=time.monotonic)
    ready_after_s: float = 0.0
    took_s: float | None = None
    peak_mib: float = 0.0
    events: list[Event] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    def now_s(self) -> float:
        """Seconds since the Airflow was ready."""
        return time.monotonic() - self.began - self.ready_after_s

    def note(self, done: str, when: str) -> Event:
        """Begin a row; what was seen is filled in later."""
        self.events.append(Event(self.now_s(), done, when))
        return self.events[-1]

    def table(self) -> str:
        """Return all of it as Markdown."""
        lines = ["| at | done | when | seen |", "|---|---|---|---|"]
        lines += [f"| {each.at_s:.0f} s | {each.done} | {each.when} | {each.seen} |" for each in self.events]
        all_s = "not over" if self.took_s is None else f"{self.took_s:.0f} s in all"
        took = f"{all_s}, {self.ready_after_s:.0f} s of them until the Airflow was ready"
        facts = [*self.facts, f"{took}; at most {self.peak_mib:,.0f} MiB (PSS of all processes)"]
        return "\n".join([*lines, "", *(f"- {fact}" for fact in facts)])
