"""The command line, and what a kill does not lose."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import OpenAI
from openai.types import Batch

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.emulator.__main__ import _parser
from airflow_provider_openai_batches.emulator.faults import parse_rules
from airflow_provider_openai_batches.emulator.store import DataDirInUseError

from .batches import CHAT, request, results, submit, wait_until
from .process import COMMAND, emulator_process

PEAK_RSS_MB = 150


def advance(base_url: str, seconds: float) -> None:
    root = base_url.removesuffix("/v1")
    assert requests.post(f"{root}/emulator/advance", json={"seconds": seconds}, timeout=60).ok


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=20, check=False)


def test_command_prints_one_line_when_ready_and_stops_on_a_signal() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with emulator_process("--speed", "0", "--token-limit", "*=100", "--batch-seconds", "9") as process:
            assert process.first_line.startswith("openai-batches-emulator listening on http://127.0.0.1:")
            client = process.client()
            submit(client, [request(0)])
            began = time.monotonic()
            assert process.stop(number) == (0, "")
            assert time.monotonic() - began < 2


def test_taken_port_is_one_clear_line_and_exit_code_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run("--port", port)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_missing_aiohttp_names_the_extra() -> None:
    code = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'aiohttp' else real(name, *rest)\n"
        "from airflow_provider_openai_batches.emulator.__main__ import main; sys.exit(main(['--port', '0']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert 'pip install "airflow-provider-openai-batches[emulator]"' in ended.stderr


def test_importing_the_package_does_not_import_aiohttp() -> None:
    code = "import sys, airflow_provider_openai_batches.emulator; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0


def test_bad_faults_file_and_options_are_named(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps([{"do": {"explode": True}}]))
    for options, complaint in (
        (["--faults", str(path)], "fault rule 1: do: unknown member 'explode'"),
        (["--faults", str(tmp_path / "missing")], "cannot read it"),
        (["--token-limit", "lots"], "expected MODEL=TOKENS"),
        (["--speed", "-1"], "must be a number from 0"),
        (["--port", "65536"], "must be a whole number from 0 to 65535"),
        (["--webhook-secret", "whsec_hush"[:-1]], "what follows whsec_ must be base64"),
    ):
        ended = run(*options)
        assert ended.returncode == 2
        assert complaint in ended.stderr
        assert "hus" not in ended.stderr


def test_help_says_each_default_once_and_shows_faults_that_are_understood() -> None:
    for action in _parser()._actions:
        if action.dest != "help":
            assert (action.help or "").count("(default: ") == 1
    said = run("--help").stdout
    assert "None" not in said
    assert len(parse_rules(json.loads(said[said.index("[{") : said.index("}]") + 2]))) == 3


def test_faults_file_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps([{"on": {"path": "/v1/files"}, "do": {"status": 418}}]))
    with emulator_process("--faults", str(path)) as process:
        assert requests.get(f"{process.base_url}/files", timeout=10).status_code == 418


def test_clock_runs_at_its_speed() -> None:
    with Emulator(speed=500) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        batch = submit(client, map(request, range(5)))
        wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", timeout_s=10)
        ended = client.batches.retrieve(batch.id)
        assert 125 <= (ended.completed_at or 0) - ended.created_at < 250


def test_killed_emulator_goes_on_with_every_batch(tmp_path: Path) -> None:
    options = ["--data-dir", str(tmp_path), "--speed", "0"]
    made: dict[str, Batch] = {}
    with emulator_process(*options) as process:
        client = process.client()
        made["done"] = submit(client, map(request, range(4)))
        advance(process.base_url, 125)
        made["running"] = submit(client, [*map(request, range(9)), request(9, messages=[])])
        advance(process.base_url, 63)
        made["cancelling"] = submit(client, map(request, range(4)))
        made["validating"] = submit(client, map(request, range(4)))
        advance(process.base_url, 2)
        client.batches.cancel(made["cancelling"].id)
        advance(process.base_url, 0.5)
        before = [client.batches.retrieve(batch.id) for batch in made.values()]
        process.stop(signal.SIGKILL)
    with emulator_process(*options) as process:
        client = process.client()
        advance(process.base_url, 0)
        after = [client.batches.retrieve(batch.id) for batch in made.values()]
        assert [batch.status for batch in after] == ["completed", "in_progress", "cancelling", "validating"]
        assert after == before
        advance(process.base_url, 0.5)
        assert client.batches.retrieve(made["validating"].id).status == "in_progress"
        advance(process.base_url, 122)
        ended = {name: client.batches.retrieve(batch.id) for name, batch in made.items()}
        assert [batch.status for batch in ended.values()] == ["completed", "completed", "cancelled", "completed"]
        assert len(results(client, ended["running"].output_file_id)) == 9
        assert len(results(client, ended["running"].error_file_id)) == 1
        assert [batch.id for batch in client.batches.list()] == [batch.id for batch in made.values()][::-1]


def test_data_directory_keeps_only_what_is_needed(tmp_path: Path) -> None:
    with Emulator(tmp_path, speed=0) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        batch = submit(client, [request(0)])
        emulator.advance(125)
        kept = {client.batches.retrieve(batch.id).output_file_id, batch.input_file_id}
        for leftover in ("drafts/file-half", "files/file-half", "batches/batch_ended.input"):
            (tmp_path / leftover).write_text("left by a kill")

    def contents() -> set[str | None]:
        return {path.name for folder in ("drafts", "files", "batches") for path in (tmp_path / folder).iterdir()}

    with Emulator(tmp_path, speed=0) as emulator:
        assert contents() == kept
        emulator.advance(31 * 86_400)
    with Emulator(tmp_path, speed=0):
        assert contents() == set()


def test_second_emulator_on_a_data_directory_is_refused(tmp_path: Path) -> None:
    with Emulator(tmp_path):
        with pytest.raises(DataDirInUseError, match="another emulator"), Emulator(tmp_path):
            pass
        ended = run("--data-dir", str(tmp_path), "--port", "0")
        assert (ended.returncode, "another emulator" in ended.stderr) == (1, True)


def test_largest_batch_runs_in_bounded_memory_while_other_calls_are_answered(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    padding = "word " * 765
    with path.open("wb") as file:
        for number in range(50_000):
            line: dict[str, Any] = request(number, messages=[{"role": "user", "content": f"{number} {padding}"}])
            file.write(json.dumps(line).encode() + b"\n")
    assert 190_000_000 < path.stat().st_size <= 200_000_000
    with emulator_process("--data-dir", str(tmp_path / "data"), "--speed", "1000") as process:
        client = process.client()
        file_id = client.files.create(file=path, purpose="batch").id
        assert client.files.retrieve(file_id).bytes == path.stat().st_size
        batch = client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        slowest_s = 0.0
        with requests.Session() as session:

            def ended() -> bool:
                nonlocal slowest_s
                began = time.monotonic()
                shown = session.get(f"{process.base_url}/batches/{batch.id}", timeout=10).json()
                slowest_s = max(slowest_s, time.monotonic() - began)
                return bool(shown["status"] == "completed")

            wait_until(ended, timeout_s=60)
        batch = client.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        assert batch.request_counts.completed == 50_000
        lines = 0
        with client.files.with_streaming_response.content(batch.output_file_id or "") as content:
            for chunk in content.iter_bytes():
                lines += chunk.count(b"\n")
        assert lines == 50_000
        print(f"peak {process.peak_rss_mb:.0f} MB, slowest other call {slowest_s * 1000:.0f} ms")
        assert process.peak_rss_mb < PEAK_RSS_MB
        assert slowest_s < 1
