"""The command line: ``openai-batches``, or ``python -m airflow_provider_openai_batches.cli``."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence

from airflow_provider_openai_batches import __version__
from airflow_provider_openai_batches.api.models import BatchStatus
from airflow_provider_openai_batches.cli import streams

PROG = "openai-batches"
INTERRUPTED, BROKEN_PIPE = 130, 141
_COMMANDS = "airflow_provider_openai_batches.cli"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

_EPILOG = """\
The key comes from OPENAI_API_KEY (with OPENAI_BASE_URL, OPENAI_ORG_ID and OPENAI_PROJECT_ID if set), or from an
Airflow connection that --conn-id names. Exit codes: 0 all is well, 1 an error, 2 wrong usage, 130 Ctrl-C, 141 nobody
reads the output any more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    :param argv: the arguments; default: those of the process, whose standard streams are then made fit for use
    :return: the exit code, see the package's docstring; what argparse refuses ends in ``SystemExit(2)``
    """
    if argv is None:
        streams.prepare()
    try:
        try:
            return _run(argv)
        finally:
            # Also what --help printed: at the interpreter's end it is too late for an exit code.
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        # Nobody reads the output any more, or there is no room for it.
        streams.abandon()
        return BROKEN_PIPE if isinstance(error, BrokenPipeError) else 1


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "clean_files" and not (arguments.yes or arguments.dry_run or sys.stdin.isatty()):
        parser.error("clean-files: there is no terminal to ask on. Add --yes, or --dry-run to see what would go.")
    # Only here, so that --help and a typing error cost nothing.
    from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
    from airflow_provider_openai_batches.cli.account import explained
    from airflow_provider_openai_batches.cli.screen import Screen, clean

    # What went wrong is in the one line below; a library's warnings are not for whoever reads the output.
    log = logging.getLogger("airflow_provider_openai_batches")
    level = log.level
    log.setLevel(logging.ERROR)
    screen = Screen(as_json=arguments.as_json)
    try:
        module = importlib.import_module(f"{_COMMANDS}.{arguments.module}")
        code: int = getattr(module, arguments.command)(arguments, screen)
        screen.flush()
    except BrokenPipeError:
        raise
    except OpenAIBatchesError as error:
        # Further lines list what is wrong with the batch, which `show` does better.
        first, _, more = explained(error, arguments.conn_id).partition("\n")
        screen.note(f"{PROG}: {clean(first).rstrip(':')}" + (", see above or with: show" if more else ""), style="red")
        return 1
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        screen.note(f"{PROG}: cannot use{where or ' the disk'}: {error.strerror or error}.", style="red")
        return 1
    finally:
        log.setLevel(level)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description="OpenAI batches and their files.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--conn-id", type=_text, metavar="ID", help="Airflow connection; default: OPENAI_API_KEY")
    common.add_argument("--json", dest="as_json", action="store_true", help="one JSON object per line, for scripts")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, module: str, function: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=text, description=text, epilog=_EPILOG)
        made.set_defaults(module=module, command=function)
        return made

    listing = command("list", "batches", "list_batches", "List batches, newest first.")
    listing.add_argument("-n", "--limit", type=_count, default=20, help="at most this many, 0 for all; default: 20")
    listing.add_argument(
        "--status",
        action="append",
        choices=[status.value for status in BatchStatus],
        metavar="STATUS",
        help="only with this status; repeatable",
    )
    listing.add_argument("--dag-id", type=_text, metavar="ID", help="only those that this DAG made")
    listing.add_argument("--since", type=_age, metavar="AGE", help="only those younger than this, such as 12h or 7d")

    show = command("show", "batches", "show_batch", "Show one batch.")
    show.add_argument("batch_id", type=_text, metavar="BATCH_ID")
    show.add_argument(
        "--watch", action="store_true", help="follow it to its end; exit code 1 if it does not complete with answers"
    )
    show.add_argument("--interval", type=_seconds, default=15.0, metavar="S", help="seconds between looks; default: 15")

    cancel = command("cancel", "batches", "cancel_batches", "Cancel batches; what they finished stays and is billed.")
    cancel.add_argument("batch_ids", type=_text, metavar="BATCH_ID", nargs="+")

    results = command("results", "files", "fetch_results", "Write a batch's answers, then its errors, as JSON lines.")
    results.add_argument("batch_id", type=_text, metavar="BATCH_ID")
    results.add_argument("-o", "--output", metavar="FILE", help="a file, replaced as a whole; default: standard output")
    results.add_argument(
        "--partial", action="store_true", help="what is answered so far, where the service streams it (Doubleword)"
    )
    results.add_argument("--offset", type=_count, default=0, metavar="N", help="with --partial: leave out N answers")

    command("files", "files", "show_files", "Show how much of the project's room for files is used, by purpose.")

    cleaning = command(
        "clean-files",
        "files",
        "clean_files",
        "Delete old files of batches that are over. Files of a batch that goes on, or of no batch, are kept.",
    )
    cleaning.add_argument(
        "--older-than",
        type=_age,
        required=True,
        metavar="AGE",
        help="files made, and batches over, longer ago than this, such as 12h or 30d",
    )
    cleaning.add_argument(
        "--purpose", action="append", choices=("batch", "batch_output"), help="only this kind; default: both"
    )
    cleaning.add_argument("--yes", action="store_true", help="do not ask")
    cleaning.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    return parser


def _text(text: str) -> str:
    # A path may be of any bytes; a name that goes to a service may not.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"not valid UTF-8: {os.fsencode(text)!r}") from None
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError("must be a whole number from 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError("must be seconds, more than 0 and at most a day")
    return seconds


def _age(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smhdw])", text.strip().lower(), re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a number with s, m, h, d or w, such as 30d, got {text!r}")
    return float(found[1]) * _UNITS[found[2]]


if __name__ == "__main__":
    sys.exit(main())
