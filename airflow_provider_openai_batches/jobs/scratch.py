"""Tables on local disk, for what would not fit into memory and is of no use when the process ends."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

_CACHE_KB = 8_192


@contextmanager
def scratch(*tables: str) -> Iterator[sqlite3.Connection]:
    """Make tables that are gone when the context closes.

    :param tables: the statements that create them
    """
    # The empty name means: a private file, written only when the cache is full.
    with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as connection:
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        connection.execute("PRAGMA journal_mode = OFF")
        for table in tables:
            connection.execute(table)
        connection.execute("BEGIN")  # One for all: nothing has to survive.
        yield connection
