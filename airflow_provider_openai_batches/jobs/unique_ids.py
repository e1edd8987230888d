"""Finds custom_ids used twice among any number of rows, exactly, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.sources import RowError

if TYPE_CHECKING:
    import sqlite3

_WINDOW = 25_000
_CACHE_KB = 4_096

_ID_TWICE = """
    SELECT custom_id, min(position), max(position) FROM ids
    GROUP BY custom_id HAVING count(*) > 1 ORDER BY min(position) LIMIT 1
"""
# An id that looks like another row's default one, where that row has no id of its own.
_DEFAULT_TAKEN = """
    SELECT custom_id, position, CAST(substr(custom_id, 5) AS INTEGER) AS row FROM ids
    WHERE custom_id GLOB 'row-[0-9]*' AND row < :rows AND 'row-' || row = custom_id
        AND NOT EXISTS (SELECT 1 FROM ids AS other WHERE other.position = row)
    ORDER BY position LIMIT 1
"""


def default_id(index: int) -> str:
    """Name the row that has no custom_id of its own."""
    return f"row-{index}"


class UniqueIds:
    """Custom_ids of a job. Default ones cost nothing; the others pass through memory into a temporary file.

    A repetition among the last 25,000 or so ids is found at once, any other when all rows have been seen: telling at
    once would need every id in memory, or a random read per row. Nothing has been bought by then.
    """

    def __init__(self) -> None:
        self._window: dict[str, int] = {}
        self._file: sqlite3.Connection | None = None
        self._has_row_names = False

    def add(self, custom_id: str, index: int) -> None:
        """Note a row's id.

        :param index: the row's position; each call's is higher than the one before
        :raises RowError: an earlier row has it, as far as that is known yet
        """
        if custom_id.startswith("row-"):
            if custom_id == default_id(index):
                return
            self._has_row_names = True
        earlier = self._window.setdefault(custom_id, index)
        if earlier != index:
            raise RowError(_twice(custom_id, earlier))
        if len(self._window) >= _WINDOW:
            self._spill()

    def check(self, rows: int) -> None:
        """Look for repetitions among all ids.

        :param rows: how many rows there were, those with default ids included
        :raises InvalidInputError: with the id and two rows that have it
        """
        if self._file is None and not self._has_row_names:
            return
        file = self._spill()
        for query in (_ID_TWICE, _DEFAULT_TAKEN):
            if found := file.execute(query, {"rows": rows}).fetchone():
                custom_id, *positions = found
                raise InvalidInputError("requests", f"row {max(positions)}: {_twice(custom_id, min(positions))}")

    def close(self) -> None:
        """Remove the temporary file."""
        if self._file is not None:
            self._file.close()

    def _spill(self) -> sqlite3.Connection:
        if self._file is None:
            import sqlite3

            # The empty name means: a private file, gone when it is closed, and written only when the cache is full.
            self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._file.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
            self._file.execute("PRAGMA journal_mode = OFF")
            self._file.execute("CREATE TABLE ids (position INTEGER PRIMARY KEY, custom_id TEXT NOT NULL)")
        self._file.execute("BEGIN")
        self._file.executemany("INSERT INTO ids (custom_id, position) VALUES (?, ?)", self._window.items())
        self._file.execute("COMMIT")
        self._window.clear()
        return self._file


def _twice(custom_id: str, earlier: int) -> str:
    return (
        f"custom_id {custom_id!r} is also that of row {earlier}. Answers are matched by custom_id, so each must be "
        "unique in the whole job; rows without one are named row-0, row-1, ..."
    )
