"""The page's example, copied into a user's project, works."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.testing import faults, plugin

from .conftest import ROOT

pytest_plugins = ["pytester"]

PAGE = (ROOT / "docs" / "testing.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def copy_example(folder: Path) -> None:
    """Save each block that names its file on its first line."""
    for block in blocks("python"):
        named = re.match(r"# (\S+\.py)\n", block)
        if named:
            path = folder / named[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)


@pytest.mark.airflow
@pytest.mark.timeout(300)  # twelve seconds of work: three processes that import Airflow
def test_the_example_runs_as_it_is(project: pytest.Pytester) -> None:
    copy_example(project.path)
    [script] = [block for block in blocks("bash") if "pytest" in block]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", script], cwd=project.path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^=* 2 passed", done.stdout, re.MULTILINE), done.stdout


def test_every_name_on_the_page_is_there(openai_batches_emulator: Emulator) -> None:
    """Fixtures, members of the emulator, and faults with the parameters they are shown with."""
    cells = re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE)
    calls = [text for cell in cells for text in re.findall(r"`(\w+\([^`]*\))`", cell)]
    assert len(calls) > 45
    for text in calls:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        name = ast.unparse(call.func)
        function = getattr(faults, name, None) or getattr(openai_batches_emulator, name)
        inspect.signature(function).bind(*call.args, **{word.arg or "": word.value for word in call.keywords})
    fixtures = re.findall(r"^\| `(openai_batches_\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(fixtures) == [name for name in dir(plugin) if name.startswith("openai_batches_")]


def test_options_on_the_page_are_options() -> None:
    [listed] = re.findall(r"They are those of `[\w.]+`: (.*?) and others\.", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) <= set(inspect.signature(Emulator).parameters)
