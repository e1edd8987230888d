"""What reading rows of a database and writing results back to it costs: `python -m benchmarks.sql`.

The servers are those of the tests, see tests/databases.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import Table, in_own_process

ROWS = (1_000, 300_000)
# MariaDB and MySQL have no way in common to count but this one.
_DIGITS = ", ".join(f"(SELECT {' AS n UNION ALL SELECT '.join('0123456789')}) AS d{place}" for place in range(6))
_NUMBER = "1 + " + " + ".join(f"d{place}.n * {10**place}" for place in range(6))
SERIES = {
    "postgresql": "SELECT g AS id, repeat('x', 1000) AS review FROM generate_series(1, :rows) AS g",
    "mariadb": f"SELECT {_NUMBER} AS id, repeat('x', 1000) AS review FROM {_DIGITS} WHERE {_NUMBER} <= :rows",
}
"""Rows of a kilobyte, made by the server."""


@contextmanager
def _connected(kind: str) -> Iterator[Any]:
    """Let the connection `reviews_db` lead to a database of its own."""
    os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="openai-batches-"))
    from tests import databases

    for database in {"postgresql": databases.postgresql_database, "mariadb": databases.mariadb_database}[kind]():
        os.environ[f"AIRFLOW_CONN_{databases.CONN_ID.upper()}"] = json.dumps(database.connection)
        yield database


def read(kind: str, rows: int) -> dict[str, Any]:
    """Turn rows into request lines."""
    from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
    from airflow_provider_openai_batches.sql import SQLRequests

    with _connected(kind):
        source = SQLRequests("reviews_db", SERIES[kind], prompt="{review}", key="id", parameters={"rows": rows})
        began = time.monotonic()
        count = sum(1 for _ in read_requests(source, RequestTemplate(model="gpt-4o-mini")))
        return {"rows": count, "seconds": time.monotonic() - began, "peak_rss_mb": _peak_mb()}


def store(kind: str, rows: int) -> dict[str, Any]:
    """Write results into a table, and once more over themselves."""
    from airflow_provider_openai_batches.sql.database import open_database
    from airflow_provider_openai_batches.transfers.storing import Storing

    with _connected(kind) as database, tempfile.TemporaryDirectory() as directory:
        database.run("CREATE TABLE labels (review_id INTEGER PRIMARY KEY, label TEXT)")
        part = Path(directory, "part-00000.jsonl")
        row: dict[str, Any] = {"status": "succeeded", "output": "positive " * 100, "error": None}
        with part.open("w") as file:
            for number in range(rows):
                file.write(
                    json.dumps({"custom_id": str(number), "index": number, "context": {"id": number}, **row}) + "\n"
                )
        columns = {"review_id": "context.id", "label": "output"}
        engine = open_database("reviews_db")
        storing = Storing.prepare(
            engine, "labels", ["review_id"], columns, insert_missing=True, failed_table="letters", failed_path=None
        )
        seconds = []
        for _ in range(2):
            began = time.monotonic()
            stored = storing.store({"results": [str(part)]}, 1_000)["stored"]
            seconds.append(time.monotonic() - began)
        return {"rows": stored, "seconds": seconds[0], "again_seconds": seconds[1], "peak_rss_mb": _peak_mb()}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    """Print the figures, or those of one case."""
    parser = argparse.ArgumentParser()
    for case in ("read", "store"):
        parser.add_argument(f"--{case}", nargs=2, metavar=("DATABASE", "ROWS"))
    arguments = parser.parse_args()
    for case, work in (("read", read), ("store", store)):
        if given := getattr(arguments, case):
            print(json.dumps(work(given[0], int(given[1]))))
            return
    table = Table("Rows of a kilobyte from and to a database", ["database", "rows", "read", "peak", "stored", "peak"])
    for kind in SERIES:
        for rows in ROWS:
            one, other = (
                in_own_process(_python(), "benchmarks.sql", f"--{case}", kind, str(rows)) for case in ("read", "store")
            )
            table.add(
                kind,
                f"{rows:,}",
                f"{one['seconds']:.1f} s",
                f"{one['peak_rss_mb']:.0f} MB",
                f"{other['seconds']:.1f} s",
                f"{other['peak_rss_mb']:.0f} MB",
            )
    print(table)


def _python() -> str:
    import sys

    return sys.executable


if __name__ == "__main__":
    main()
