"""`python -m demo run`, `local` and `airflow`; usually called by `make demo`, `make demo-local` and `make airflow`."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import requests
from rich.console import Console
from rich.prompt import Confirm

from demo.airflow import USER, Airflow
from demo.labels import DAG_ID, run_demo
from demo.openai_server import OpenAIServer, openai_from_environment, start_emulator, start_local_model
from demo.processes import DemoError, Interrupted, Processes, claim_port, no_proxy

REPOSITORY = Path(__file__).resolve().parent.parent
WORKSPACE = REPOSITORY / ".demo"
DAGS_FOLDER = REPOSITORY / "example_dags"
EMULATOR = "emulator"
FOREVER_S = float("inf")
BATCH_SECONDS = {"run": 10.0, "local": 10.0, "airflow": 45.0}
"""How long the emulator takes for a batch: little where it is waited for, more where it is watched."""

MODEL_PYTHON = REPOSITORY / ".venv-model" / "bin" / "python"
MODEL_NAME = "smollm2-135m-instruct"
MODEL_ROWS = 10
MODEL_FAILURES = MODEL_ROWS // 2
"""A model this small may wander off until its tokens are used up. Then its row has no answer, and says so."""


def main() -> int:
    """Run the command line.

    :return: exit code: 0 success, also when Ctrl-C ends what is kept up; 1 failure, 128 + signal number when stopped by
        a signal before that
    """
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument(
        "command",
        choices=("run", "local", "airflow"),
        help="run the demo once (local: with a model), or keep an Airflow up",
    )
    parser.add_argument("--workspace", type=Path, default=WORKSPACE, help="emptied, then holds what the run writes")
    arguments = parser.parse_args()
    # Wide enough for the table when the output goes to a file or a CI log.
    console = Console(width=None if sys.stdout.isatty() else 140)
    os.environ.update(no_proxy())
    try:
        _run(arguments.command, arguments.workspace.resolve(), console)
    except Interrupted as interrupted:
        print(f"\n{interrupted}; nothing is left running", file=sys.stderr)
        is_wanted = arguments.command == "airflow" and interrupted.signum == signal.SIGINT
        return 0 if is_wanted else 128 + interrupted.signum
    except (DemoError, requests.HTTPError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0


def _run(command: str, workspace: Path, console: Console) -> None:
    airflow_port, emulator_port = _port("AIRFLOW_PORT"), _port("EMULATOR_PORT")
    model = os.environ.get("DEMO_MODEL") or "gpt-4o-mini"
    openai = None if command == "local" else openai_from_environment()
    if openai:
        _say_what_it_costs(openai, model, console)
    with _emptied(workspace), Processes(workspace / "logs", catch_signals=True) as processes:
        started = time.monotonic()
        upstream = start_local_model(processes, MODEL_PYTHON) if command == "local" else None
        server = openai or start_emulator(
            processes,
            workspace / EMULATOR,
            port=emulator_port,
            batch_seconds=BATCH_SECONDS[command],
            upstream=upstream,
        )
        if not openai:
            whose = f"{MODEL_NAME} answers, on this machine" if upstream else "answers are made up"
            console.print(f"emulator of the OpenAI Batch API: {server.url} ({whose})", highlight=False)
        console.print("starting Airflow (scheduler, triggerer, DAG processor, API server) ...")
        airflow = Airflow.start(
            processes,
            workspace / "airflow",
            DAGS_FOLDER,
            port=airflow_port,
            # The shell's connections, such as the database of an example. The demo's own comes last.
            env={name: text for name, text in os.environ.items() if name.startswith("AIRFLOW_CONN_")}
            | server.as_airflow_connection(),
        )
        console.print(f"Airflow is healthy after {time.monotonic() - started:.0f} s: {airflow.url}", highlight=False)
        if command == "local":
            options = {"most_rows": MODEL_ROWS, "most_failed": MODEL_FAILURES}
            run_demo(airflow, server, workspace / "labels", MODEL_NAME, console, **options)
        elif command == "run":
            run_demo(airflow, server, workspace / "labels", model, console)
            console.print(f"The UI was at {airflow.url}: `make airflow` keeps it up.", highlight=False)
        else:
            _keep_up(airflow, console)


@contextlib.contextmanager
def _emptied(workspace: Path) -> Iterator[None]:
    """Hold the workspace for one run at a time, and clear away the run before.

    What the emulator has stays, as it would at OpenAI: jobs whose results are elsewhere may still wait for a batch.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    with (workspace / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoError(f"another run is using {workspace}: stop it first (Ctrl-C in its terminal)") from error
        for entry in workspace.iterdir():
            if entry.is_dir() and entry.name != EMULATOR:
                shutil.rmtree(entry)
        yield


def _say_what_it_costs(server: OpenAIServer, model: str, console: Console) -> None:
    """Ask, too, where somebody can answer: a key may be in the shell for other reasons."""
    rows = len({distribution.name for distribution in distributions()})
    console.print(
        f"[bold yellow]OPENAI_API_KEY is set: {DAG_ID} sends {rows} short requests to {model} at {server.url}. "
        "This costs money.[/bold yellow] Without the key an emulator answers for free."
    )
    if not sys.stdin.isatty():
        return
    try:
        goes_on = Confirm.ask("Go on?", console=console, default=False)
    except (KeyboardInterrupt, EOFError):
        goes_on = False
    if not goes_on:
        raise DemoError("nothing was sent. `unset OPENAI_API_KEY` to use the emulator")


def _keep_up(airflow: Airflow, console: Console) -> None:
    console.print(f"open {airflow.url} as user [bold]{USER}[/bold], password [bold]{airflow.password}[/bold]")
    console.print(
        "Turn on the DAGs label_tickets and count_ticket_labels, trigger the first, and watch its batch under "
        "[bold]Browse > OpenAI Batches[/bold]. Its results start the second. Ctrl-C stops everything."
    )
    airflow.processes.wait_for(lambda: False, timeout_s=FOREVER_S, what="Ctrl-C")


def _port(variable: str) -> int | None:
    # Claimed here as well as by those who use them: a taken port is worth knowing before anything is started.
    value = os.environ.get(variable)
    if not value:
        return None
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise DemoError(f"{variable}={value} is not a port: use a number from 1 to 65535, or unset it")
    return claim_port(int(value), variable)


if __name__ == "__main__":
    sys.exit(main())
