"""The command: ``python -m benchmarks.soak --minutes 60``, or ``make soak``.

Prints docs/soak.md, and writes it after an hour or more. The service is an emulator in another process; random faults
meet whoever calls next. Ends with 1 if something grew or went wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import sys
import tempfile
from pathlib import Path

import requests

from benchmarks.soak.service import KEY, serving
from benchmarks.soak.verdict import judge, page, settle
from benchmarks.soak.work import soak

DOCS = Path(__file__).parents[2] / "docs/soak.md"
WHOLE_MINUTES = 60.0


def main() -> int:
    """Soak, and write down what came of it.

    :return: exit code
    """
    options = argparse.ArgumentParser(prog="make soak", description=__doc__.partition("\n")[0])
    options.add_argument("--minutes", type=float, default=WHOLE_MINUTES, help="default: %(default)g")
    options.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: a random one, printed")
    given = options.parse_args()
    print(f"seed {given.seed}", file=sys.stderr)
    load = os.getloadavg()[0]
    # Airflow logs to standard output, which is for the page.
    tables = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    with serving() as service, tempfile.TemporaryDirectory() as home:
        connection = {"conn_type": "openai_batches", "host": service.base_url, "password": KEY}
        os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW_CONN_SOAK": json.dumps(connection)}
        tally, samples, before, after = soak(service, given.minutes, given.seed)
        requests.delete(service.base_url.removesuffix("/v1") + "/emulator/faults", timeout=60)
        came = settle(service, tally)
    held = judge(samples, before, after, tally)
    text = page(given.seed, given.minutes, load, held, came, tally.wrong)
    print(text, file=tables)
    if given.minutes >= WHOLE_MINUTES:
        DOCS.write_text(text, encoding="utf-8")
    return int(bool(tally.wrong))


if __name__ == "__main__":
    sys.exit(main())
