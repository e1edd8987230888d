"""What the Airflow has to do, and what goes wrong by script. No Airflow here: the DAGs and the tests both read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FLAKY_EVERY, DOOMED_EVERY = 20, 250
"""Each so many-th row fails once, and for good."""

SHORT_BATCH = "1"
"""The shard of which the first batch expires half done, in each deferred job."""


@dataclass(frozen=True)
class Work:
    """One task: a job of several shards.

    :param rows: rows in each run
    :param shard_rows: rows in each batch
    """

    dag_id: str
    task_id: str
    endpoint: str
    model: str
    rows: int
    shard_rows: int
    deferrable: bool = True

    @property
    def shards(self) -> int:
        """How many batches the first round has."""
        return -(-self.rows // self.shard_rows)

    def custom_id(self, run: str, number: int) -> str:
        """Name a row: by this it is followed through the service, and by this the faults know it."""
        fate = "doomed" if number % DOOMED_EVERY == 0 else "flaky" if number % FLAKY_EVERY == 0 else "fine"
        return f"{run}-{self.task_id}-{number // self.shard_rows}-{number:05d}-{fate}"

    def requests(self, run: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a run."""
        for number in range(self.rows):
            row = {"custom_id": self.custom_id(run, number), "context": {"number": number}}
            yield row | ({"input": f"text {number}"} if "embeddings" in self.endpoint else {"prompt": f"row {number}"})

    def flaky_rows(self, shard: int) -> int:
        """Count the rows of a shard that fail once."""
        numbers = range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))
        return sum(self.custom_id("", number).endswith("flaky") for number in numbers)


CHAT = Work("fleet", "chat", "/v1/chat/completions", "gpt-4o-mini", rows=2_000, shard_rows=500)
EMBED = Work("fleet", "embed", "/v1/embeddings", "text-embedding-3-small", rows=1_500, shard_rows=500)
IN_TASK = Work("in_task", "label", "/v1/chat/completions", "gpt-4o-mini", rows=1_200, shard_rows=300, deferrable=False)
BY_DAG = {"fleet": (CHAT, EMBED), "in_task": (IN_TASK,)}

RUNS = {"first": "in_task", "second": "fleet", "third": "fleet", "fourth": "fleet", "fifth": "in_task",
        "sixth": "in_task", "seventh": "fleet"}  # fmt: skip
"""The runs by name, and their DAGs; a run's name is in its rows' ids."""


def jobs() -> Iterator[tuple[str, Work]]:
    """Yield each job, as the name of its run and its task."""
    for run, dag_id in RUNS.items():
        for work in BY_DAG[dag_id]:
            yield run, work


def faults() -> list[dict[str, Any]]:
    """Return the service's script. Every fault is bounded, but for rows that fail for good."""
    first_rounds = {"airflow_dag_id": "fleet", "airflow_shard": SHORT_BATCH, "airflow_round": "1"}
    flaky = [
        {
            "on": {"custom_id": f"{run}-{work.task_id}-{shard}-*-flaky"},
            "do": {"outcome": "server_error"},
            "times": work.flaky_rows(shard),
        }
        for run, work in jobs()
        for shard in range(work.shards)
    ]
    return [
        *flaky,
        {"on": {"custom_id": "*-doomed"}, "do": {"outcome": "error", "code": "content_policy"}, "times": None},
        {"on": {"batch": {"metadata": first_rounds}}, "do": {"outcome": "expire", "finished": 0.5}, "times": None},
        # The first batch is bought, and then the worker hangs: that is when it is killed.
        {"on": {"method": "POST", "path": "/files"}, "do": {"delay": 150}, "skip": 1},
        # Creates that are carried out, but nobody hears of it.
        {"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "after"}, "skip": 3, "times": 2},
        {"on": {"method": "POST", "path": "/batches"}, "do": {"drop": "after"}, "skip": 6, "times": 1},
        # Answers that break off, and none at all.
        {"on": {"method": "GET", "path": "/files/*/content"}, "do": {"truncate": 2000}, "skip": 2, "times": 2},
        {"on": {"method": "GET", "path": "/files/*/content"}, "do": {"status": 503}, "skip": 6, "times": 2},
    ]
