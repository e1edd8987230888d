"""The emulator is a tool on one's own machine, and says so to whoever opens it to others."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.emulator.__main__ import main
from tests.emulator.process import emulator_process

# No machine has it (RFC 5737), so that nothing is opened here.
ELSEWHERE = ["--host", "192.0.2.1", "--port", "0"]


def test_by_itself_it_listens_to_this_machine_alone() -> None:
    with emulator_process() as process, Emulator(speed=0) as server:
        assert urlsplit(process.base_url).hostname == "127.0.0.1"
        assert urlsplit(server.base_url).hostname == "127.0.0.1"


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ([], "this machine's disk"),
        (["--upstream", "http://127.0.0.1:9/v1", "--upstream-api-key", "sk-upstream"], "the upstream with its key"),
    ],
    ids=["alone", "upstream"],
)
def test_opened_to_others_without_a_key_it_warns(
    options: list[str], warning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ELSEWHERE, *options]) == 1
    said = capsys.readouterr().err
    assert "--api-key" in said.splitlines()[0]
    assert warning in said
    assert "sk-upstream" not in said


@pytest.mark.parametrize("options", [["--api-key", "sk-own"], ["--host", "127.0.0.2", "--data-dir", "/dev/null/x"]])
def test_with_a_key_or_on_this_machine_it_does_not(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ELSEWHERE, *options]) == 1
    said = capsys.readouterr().err
    assert "whoever" not in said
    assert "sk-own" not in said
