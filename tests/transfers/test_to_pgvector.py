"""Embeddings of a job in a column of pgvector's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.conftest import register
from tests.airflow.test_examples import load
from tests.databases import Database
from tests.docs.pages import blocks
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
    # pgvector 0.8 says the first, 0.6 the second.
    assert re.search("invalid input syntax for type vector|malformed vector literal", reasons[1])
    assert "takes no NULL" in reasons[2]


@pytest.mark.airflow
@pytest.mark.usefixtures("connection")
def test_the_dag_of_the_page_puts_embeddings_of_a_table_beside_it(
    pgvector: Database, airflow_db: None, tmp_path: Path
) -> None:
    of_page = [block.code for block in blocks("docs/sources-and-sinks.md")]
    [tables] = [code for code in of_page if "CREATE EXTENSION" in code]
    [dag_file] = [code for code in of_page if "def embed_reviews" in code]
    pgvector.run(*filter(str.strip, tables.split(";")))
    pgvector.run("CREATE TABLE reviews (id INTEGER PRIMARY KEY, review TEXT)")
    pgvector.run("INSERT INTO reviews VALUES (1, 'Fine.'), (2, 'Bad.')")
    path = tmp_path / "embed_reviews.py"
    path.write_text(dag_file)
    dag = load(path)
    dag.get_task("embed").poll_interval = 0.1  # type: ignore[attr-defined]
    register(dag)
    run = dag.test(run_conf={"outbox": str(tmp_path / "outbox")})
    assert str(run.state) == "success"
    query = "SELECT review_id, vector_dims(embedding) FROM review_vectors ORDER BY review_id"
    assert pgvector.rows(query) == [(1, 256), (2, 256)]
