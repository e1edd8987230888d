"""Embeddings of a job in a column of pgvector's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.databases import Database
from tests.transfers.rows import answered, written
from tests.transfers.test_to_sql import letters, store

VECTORS = {"review_id": "context.id", "embedding": "output"}


def rows(*vectors: Any) -> list[dict[str, Any]]:
    return [answered(number, vector) for number, vector in enumerate(vectors, 1)]


@pytest.mark.parametrize("kind", ["vector", "vector(3)"])
def test_embeddings_are_vectors_that_can_be_searched(
    pgvector: Database, tmp_path: Path, kind: str, recwarn: pytest.WarningsRecorder
) -> None:
    pgvector.run(f"CREATE TABLE labels (review_id INTEGER PRIMARY KEY, embedding {kind})")
    manifest = written(tmp_path, rows([1, 0, 0], [0, 1, 0], [0.25, -1e-7, 0.5]))
    for _ in range(2):
        assert store(manifest, columns=VECTORS)["stored"] == 3
    assert not recwarn.list
    nearest = pgvector.rows("SELECT review_id FROM labels ORDER BY embedding <-> '[0.2,0,0.4]'")
    assert nearest[0] == (3,)
    assert pgvector.rows("SELECT embedding::text FROM labels WHERE review_id = 3") == [("[0.25,-1e-07,0.5]",)]


def test_what_is_no_vector_of_this_length_is_a_dead_letter_and_the_others_are_stored(
    pgvector: Database, tmp_path: Path
) -> None:
    pgvector.run("CREATE TABLE labels (review_id INTEGER PRIMARY KEY, embedding vector(3) NOT NULL)")
    manifest = written(tmp_path, rows([1, 0, 0], [1, 0], "positive", None, [0, 0, 1]))
    stored = store(manifest, columns=VECTORS, failed_table="letters")
    assert (stored["stored"], stored["not_storable"]) == (2, 3)
    assert pgvector.rows("SELECT review_id FROM labels ORDER BY 1") == [(1,), (5,)]
    reasons = [message for *_, message in letters(pgvector)]
    assert "expected 3 dimensions, not 2" in reasons[0]
    assert "malformed vector literal" in reasons[1]
    assert "takes no NULL" in reasons[2]
