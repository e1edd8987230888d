"""Whatever happens to a job, in whatever order: nothing is bought twice, and every row gets its one true result."""

from __future__ import annotations

import os

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.effort import TIMEOUT_S, effort
from tests.properties.life import JobLife


@pytest.mark.timeout(TIMEOUT_S)
def test_job_survives_whatever_happens_to_it() -> None:
    JobLife.in_memory = next((path for path in ["/dev/shm"] if os.access(path, os.W_OK)), None)
    run_state_machine_as_test(JobLife, settings=effort(150, stateful_step_count=30))
