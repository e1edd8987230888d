#!/bin/sh
# Make .venv and install into it what a dependency group of pyproject.toml needs, in the versions of constraints.txt.
# Called by make.
#
#   sh demo/install.sh demo|dev|distributed
#
#   PYTHON=/path/to/python  use this one and start the venv afresh; default: the first Python >= 3.11 found on PATH
set -eu
group=$1
cd "$(dirname "$0")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

new_enough() { # a pyenv shim exists and fails, so ask the interpreter itself
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer on PATH: install one, or name it with make PYTHON=/path/to/python3 ..."
}

# The groups come one after the other, demo first: only that one begins afresh.
if { [ "$group" = demo ] && [ -n "${PYTHON:-}" ]; } || ! new_enough .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$("$python" --version) cannot make virtual environments: install its venv package" \
            "(Debian, Ubuntu: apt install python3-venv), or name another with make PYTHON=..."
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

with_pip() {
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt "$@"
}

with_uv() { # in a third of pip's time
    with_pip uv && .venv/bin/python -m uv pip install -q --compile-bytecode --python .venv/bin/python -c constraints.txt "$@"
}

echo "installing into .venv (half a minute, the first time) ..."
# 25.1 is the first pip that knows dependency groups.
with_pip --upgrade 'pip>=25.1'
set -- -e '.[emulator,parquet]' --group "$group"
# What only pip's own configuration names, such as a mirror, only pip finds.
with_uv "$@" 2>/dev/null || with_pip "$@"

from_debian() { # from_debian WHAT_FOR PACKAGE...
    what_for=$1
    shift
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing $* for $what_for ..."
        # Debian's MySQL server and libmariadb exclude each other, and nobody wants to lose a server to tests.
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends --no-remove "$@"; } >/dev/null ||
            echo "could not: $what_for will not run"
    else
        echo "no $*: $what_for are skipped (Debian: apt install $*)"
    fi
}

# The driver of the MySQL provider is built here, against either client library.
if [ "$group" = dev ] && ! .venv/bin/python -c 'import MySQLdb, airflow.providers.mysql' 2>/dev/null; then
    missing=
    pkg-config --exists libmariadb 2>/dev/null || pkg-config --exists mysqlclient 2>/dev/null ||
        missing="libmariadb-dev pkg-config gcc"
    # Debian's own Python comes without its headers; others have them.
    .venv/bin/python -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' ||
        missing="$missing $(.venv/bin/python -c 'import sys; print("libpython%d.%d-dev" % sys.version_info[:2])')"
    # shellcheck disable=SC2086
    [ -z "$missing" ] || from_debian "the tests with MariaDB and MySQL" $missing
    with_pip --group mysql 2>/dev/null ||
        echo "the MySQL provider cannot be installed without a compiler and the headers of Python and of libmariadb" \
            "or libmysqlclient: the tests with MariaDB and MySQL are skipped"
fi

# A server of Azure's Blob Storage. A later one wants a later Node.
if [ "$group" = dev ] && [ ! -e .venv/azurite/node_modules/.bin/azurite-blob ]; then
    if command -v npm >/dev/null 2>&1; then
        echo "installing azurite for the tests with Azure Blob Storage ..."
        npm install --silent --no-audit --no-fund --prefix .venv/azurite azurite@3.35.0 >/dev/null ||
            echo "could not: the tests with Azure Blob Storage will not run"
    else
        echo "no npm: the tests with Azure Blob Storage are skipped (Debian: apt install npm)"
    fi
fi

# The browser tests drive the system's chromium: no download beside the package manager.
if [ "$group" = dev ] && ! command -v chromium >/dev/null 2>&1; then
    from_debian "the browser tests" chromium
fi

# These start servers of their own from the system's programs. Debian keeps PostgreSQL's away from PATH.
if [ "$group" = distributed ]; then
    PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin)
    if ! command -v initdb >/dev/null 2>&1 || ! command -v redis-server >/dev/null 2>&1; then
        from_debian "the distributed tests" postgresql redis-server
    fi
fi
