"""What importing our operators costs every DAG file on top of Airflow itself: `make bench-import`."""

from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS = 7
LIMIT_S = 0.100
# airflow.sdk loads its names on first use, so those any provider needs are resolved before our clock starts.
# CPU time, since the file cache is warm: what else the machine does is not our cost.
TIMED = """
from time import process_time
start = process_time()
from airflow.sdk import BaseHook, BaseOperator, BaseSensorOperator, DAG, task
airflow = process_time()
import airflow_provider_openai_batches.operators.openai_batches
print(airflow - start, process_time() - airflow)
"""


def main() -> int:
    """Print the medians over fresh interpreters.

    :return: exit code: 1 if ours is over the limit
    """
    rounds = [_measure() for _ in range(ROUNDS + 1)][1:]  # the first one fills the disk cache and writes .pyc files
    airflow_s, ours_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"CPU time, median of {ROUNDS} fresh interpreters")
    print(f"  airflow.sdk                      {airflow_s * 1000:7.0f} ms")
    print(f"  ... with operators.openai_batches {(airflow_s + ours_s) * 1000:6.0f} ms")
    print(f"  ours                             {ours_s * 1000:7.0f} ms (limit {LIMIT_S * 1000:.0f} ms)")
    return int(ours_s > LIMIT_S)


def _measure() -> tuple[float, float]:
    answer = subprocess.run([sys.executable, "-c", TIMED], check=True, stdout=subprocess.PIPE, text=True)
    airflow_s, ours_s = answer.stdout.split()[-2:]
    return float(airflow_s), float(ours_s)


if __name__ == "__main__":
    sys.exit(main())
