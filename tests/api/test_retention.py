"""Which files may go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_openai_batches.api.models import Batch, BatchStatus, File
from airflow_provider_openai_batches.api.retention import spent_files

NAMES = st.sampled_from([f"file-{n}" for n in range(6)])
FILES = st.builds(
    File,
    id=NAMES,
    purpose=st.sampled_from(["batch", "batch_output", "assistants", None]),
    created_at=st.one_of(st.none(), st.integers(0, 200)),
)
BATCHES = st.builds(
    Batch,
    id=st.just("batch_1"),
    status=st.sampled_from([*BatchStatus, "a new status"]),
    input_file_id=st.one_of(st.none(), NAMES),
    output_file_id=st.one_of(st.none(), NAMES),
    error_file_id=st.one_of(st.none(), NAMES),
    created_at=st.one_of(st.none(), st.integers(0, 200)),
    completed_at=st.one_of(st.none(), st.integers(0, 200)),
)


def test_a_file_is_spent_when_the_last_of_its_batches_is() -> None:
    file = File(id="file-1", purpose="batch", created_at=10)
    over = Batch(id="batch_1", status="completed", input_file_id="file-1", created_at=20, completed_at=30)
    later = Batch(id="batch_2", status="in_progress", input_file_id="file-1", created_at=40)
    recent = Batch(id="batch_2", status="completed", input_file_id="file-1", created_at=40, completed_at=150)
    # Services that tell no end: by then no batch of that age goes on.
    silent = Batch(id="batch_3", status="completed", input_file_id="file-1", created_at=40)
    assert spent_files([file], [over], before=100) == [file]
    assert spent_files([file], [later, over], before=100) == []
    assert spent_files([file], [recent, over], before=100) == []
    for longest_s in (86_400, 14 * 86_400):
        assert spent_files([file], [silent, over], before=longest_s, longest_life_s=longest_s) == []
        assert spent_files([file], [silent, over], before=longest_s + 41, longest_life_s=longest_s) == [file]


@given(st.lists(FILES, min_size=1), st.lists(BATCHES, min_size=1))
def test_nothing_that_may_be_needed_is_ever_spent(files: list[File], batches: list[Batch]) -> None:
    for file in spent_files(files, batches, before=100):
        readers = [b for b in batches if file.id in (b.input_file_id, b.output_file_id, b.error_file_id)]
        assert readers
        assert all(batch.is_terminal for batch in readers)
        assert all((batch.completed_at or 0) < 100 for batch in readers)
        assert file.purpose in ("batch", "batch_output")
        assert file.created_at is not None
        assert file.created_at < 100


def test_a_file_of_a_batch_that_must_keep_it_is_not_spent_by_another() -> None:
    file = File(id="file-1", purpose="batch", created_at=10)
    batches = [
        Batch(id=f"batch_{n}", status="completed", input_file_id="file-1", created_at=20, completed_at=30)
        for n in range(2)
    ]
    asked: list[str] = []

    def may_go(batch: Batch) -> bool:
        asked.append(batch.id)
        return batch.id != "batch_1"

    running = Batch(id="batch_2", status="in_progress", created_at=20)
    assert spent_files([file], batches, before=100, may_go=may_go) == []
    assert spent_files([file], batches[:1], before=100, may_go=may_go) == [file]
    assert spent_files([file], [running], before=100, may_go=may_go) == []
    assert "batch_2" not in asked, "nobody is asked about a batch that goes on"
