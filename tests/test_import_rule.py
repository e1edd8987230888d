"""Imports run one way: api <- jobs <- hooks, polling <- triggers <- sensors, operators <- decorators, plugin."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "airflow_provider_openai_batches"
ROOT = Path(__file__).parent.parent / PACKAGE

# Rooms of the house by floor: a room may import from its own and from lower floors.
FLOORS = (
    {"provider_info"},
    {"api"},
    {"sighting", "watch"},
    {"jobs"},
    {"compat", "assets", "lineage", "links", "results", "sql", "telemetry"},
    {"hooks", "polling", "survey"},
    {"triggers"},
    {"sensors", "operators"},
    {"decorators", "plugin", "transfers"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Rooms with a rule of their own: what they may import of ours.
ONLY = {
    "provider_info": (),
    "api": ("api",),
    "emulator": ("emulator", "api.models"),
    "testing": ("testing", "emulator"),
    "": ("provider_info",),
}
WITHOUT_AIRFLOW = {"api", "emulator", "testing", "provider_info", ""}


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Full names of all that a module imports, wherever in it; for ``from x import y`` both ``x`` and ``x.y``."""
    here = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else (node.module or "")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_under(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def violations(module: str, names: Iterator[str]) -> list[str]:
    """What is wrong with these imports of a module, named from the package on."""
    room = module.split(".")[0]
    found = []
    if room and room not in FLOOR_OF and room not in ONLY:
        found.append(f"{module}: say in FLOORS where {room!r} belongs")
    for name in names:
        if room in WITHOUT_AIRFLOW and is_under(name, "airflow"):
            found.append(f"{module} imports {name}, but {room or 'the package itself'} does without Airflow")
        # The package itself is imported by every import of a part of it.
        if not is_under(name, PACKAGE) or name == PACKAGE:
            continue
        ours = name.removeprefix(f"{PACKAGE}.")
        target = ours.split(".")[0]
        if target.startswith("__"):
            continue
        if room in ONLY:
            if not any(is_under(ours, allowed) or is_under(allowed, ours) for allowed in ONLY[room]):
                found.append(f"{module} imports {name}; it may only import {ONLY[room]} of ours")
        elif target == "emulator":
            found.append(f"{module} imports {name}: nothing but testing, tests and its own CLI uses the emulator")
        elif FLOOR_OF.get(target, 99) > FLOOR_OF.get(room, -1):
            found.append(f"{module} imports {name}: {target} is above {room}")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@pytest.mark.parametrize(("module", "path"), [pytest.param(*found, id=found[0] or PACKAGE) for found in modules()])
def test_imports_run_one_way(module: str, path: Path) -> None:
    full = f"{PACKAGE}.{module}".rstrip(".")
    names = imports(path.read_text(), full, is_package=path.name == "__init__.py")
    assert violations(module, names) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("api.client", "import airflow"),
        ("api.client", "from airflow.sdk import BaseHook"),
        ("api.client", f"from {PACKAGE}.jobs import ledger"),
        ("api.client", f"import {PACKAGE}.hooks.openai_batches"),
        ("api.client", "from ..jobs import ledger"),
        ("api.client", "def later():\n    import airflow.models"),
        ("api.client", f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {PACKAGE}.hooks import x"),
        ("jobs.engine", f"from {PACKAGE}.hooks.openai_batches import OpenAIBatchesHook"),
        ("hooks.openai_batches", f"from {PACKAGE}.triggers.openai_batches import OpenAIBatchTrigger"),
        ("polling", f"from {PACKAGE} import triggers"),
        ("triggers.openai_batches", f"from {PACKAGE}.operators import openai_batches"),
        ("operators.openai_batches", f"from {PACKAGE}.decorators import openai_batch"),
        ("operators.openai_batches", f"from {PACKAGE}.emulator import Emulator"),
        ("plugin.app", f"from {PACKAGE} import emulator"),
        ("emulator.server", f"from {PACKAGE}.api.client import BatchClient"),
        ("emulator.server", f"from {PACKAGE}.jobs import lines"),
        ("emulator.server", "from airflow.sdk import DAG"),
        ("testing.plugin", f"from {PACKAGE}.api.client import BatchClient"),
        ("testing.plugin", "def later():\n    from airflow.sdk import Connection"),
        ("hooks.openai_batches", f"from {PACKAGE}.testing import faults"),
        ("emulator.server", f"from {PACKAGE}.testing import faults"),
        ("provider_info", f"from {PACKAGE}.api import models"),
        ("", f"from {PACKAGE}.hooks.openai_batches import OpenAIBatchesHook"),
        ("attic.box", "import json"),
    ],
)
def test_the_rule_can_be_broken(module: str, source: str) -> None:
    assert violations(module, imports(source, f"{PACKAGE}.{module}"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("api.client", f"import requests\nfrom {PACKAGE}.api.models import Batch\nfrom .errors import X"),
        ("api.client", "import airflowish"),
        ("jobs.engine", f"from {PACKAGE}.api.client import BatchClient\nfrom airflow.sdk import ObjectStoragePath"),
        (
            "operators.openai_batches",
            f"from {PACKAGE}.hooks.openai_batches import X\nfrom {PACKAGE} import __version__",
        ),
        ("emulator.server", f"from {PACKAGE}.api.models import Batch\nfrom {PACKAGE}.emulator.wire import dump"),
        ("testing.plugin", f"from {PACKAGE}.emulator import Emulator\nfrom {PACKAGE}.testing.clock import BatchClock"),
    ],
)
def test_what_runs_downwards_is_allowed(module: str, source: str) -> None:
    assert violations(module, imports(source, f"{PACKAGE}.{module}")) == []


def test_every_room_is_looked_at() -> None:
    rooms = {module.split(".")[0] for module, _ in modules()}
    assert rooms >= {
        "",
        "api",
        "emulator",
        "hooks",
        "operators",
        "polling",
        "provider_info",
        "sensors",
        "testing",
        "triggers",
    }
