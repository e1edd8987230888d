"""Build the distributions into dist/ and refuse what must not be released: ``make release-check``.

The release workflow publishes the very files that passed here. With ``--unreleased`` only that is looked at which must
hold at every commit: neither the tag, nor the changelog's date, nor whether the tree is clean.
"""

from __future__ import annotations

import argparse
import configparser
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath
from typing import Any

from airflow_provider_openai_batches import __version__, get_provider_info

REPOSITORY = Path(__file__).parents[1]
DISTRIBUTION = "airflow-provider-openai-batches"
PACKAGE = "airflow_provider_openai_batches"

NEVER_MISSING = frozenset(
    f"{PACKAGE}/{path}" for path in ("__init__.py", "py.typed", "plugin/static/main.js", "plugin/static/style.css")
)
"""What makes it a package, typed, with a page. The rest of the wheel is what git tracks; this must be among it."""

CLASSIFIERS = frozenset({"Framework :: Apache Airflow", "Framework :: Apache Airflow :: Provider", "Typing :: Typed"})
PYTHONS = tuple(f"3.{minor}" for minor in range(11, 15))


@dataclass(frozen=True)
class Checkout:
    """What the repository says of itself."""

    version: str
    provider_versions: tuple[str, ...]
    changelog: str
    tags: frozenset[str]
    changed: tuple[str, ...]
    tracked: frozenset[str]
    project: dict[str, Any]

    @classmethod
    def read(cls, root: Path) -> Checkout:
        """Read a work tree.

        :param root: where pyproject.toml is
        :raises CalledProcessError: if it is not a git work tree
        """
        return cls(
            version=__version__,
            provider_versions=tuple(get_provider_info()["versions"]),
            changelog=(root / "CHANGELOG.md").read_text(),
            tags=frozenset(_git(root, "tag", "--points-at", "HEAD")),
            changed=tuple(_git(root, "status", "--porcelain")),
            tracked=frozenset(_git(root, "ls-files", PACKAGE)),
            project=tomllib.loads((root / "pyproject.toml").read_text())["project"],
        )


def problems_of_version(checkout: Checkout) -> list[str]:
    """Whether all places name one version: the package, what Airflow shows, the changelog's newest entry."""
    version = checkout.version
    problems = []
    if checkout.provider_versions[:1] != (version,):
        shown = ", ".join(checkout.provider_versions) or "none"
        problems.append(f"provider_info.py shows the versions {shown}: __init__.py says {version}, which comes first")
    newest = _newest_entry(checkout.changelog)
    if newest is None or newest[0] != version:
        problems.append(f"the newest entry of CHANGELOG.md is {newest and newest[0]}: write one for {version}")
    return problems


def problems_of_release(checkout: Checkout) -> list[str]:
    """What a commit may lack but a release may not: a tag, a date, a clean tree, addresses."""
    version = checkout.version
    problems = []
    if f"v{version}" not in checkout.tags:
        told = f"tagged {', '.join(sorted(checkout.tags))}" if checkout.tags else "not tagged"
        problems.append(f"this commit is {told}: `git tag v{version}` where __version__ is {version}")
    newest = _newest_entry(checkout.changelog)
    if newest is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", newest[1]):
        problems.append(f"CHANGELOG.md gives {newest[0]} no date but {newest[1]!r}: write the day, such as 2026-12-31")
    if checkout.changed:
        problems.append(f"the tree is not clean, commit or remove: {', '.join(line[3:] for line in checkout.changed)}")
    if not checkout.project.get("urls"):
        problems.append("pyproject.toml has no [project.urls]: PyPI would not say where source and issues are")
    return problems


def problems_of_wheel(wheel: Path, checkout: Checkout) -> list[str]:
    """Whether a wheel holds exactly the package as git tracks it, with the metadata and entry points it needs."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        about = {PurePosixPath(name).name: name for name in names if ".dist-info/" in name}
        told = Parser().parsestr(archive.read(about["METADATA"]).decode())
        entry_points = archive.read(about["entry_points.txt"]).decode() if "entry_points.txt" in about else ""
    held = names - set(about.values())
    problems = [f"the wheel lacks {name}" for name in sorted((checkout.tracked | NEVER_MISSING) - held)]
    problems += [f"the wheel holds {name}, which git does not track" for name in sorted(held - checkout.tracked)]
    problems += [
        f"the wheel's dist-info holds {name}"
        for name in sorted(about.keys() - {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"})
    ]
    return problems + _problems_of_entry_points(entry_points, checkout) + _problems_of_metadata(told, checkout)


def _problems_of_entry_points(text: str, checkout: Checkout) -> list[str]:
    found = configparser.ConfigParser(delimiters="=")
    found.read_string(text)
    declared = {"console_scripts": checkout.project["scripts"], **checkout.project["entry-points"]}
    return [
        f"the wheel has no entry point {name} = {value} in {group}"
        for group, points in declared.items()
        for name, value in points.items()
        if found.get(group, name, fallback=None) != value
    ]


def _problems_of_metadata(told: Message, checkout: Checkout) -> list[str]:
    classifiers = set(told.get_all("Classifier", []))
    wanted = CLASSIFIERS | {f"Programming Language :: Python :: {version}" for version in PYTHONS}
    problems = [f"the metadata lacks the classifier {each}" for each in sorted(wanted - classifiers)]
    facts = {"Version": checkout.version, "Requires-Python": f">={PYTHONS[0]}", "License-Expression": "Apache-2.0"}
    problems += [
        f"the metadata says {key}: {told[key]}, not {fact}" for key, fact in facts.items() if told[key] != fact
    ]
    return problems


def build(root: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it, into an emptied dist/; return both."""
    dist = root / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    _run(sys.executable, "-m", "build", "--outdir", str(dist), str(root))
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    _run(sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel))
    return sdist, wheel


def import_alone(wheel: Path, root: Path) -> None:
    """Install a wheel into a venv of its own, without extras, and let Airflow load all that the provider names.

    :raises CalledProcessError: if it cannot be installed or imported
    """
    uv = (sys.executable, "-m", "uv")
    with tempfile.TemporaryDirectory() as scratch:
        venv = f"{scratch}/venv"
        _run(*uv, "venv", "-q", "--python", sys.executable, venv)
        _run(*uv, "pip", "install", "-q", "--python", venv, "-c", str(root / "constraints.txt"), str(wheel))
        # Nothing of the caller's: the checkout is not on the path, and Airflow has a home of its own.
        env = {"AIRFLOW_HOME": f"{scratch}/airflow", "PATH": f"{venv}/bin:/usr/bin:/bin", "PYTHONWARNINGS": "ignore"}
        _run(f"{venv}/bin/python", "-c", _IMPORT_ALL, cwd=scratch, env=env)
        _run(f"{venv}/bin/airflow", "providers", "get", "-o", "plain", DISTRIBUTION, cwd=scratch, env=env)


_IMPORT_ALL = f"""
from importlib import import_module, metadata

from {PACKAGE} import get_provider_info

info = get_provider_info()
kinds = [info[kind] for kind in ("hooks", "operators", "sensors", "triggers")]
names = [name for kind in kinds for group in kind for name in group["python-modules"]]
for name in names:
    import_module(name)
points = [each for each in metadata.distribution("{DISTRIBUTION}").entry_points if each.group != "pytest11"]
for point in points:
    point.load()
print("imports alone:", *names, *(point.name for point in points))
"""


def _newest_entry(changelog: str) -> tuple[str, str] | None:
    """Return version and day of the first entry that has a version; the day may be a word such as ``unreleased``."""
    found = re.search(r"^## \[(\d[^\]]*)\] - (\S+)$", changelog, re.MULTILINE)
    return None if found is None else (found[1], found[2])


def _git(root: Path, *arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()


def _run(*command: str, cwd: str | None = None, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, cwd=cwd, env=env)


def main(arguments: list[str] | None = None) -> int:
    """Print what is wrong; return 1 if anything is."""
    parser = argparse.ArgumentParser(prog="python -m release.check", description=__doc__)
    parser.add_argument("--unreleased", action="store_true", help="only what must hold at every commit")
    options = parser.parse_args(arguments)
    checkout = Checkout.read(REPOSITORY)
    problems = problems_of_version(checkout)
    if not options.unreleased:
        problems += problems_of_release(checkout)
    try:
        sdist, wheel = build(REPOSITORY)
        problems += problems_of_wheel(wheel, checkout)
        import_alone(wheel, REPOSITORY)
    except subprocess.CalledProcessError as error:
        problems.append(f"{' '.join(error.cmd[:4])} ... exited {error.returncode}: see above")
    else:
        print(f"{sdist.name} and {wheel.name} are in dist/")
    for problem in problems:
        print(f"not releasable: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
