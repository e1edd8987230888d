"""The command line: ``openai-batches-emulator``, or ``python -m airflow_provider_openai_batches.emulator``."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import importlib.util
import ipaddress
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_openai_batches.emulator.dialects import DIALECTS
from airflow_provider_openai_batches.emulator.faults import FaultError, Rule, parse_rules

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator.service import Settings

_EPILOG = """\
The file of --faults holds a JSON list of rules, tried in order; the first that matches and is due takes effect:

  [{"on": {"method": "POST", "path": "/v1/batches"}, "do": {"drop": "after"}},
   {"on": {"batch": {"model": "gpt-4o*"}}, "do": {"outcome": "expire", "finished": 0.4}},
   {"on": {"custom_id": "row-1*"}, "do": {"outcome": "server_error"}, "skip": 2, "times": null}]

All that a rule can do: python -m pydoc airflow_provider_openai_batches.emulator.faults
While it runs, GET / lists its own calls: moving the clock, more faults, what was called. Guide: docs/emulator.md
"""

_NEEDS_AIOHTTP = 'The emulator needs aiohttp. Install it with: pip install "airflow-provider-openai-batches[emulator]"'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the emulator until SIGINT or SIGTERM.

    :param argv: the arguments; default: those of the process
    :return: the exit code: 0, or 1 with one line on stderr
    """
    arguments = vars(_parser().parse_args(argv))
    if importlib.util.find_spec("aiohttp") is None:
        return _fail(_NEEDS_AIOHTTP)
    from airflow_provider_openai_batches.emulator.service import Settings
    from airflow_provider_openai_batches.emulator.store import DataDirInUseError

    data_dir = arguments.pop("data_dir")
    arguments["token_limits"] = dict(arguments["token_limits"])
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="openai-batches-emulator-"))
        settings = Settings(data_dir=Path(data_dir), **arguments)
        if settings.api_key is None and not _is_loopback(settings.host):
            at_stake = "the upstream with its key" if settings.upstream_api_key else "this machine's disk"
            _warn(f"without --api-key, whoever reaches {settings.host} may use it, and {at_stake}")
        try:
            asyncio.run(_serve(settings))
        except DataDirInUseError as error:
            return _fail(str(error))
        except OSError as error:
            if error.filename is not None:
                return _fail(f"cannot use {error.filename}: {error.strerror}")
            return _fail(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}")
    return 0


async def _serve(settings: Settings) -> None:
    from airflow_provider_openai_batches.emulator.service import serving

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with serving(settings) as service:
        print(f"openai-batches-emulator listening on {service.base_url}", flush=True)
        await stopped.wait()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _warn(message: str) -> None:
    print(f"openai-batches-emulator: {message}", file=sys.stderr, flush=True)


def _fail(message: str) -> int:
    _warn(message)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="openai-batches-emulator",
        description="A local server that speaks the OpenAI Batch API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=_port, default=8080, help="port to listen on; 0 takes any free one (default: %(default)s)")
    add("--data-dir", metavar="DIR", help="where files and batches are kept (default: a temporary directory)")
    add(
        "--dialect",
        choices=tuple(DIALECTS),
        default="openai",
        metavar="SERVICE",
        help=f"which service it stands in for: {', '.join(DIALECTS)} (default: %(default)s)",
    )
    add("--api-key", metavar="KEY", help="the key every call must bring (default: any, or none)")
    add(
        "--speed",
        type=_positive,
        default=1.0,
        help="virtual seconds per real second; 0 stands still until advanced; above 1 its times run ahead of yours "
        "(default: %(default)g)",
    )
    add(
        "--batch-seconds",
        type=_positive,
        default=120.0,
        help="virtual seconds the requests of a batch take, besides 5 (default: %(default)g)",
    )
    add(
        "--token-limit",
        dest="token_limits",
        type=_token_limit,
        action="append",
        default=[],
        metavar="MODEL=TOKENS",
        help="queued prompt tokens of a model, * for any other; repeatable (default: no limit)",
    )
    add(
        "--faults",
        type=_faults,
        default=(),
        metavar="FILE",
        help="JSON file with fault rules, see below (default: none)",
    )
    add("--upstream", metavar="URL", help="OpenAI-compatible server that answers the requests (default: made up)")
    add("--upstream-api-key", metavar="KEY", help="its key (default: none)")
    add(
        "--upstream-concurrency",
        type=_count,
        default=8,
        metavar="N",
        help="requests under way there at any time (default: %(default)s)",
    )
    add("--webhook-url", metavar="URL", help="told of every batch that ends (default: nobody)")
    add(
        "--webhook-secret",
        type=_webhook_secret,
        metavar="SECRET",
        default="",
        help="signs what is sent there: whsec_ and base64, or any text (default: an empty one)",
    )
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number from 0")
    return number


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65_535):
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 65535")
    return int(text)


def _webhook_secret(text: str) -> str:
    try:
        base64.b64decode(text.removeprefix("whsec_") if text.startswith("whsec_") else "", validate=True)
    except ValueError:
        # Without the text: it is a secret.
        raise argparse.ArgumentTypeError("what follows whsec_ must be base64") from None
    return text


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1")
    return int(text)


def _token_limit(text: str) -> tuple[str, int]:
    model, _, tokens = text.rpartition("=")
    if not model or not tokens.isdigit():
        raise argparse.ArgumentTypeError(f"expected MODEL=TOKENS, got {text!r}")
    return model, int(tokens)


def _faults(path: str) -> tuple[Rule, ...]:
    try:
        raw: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        return tuple(parse_rules(raw))
    except (OSError, ValueError) as error:
        kind = "" if isinstance(error, FaultError) else "cannot read it: "
        raise argparse.ArgumentTypeError(f"{path}: {kind}{error}") from error


if __name__ == "__main__":
    sys.exit(main())
