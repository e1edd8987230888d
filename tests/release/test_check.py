"""What must not be released is refused, by name."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from release.check import (
    PACKAGE,
    REPOSITORY,
    Checkout,
    problems_of_release,
    problems_of_version,
    problems_of_wheel,
)

TRACKED = ("__init__.py", "api/client.py", "plugin/static/main.js", "plugin/static/style.css", "py.typed")
METADATA = """\
Metadata-Version: 2.4
Name: airflow-provider-openai-batches
Version: 1.2.0
License-Expression: Apache-2.0
Classifier: Framework :: Apache Airflow
Classifier: Framework :: Apache Airflow :: Provider
Classifier: Programming Language :: Python :: 3.11
Classifier: Programming Language :: Python :: 3.12
Classifier: Programming Language :: Python :: 3.13
Classifier: Programming Language :: Python :: 3.14
Classifier: Typing :: Typed
Requires-Python: >=3.11

Words.
"""
ENTRY_POINTS = f"""\
[airflow.plugins]
openai_batches = {PACKAGE}.plugin:Plugin

[console_scripts]
openai-batches = {PACKAGE}.cli.__main__:main
"""


@pytest.fixture
def checkout() -> Checkout:
    """A commit that may be released."""
    return Checkout(
        version="1.2.0",
        provider_versions=("1.2.0", "1.1.0"),
        changelog="# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-12-31\n\nMore.\n\n## [1.1.0] - 2026-06-01\n",
        tags=frozenset({"v1.2.0"}),
        changed=(),
        tracked=frozenset(f"{PACKAGE}/{path}" for path in TRACKED),
        project={
            "scripts": {"openai-batches": f"{PACKAGE}.cli.__main__:main"},
            "entry-points": {"airflow.plugins": {"openai_batches": f"{PACKAGE}.plugin:Plugin"}},
            "urls": {"Source": "https://git.example/p"},
        },
    )


def wheel(folder: Path, **changes: str | None) -> Path:
    """Write a wheel with all that it needs.

    :param changes: contents of further or changed files; None leaves a file out
    """
    info = "airflow_provider_openai_batches-1.2.0.dist-info"
    files: Mapping[str, str | None] = {
        **{f"{PACKAGE}/{path}": "" for path in TRACKED},
        f"{info}/METADATA": METADATA,
        f"{info}/WHEEL": "",
        f"{info}/RECORD": "",
        f"{info}/entry_points.txt": ENTRY_POINTS,
        f"{info}/licenses/LICENSE": "",
    }
    path = folder / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, **{name.replace("INFO", info): each for name, each in changes.items()}}.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def test_a_good_commit_passes(checkout: Checkout, tmp_path: Path) -> None:
    assert problems_of_version(checkout) == []
    assert problems_of_release(checkout) == []
    assert problems_of_wheel(wheel(tmp_path), checkout) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"provider_versions": ("1.1.0",)}, "provider_info.py shows the versions 1.1.0: __init__.py says 1.2.0"),
        ({"provider_versions": ()}, "provider_info.py shows the versions none"),
        ({"changelog": "## [1.1.0] - 2026-06-01\n"}, "the newest entry of CHANGELOG.md is 1.1.0: write one for 1.2.0"),
        ({"changelog": "# Changelog\n"}, "the newest entry of CHANGELOG.md is None: write one for 1.2.0"),
        ({"tags": frozenset()}, "this commit is not tagged: `git tag v1.2.0`"),
        ({"tags": frozenset({"v1.1.0"})}, "this commit is tagged v1.1.0: `git tag v1.2.0`"),
        ({"changelog": "## [1.2.0] - unreleased\n"}, "CHANGELOG.md gives 1.2.0 no date but 'unreleased'"),
        ({"changed": (" M Makefile", "?? key.txt")}, "the tree is not clean, commit or remove: Makefile, key.txt"),
        ({"project": {}}, "pyproject.toml has no [project.urls]"),
    ],
)
def test_a_commit_that_is_no_release_is_told_what_to_change(
    checkout: Checkout, changes: dict[str, Any], says: str
) -> None:
    checkout = dataclasses.replace(checkout, **changes)
    [problem] = problems_of_version(checkout) + problems_of_release(checkout)
    assert problem.startswith(says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({f"{PACKAGE}/plugin/static/main.js": None}, f"the wheel lacks {PACKAGE}/plugin/static/main.js"),
        ({f"{PACKAGE}/py.typed": None}, f"the wheel lacks {PACKAGE}/py.typed"),
        ({f"{PACKAGE}/api/client.py": None}, f"the wheel lacks {PACKAGE}/api/client.py"),
        ({f"{PACKAGE}/.env": ""}, f"the wheel holds {PACKAGE}/.env, which git does not track"),
        ({"tests/test_it.py": ""}, "the wheel holds tests/test_it.py, which git does not track"),
        ({"INFO/direct_url.json": ""}, "the wheel's dist-info holds direct_url.json"),
        (
            {"INFO/entry_points.txt": ENTRY_POINTS.partition("[console")[0]},
            f"the wheel has no entry point openai-batches = {PACKAGE}.cli.__main__:main in console_scripts",
        ),
        (
            {"INFO/entry_points.txt": None},
            f"the wheel has no entry point openai-batches = {PACKAGE}.cli.__main__:main in console_scripts",
        ),
        (
            {"INFO/METADATA": METADATA.replace("Classifier: Programming Language :: Python :: 3.14\n", "")},
            "the metadata lacks the classifier Programming Language :: Python :: 3.14",
        ),
        ({"INFO/METADATA": METADATA.replace("1.2.0", "1.1.0")}, "the metadata says Version: 1.1.0, not 1.2.0"),
        (
            {"INFO/METADATA": METADATA.replace(">=3.11", ">=3.9")},
            "the metadata says Requires-Python: >=3.9, not >=3.11",
        ),
    ],
)
def test_a_wheel_that_is_not_the_package_is_refused(
    checkout: Checkout, tmp_path: Path, changes: dict[str, str | None], says: str
) -> None:
    assert says in problems_of_wheel(wheel(tmp_path, **changes), checkout)


def test_a_file_that_is_gone_from_git_too_is_missed(checkout: Checkout, tmp_path: Path) -> None:
    name = f"{PACKAGE}/py.typed"
    checkout = dataclasses.replace(checkout, tracked=checkout.tracked - {name})
    assert problems_of_wheel(wheel(tmp_path, **{name: None}), checkout) == [f"the wheel lacks {name}"]


def test_this_repository_names_one_version() -> None:
    assert problems_of_version(Checkout.read(REPOSITORY)) == []
