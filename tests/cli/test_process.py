"""What holds for every command: where the key comes from, exit codes, pipes, signals, imports."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_openai_batches import __version__
from airflow_provider_openai_batches.cli.__main__ import _age, _count, _parser, _seconds
from airflow_provider_openai_batches.cli.screen import size
from airflow_provider_openai_batches.emulator import Emulator
from tests.cli.conftest import CHAT, COMMAND, Run, client_of, finished, start, submit
from tests.conftest import API_KEY


def test_without_a_key_the_two_ways_to_give_one_are_named(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    ended = cli("list")
    assert ended.code == 1
    assert "OPENAI_API_KEY" in ended.problem
    assert "--conn-id" in ended.problem


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("OPENAI_API_KEY", "sk-wrong-0123456789", "Check OPENAI_API_KEY"),
        ("OPENAI_API_KEY", "sk-with a space", "OPENAI_API_KEY: the API key has characters"),
        ("OPENAI_BASE_URL", "not a url", "OPENAI_BASE_URL: expected a base URL"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:1/v1", "no connection to 127.0.0.1:1"),
        ("OPENAI_ORG_ID", "two\nlines", "OPENAI_ORG_ID or OPENAI_PROJECT_ID: 'OpenAI-Organization'"),
    ],
)
def test_what_is_wrong_with_the_environment_is_one_line(
    cli: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(variable, value)
    ended = cli("list", "--json")
    assert (ended.code, ended.content) == (1, b"")
    assert problem in ended.problem
    assert "sk-wrong-0123456789" not in ended.err


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("nothing",),
        ("show",),
        ("cancel",),
        ("list", "--limit", "-1"),
        ("list", "--status", "sleeping"),
        ("list", "--since", "yesterday"),
        ("show", "batch_1", "--watch", "--interval", "0"),
        ("clean-files",),
        ("clean-files", "--older-than", "30"),
        ("clean-files", "--older-than", "1d", "--yes", "--purpose", "assistants"),
    ],
)
def test_wrong_usage_is_2_and_calls_nobody(cli: Run, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    ended = cli(*argv)
    assert (ended.code, ended.content) == (2, b"")
    assert "usage: openai-batches" in ended.err


def test_help_and_version(cli: Run) -> None:
    assert cli("--version").out == f"openai-batches {__version__}\n"
    for name in ("list", "show", "cancel", "results", "clean-files"):
        assert name in cli("--help").out
        assert cli(name, "--help").code == 0


@pytest.mark.parametrize(("text", "seconds"), [("30d", 2_592_000), ("0s", 0), ("1.5h", 5_400), ("2W", 1_209_600)])
def test_ages(text: str, seconds: float) -> None:
    assert _age(text) == seconds


@pytest.mark.parametrize(("parse", "text"), [(_age, "1y"), (_age, "-1d"), (_age, ""), (_count, "²"), (_seconds, "nan")])
def test_what_is_no_number(parse: type, text: str) -> None:
    with pytest.raises(Exception, match=r"expected|must be"):
        parse(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, ""), (0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (123_456, "123 kB"), (2 * 10**13, "20.0 TB")],
)
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text


# --- as a process ----------------------------------------------------------------------------------------------------


def test_commands_without_a_connection_leave_airflow_alone(environment: None, emulator: Emulator) -> None:
    finished(emulator)
    code = (
        "import sys; from airflow_provider_openai_batches.cli.__main__ import main\n"
        "assert main(['list', '--json']) == 0\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert not {"airflow", "pydantic", "aiohttp", "pandas", "pyarrow", "sqlalchemy"} & set(done.stderr.split())


def test_help_makes_no_http_client() -> None:
    code = (
        "import sys; from airflow_provider_openai_batches.cli.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"airflow", "requests", "rich"} & set(done.stderr.split())


@pytest.mark.parametrize("argv", [("list",), ("list", "--json"), ("results",), ("--help",), ("list", "--help")])
def test_a_reader_that_went_away_is_no_news(environment: None, emulator: Emulator, argv: tuple[str, ...]) -> None:
    batch = finished(emulator)
    reading, writing = os.pipe()
    os.close(reading)
    with start(*argv, *([batch.id] if argv == ("results",) else []), stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")


def in_shell(redirected: str, *argv: str | bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a shell does that was told to redirect."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    script = ["sh", "-c", f'exec "$@" {redirected}', "sh", *COMMAND, *argv]
    return subprocess.run(script, env=env, capture_output=True, timeout=20, check=False)


@pytest.mark.parametrize(
    ("redirected", "argv", "code"),
    [
        # What cannot be written is like what nobody reads.
        (">&-", ("list",), 141),
        (">&-", ("list", "--json"), 141),
        (">&-", ("results",), 141),
        (">&-", ("--help",), 141),
        ("<&- >&- 2>&-", ("list",), 141),
        (">/dev/full", ("list",), 1),
        (">/dev/full", ("--version",), 1),
        # Nobody needs the others.
        ("2>&-", ("list",), 0),
        ("<&-", ("list",), 0),
        (">&-", ("results", "-o"), 0),
        ("2>&-", ("show", "batch_nope"), 1),
        ("2>/dev/full", ("show", "batch_nope"), 1),
        ("2>&-", ("list", "--nonsense"), 2),
        ("<&-", ("clean-files", "--older-than", "1d"), 2),
    ],
)
def test_a_stream_that_is_closed_or_full_is_no_traceback(
    environment: None, emulator: Emulator, tmp_path: Path, redirected: str, argv: tuple[str, ...], code: int
) -> None:
    batch = finished(emulator, 1_000)
    target = tmp_path / "rows.jsonl"
    if argv[0] == "results":
        argv = (argv[0], batch.id, *argv[1:], *([str(target)] if argv[1:] else []))
    ended = in_shell(redirected, *argv)
    assert ended.returncode == code, ended.stderr.decode()
    assert not any(sign in ended.stdout + ended.stderr for sign in (b"Traceback", b"Exception ignored", b"usage: -c"))
    if redirected == "2>&-" and code == 0:
        assert batch.id in ended.stdout.decode()
    assert target.exists() == ("-o" in argv)


@pytest.mark.parametrize(
    "argv", [("show", b"a\xff"), ("cancel", b"a\xff"), ("list", "--dag-id", b"\xe9"), ("list", "--conn-id", b"\xff")]
)
def test_a_name_that_is_no_text_is_wrong_usage(environment: None, argv: tuple[str | bytes, ...]) -> None:
    ended = in_shell("", *argv)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert b"not valid UTF-8: b'" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_a_file_may_have_any_name(environment: None, emulator: Emulator, tmp_path: Path) -> None:
    batch = finished(emulator)
    target = os.fsencode(tmp_path) + b"/\xe9t\xe9"
    ended = in_shell("", "results", batch.id, "-o", target, "--json")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert json.loads(ended.stdout)["output_path"] == f"{tmp_path}/\N{REPLACEMENT CHARACTER}t\N{REPLACEMENT CHARACTER}"
    assert Path(os.fsdecode(target)).read_bytes().count(b"\n") == 3


def test_letters_the_terminal_does_not_have_are_replaced(
    environment: None, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    batch = finished(emulator, airflow_dag_id="été", airflow_task_id="t")
    ended = in_shell("", "list")
    assert (ended.returncode, b"?t?.t" in ended.stdout) == (0, True)
    # What scripts read is UTF-8, whatever the terminal is.
    [line] = in_shell("", "list", "--json").stdout.splitlines()
    assert (json.loads(line)["id"], "été".encode() in line) == (batch.id, True)


def test_ctrl_c_ends_a_watch_cleanly(environment: None, emulator: Emulator) -> None:
    batch = submit(emulator)
    argv = ("show", batch.id, "--watch", "--json", "--interval", "60")
    with start(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b'{"id"')
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"Interrupted.\n")


def test_a_terminal_gets_a_moving_bar_and_a_question_before_anything_is_deleted(fast: Emulator) -> None:
    batch = submit(fast, 100)
    watched = on_terminal("show", batch.id, "--watch", "--interval", "0.05")
    assert "━" in watched
    assert "requests done" in watched
    assert "completed" in watched
    age_all(fast)
    asked = on_terminal("clean-files", "--older-than", "30d", answer=lambda: b"n\n")
    assert "[y/N]" in asked
    assert "Nothing was deleted." in asked
    assert API_KEY not in watched + asked


def test_an_input_that_gets_a_new_batch_while_the_user_thinks_stays(emulator: Emulator, environment: None) -> None:
    over = finished(emulator)
    age_all(emulator)

    def use_it_again() -> bytes:
        with client_of(emulator) as client:
            client.create_batch(over.input_file_id or "", CHAT)
        return b"y\n"

    shown = on_terminal("clean-files", "--older-than", "30d", answer=use_it_again)
    assert "Deleted 1 file" in shown
    with client_of(emulator) as client:
        assert [file.id for file in client.list_files()] == [over.input_file_id]


def age_all(emulator: Emulator) -> None:
    """Let all that is listed from now on be years old."""
    for path in ("/v1/batches", "/v1/files"):
        made = {"created_at": 1_700_000_000, "completed_at": 1_700_000_100}
        emulator.add_fault({"on": {"method": "GET", "path": path}, "do": {"patch": made}, "times": None})


def on_terminal(*argv: str, answer: Callable[[], bytes] = bytes) -> str:
    """Run a command on a terminal; return all it showed.

    :param answer: called when it asks, returns what the user types
    """
    ours, theirs = pty.openpty()
    env = {"TERM": "xterm-256color", "COLUMNS": "160", "LINES": "40"}
    with start(*argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        shown, has_asked = b"", False
        while True:
            if b"[y/N]" in shown and not has_asked:
                has_asked = True
                os.write(ours, answer())
            try:
                block = os.read(ours, 65_536)
            except OSError:  # How Linux says that the other side is closed.
                break
            if not block:
                break
            shown += block
    os.close(ours)
    return shown.decode()


def test_the_command_is_installed_under_its_name() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["openai-batches"] == f"{COMMAND[-1]}.__main__:main"
    assert any(name.startswith("rich") for name in project["dependencies"])


def test_every_documented_command_is_one() -> None:
    document = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    commands = re.findall(r"^\$ (?:\w+= )?openai-batches ([^|\n]*)", document, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        _parser().parse_args(command.split())
    names = set(re.findall(r"^\| `([\w-]+)[ `]", document, re.MULTILINE))
    assert names == {"list", "show", "cancel", "results", "files", "clean-files"}


def test_a_program_that_calls_it_keeps_its_log(cli: Run, emulator: Emulator) -> None:
    log = logging.getLogger("airflow_provider_openai_batches")
    before = log.level
    assert cli("list").code == 0
    assert cli("show", "batch_nope").code == 1
    assert log.level == before
