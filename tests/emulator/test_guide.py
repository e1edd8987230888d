"""docs/emulator.md says what the code does, and its commands work."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from airflow_provider_openai_batches.emulator import faults
from airflow_provider_openai_batches.emulator.__main__ import _parser

from .process import emulator_process

GUIDE = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text()
ADDRESS = "http://127.0.0.1:8082"


def blocks(language: str, heading: str = "") -> list[str]:
    """The code of the guide, or of what follows one of its headings."""
    part = GUIDE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0] if heading else GUIDE
    return re.findall(rf"^```{language}\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)


def rows(heading: str) -> list[tuple[str, str]]:
    """The tables below a heading, without their heads."""
    part = GUIDE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| (`.*?`) \| (.*) \|$", part, re.MULTILINE)
    return [(key.replace("\\|", "|"), text) for key, text in found if key != "`do`"]


def documented() -> list[tuple[str, str]]:
    """What the tables of the module that reads the rules say, as Markdown."""
    found: list[tuple[str, str]] = []
    for line in (faults.__doc__ or "").splitlines():
        if row := re.fullmatch(r"``(\S.*?)``\s{2,}(\S.*)", line):
            found.append((f"`{row[1]}`", row[2]))
        elif found and line.startswith(" " * 20):
            key, text = found[-1]
            found[-1] = (key, f"{text} {line.strip()}")
    return [(key, text.replace("``", "`")) for key, text in found if key != "`do`"]


def test_the_tables_of_faults_are_those_of_the_code() -> None:
    assert rows("Faults") == documented()


def test_every_fault_has_its_line_and_every_line_its_fault() -> None:
    outcomes = [key.removeprefix('`outcome: "').removesuffix('"`') for key, _ in rows("Faults") if "outcome:" in key]
    assert sorted(outcomes) == sorted([*get_args(faults.BatchOutcomeName), *get_args(faults.RowOutcomeName)])
    effects = [
        name for key, _ in rows("Faults") if "outcome:" not in key for name in key.strip("`").split(":")[0].split(", ")
    ]
    assert sorted(effects) == sorted(field.name for field in dataclasses.fields(faults.CallEffect))
    # What goes with an outcome is named beside it, and what rules match by above the tables.
    said = GUIDE.partition("\n## Faults\n")[2]
    for struct in (faults.BatchOutcome, faults.RowOutcome, faults.OnCall, faults.OnBatch, faults.OnRow, faults.Rule):
        for field in dataclasses.fields(struct):
            assert re.search(rf'["`]{field.name}["`:]', said), field.name


def test_the_rules_that_are_shown_are_understood() -> None:
    [shown] = blocks("json", "Faults")
    assert len(faults.parse_rules(json.loads(shown))) == 4


def test_every_option_has_its_line_and_every_line_its_option() -> None:
    options = [option for key, _ in rows("Options") for option in re.findall(r"--[\w-]+", key)]
    known = [option for action in _parser()._actions for option in action.option_strings if action.dest != "help"]
    assert options == known


def test_every_command_line_that_is_shown_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [shown] = blocks("json", "Faults")
    Path("faults.json").write_text(shown)
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("openai-batches-emul")]
    assert len(lines) >= 5
    for line in lines:
        _parser().parse_args(shlex.split(line)[1:])


@pytest.fixture
def path_of_commands(tmp_path: Path) -> str:
    """A PATH on which the command line of this very code is."""
    for tool in ("curl", "jq"):
        if shutil.which(tool) is None:
            pytest.skip(f"the guide's commands need {tool}")
    command = tmp_path / "bin" / "openai-batches"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m airflow_provider_openai_batches.cli "$@"\n')
    command.chmod(0o755)
    return f"{command.parent}:{os.environ['PATH']}"


def test_the_batch_by_hand_works_as_it_is_shown(tmp_path: Path, path_of_commands: str) -> None:
    [_, exports] = blocks("bash")[:2]
    [walk] = blocks("bash", "A batch by hand")
    [controls] = blocks("bash", "While it runs")
    with emulator_process("--speed", "0") as process:
        script = f"set -eu\n{exports}\n{walk}\n{controls}".replace(ADDRESS, process.base_url.removesuffix("/v1"))
        env = {**os.environ, "PATH": path_of_commands}
        ended = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
        )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"^batch_\w+ +validating", ended.stdout, re.MULTILINE)
    assert re.search(r"^status +completed", ended.stdout, re.MULTILINE)
    answer, refused = (json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"id":"batch_req'))
    assert (answer["custom_id"], answer["response"]["status_code"]) == ("row-1", 200)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("row-2", 400)
    assert '{"added":1}' in ended.stdout
    assert ended.stdout.endswith('{"cleared":true}')


def test_the_python_that_is_shown_runs() -> None:
    [shown] = blocks("python", "In Python")
    code = f"{shown}\n    print(emulator.base_url, emulator.batches())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1 \[\]\n", ended.stdout)
