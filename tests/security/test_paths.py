"""Names that others choose, of files, ids and directories, lead nowhere else."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest

from airflow_provider_openai_batches.api.errors import InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.jobs.directory import JobDirectory, open_directory
from airflow_provider_openai_batches.jobs.ledger import Ledger, LedgerError, Owner, Round, Shard
from airflow_provider_openai_batches.jobs.ownership import load_ledger
from tests.api.connecting import connect
from tests.api.scripted_server import Answer, ScriptedServer, as_json
from tests.conftest import API_KEY

OUTSIDE = [
    "../outside",
    "results/../../outside",
    "_job/plan-../../../outside.keys.bin",
    "..",
    "/etc/hostname",
    "results/..",
]


@pytest.fixture(params=["local", "remote"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobDirectory]:
    if request.param == "local":
        yield open_directory(tmp_path / "job")
        return
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_openai_batches.jobs.directory import _RemoteDirectory

    # The code for object storage, on files that can be looked at.
    yield _RemoteDirectory(ObjectStoragePath(f"file://{tmp_path}/job"))


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_a_jobs_directory(name: str, directory: JobDirectory, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("precious")
    (tmp_path / "content").write_text("content")

    def local() -> None:
        with directory.local(name):
            pass

    for operation in (
        lambda: directory.path(name),
        lambda: directory.read(name),
        lambda: directory.write(name, b"x"),
        lambda: directory.claim(name, b"x"),
        lambda: directory.publish(tmp_path / "content", name),
        lambda: directory.publish(tmp_path / "content", name, lambda: None),
        local,
        lambda: directory.names(name),
        lambda: directory.exists(name),
        lambda: directory.delete(name),
        lambda: directory.delete_folder(name),
    ):
        with pytest.raises(InvalidInputError, match="leads out of the job's directory"):
            operation()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"content", "outside/precious"}


def test_dots_in_names_are_fine(tmp_path: Path) -> None:
    directory = open_directory(tmp_path)
    directory.write("results/..part.jsonl", b"x")
    assert directory.read("results/..part.jsonl") == b"x"


def test_folders_that_are_links_are_not_emptied(tmp_path: Path) -> None:
    """Somebody may have put them there, for a worker that may delete what they may not."""
    precious = tmp_path / "outside" / "precious"
    precious.parent.mkdir()
    precious.write_text("precious")
    directory = open_directory(tmp_path / "job")
    (tmp_path / "job" / "_job").mkdir(parents=True)
    for name in (".drafts", "shard-00000"):
        (tmp_path / "job" / "_job" / name).symlink_to(precious.parent, target_is_directory=True)
    os.utime(precious, (0, 0))
    directory.clean(older_than_s=1)
    directory.clean()
    directory.delete_folder("_job/shard-00000")
    assert precious.read_text() == "precious"


def test_a_file_that_is_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    directory = open_directory(tmp_path / "job")
    (tmp_path / "job" / "results").mkdir(parents=True)
    (tmp_path / "content").write_text("content")
    for name in ("job.json", "results/part-00000.jsonl"):
        (tmp_path / "job" / name).symlink_to(precious)
    directory.write("job.json", b"x")
    directory.publish(tmp_path / "content", "results/part-00000.jsonl")
    assert precious.read_text() == "precious"
    assert not (tmp_path / "job" / "results" / "part-00000.jsonl").is_symlink()


# --- a ledger that somebody has changed -------------------------------------------------------------------------------

OWNER = Owner("dag", "task", "run")


def ledger(**fields: Any) -> bytes:
    shard = Shard(0, "m", 0, 1, [Round(number=1, requests=1, bytes=1, tokens=1)])
    return msgspec.json.encode(
        Ledger(**{"job_id": "j", "owner": OWNER, "max_tries": 0, "created_at": 0.0, "attempt": "1", **fields})
        if "raw" not in fields
        else {**msgspec.to_builtins(Ledger("j", OWNER, 0, 0.0, "1", shards=[shard])), **fields["raw"]}
    )


@pytest.mark.parametrize(
    "raw",
    [
        {"shards": [{"index": "../../etc", "model": "m", "first_index": 0, "requests": 1, "rounds": []}]},
        {"shards": [{"index": 0, "model": "m", "first_index": 0, "requests": 1, "rounds": [{"number": "../1"}]}]},
        {"shards": "__import__('os').system('true')"},
        {"owner": {"dag_id": ["dag"], "task_id": "task", "run_id": "run"}},
        {"version": "1"},
        {"manifest": "x"},
    ],
    ids=repr,
)
def test_what_is_no_ledger_is_refused_and_nothing_of_it_is_run(raw: dict[str, Any], tmp_path: Path) -> None:
    directory = open_directory(tmp_path)
    directory.write("_job/attempts/00001.json", ledger(raw=raw))
    with pytest.raises(LedgerError):
        load_ledger(directory, OWNER)


def test_a_plan_that_a_ledger_names_is_looked_for_in_the_directory_alone(tmp_path: Path) -> None:
    from airflow_provider_openai_batches.jobs.kept import kept_file, keys_file

    directory = open_directory(tmp_path / "job")
    directory.write("_job/attempts/00001.json", ledger(plan="../../../precious", planned=True))
    (tmp_path / "precious.keys.bin").write_text("precious")
    found = load_ledger(directory, OWNER)
    assert found is not None
    for name in (keys_file(found.plan), kept_file(found.plan)):
        with pytest.raises(InvalidInputError, match="leads out"):
            directory.delete(name)
    assert (tmp_path / "precious.keys.bin").exists()


def test_a_ledger_names_no_connection_and_no_host() -> None:
    """Whoever may write the job's directory must not choose where the key goes."""
    fields = {*Ledger.__struct_fields__, *Shard.__struct_fields__, *Round.__struct_fields__}
    assert not [name for name in fields if re.search(r"conn|host|url|header|key|secret|password", name)]


# --- ids and names of the service and of users ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b", "%2e%2e%2f", "a?b=c", "a#b", "a\r\nX: y", "a;b", "a\\b", "ü"]
)
def test_an_id_stays_one_segment_of_the_path(name: str) -> None:
    with ScriptedServer(as_json({"id": "x"})) as server, connect(server.base_url) as client:
        client.retrieve_file(name)
    (request,) = server.requests
    assert request.path.startswith("/v1/files/")
    assert request.path.count("/") == 3
    assert unquote(request.path.removeprefix("/v1/files/")) == name
    assert "X" not in request.headers
    assert request.query == {}


@pytest.mark.parametrize("name", ['a"; x="y', "a\r\nX-Injected: y\r\n\r\nbody", "a\x00b", "../../x"])
def test_a_file_name_stays_a_file_name_in_the_upload(name: str) -> None:
    with ScriptedServer(as_json({"id": "file-1"})) as server, connect(server.base_url) as client:
        client.upload_file(lambda: io.BytesIO(b"{}"), filename=f"{name}.jsonl")
    heads = [part.partition(b"\r\n\r\n")[0].strip() for part in server.requests[0].body.split(b"\r\n--")]
    ((_, *own),) = [head.split(b"\r\n") for head in heads if b'name="file"' in head]
    assert [line.split(b":")[0] for line in own] == [b"Content-Disposition", b"Content-Type"]
    # An unescaped quote would end the name early.
    assert own[0].count(b'"') == 4


@pytest.mark.parametrize("path", ["/../../../outside", "/a/../../outside"])
def test_a_redirects_path_does_not_choose_the_file_that_is_written(path: str, tmp_path: Path) -> None:
    target = tmp_path / "in" / "out"
    target.parent.mkdir()
    headers = {"Location": path, "Content-Disposition": "attachment; filename=../../outside"}
    with (
        ScriptedServer(Answer(302, headers=headers), Answer(200, b"{}\n", headers)) as server,
        connect(server.base_url) as client,
    ):
        client.download_file("file-1", target)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [target]


# --- temporary files --------------------------------------------------------------------------------------------------


def test_temporary_files_are_of_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_openai_batches.jobs.directory import _RemoteDirectory

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    before = os.umask(0)
    try:
        directory = _RemoteDirectory(ObjectStoragePath(f"file://{tmp_path}/job"))
        with directory.staging() as staging:
            assert stat.S_IMODE(staging.stat().st_mode) == 0o700
            assert staging.parent == tmp_path / "tmp"
    finally:
        os.umask(before)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_no_temporary_name_can_be_guessed() -> None:
    """Whoever can guess one can put a link there first."""
    import airflow_provider_openai_batches

    root = Path(airflow_provider_openai_batches.__file__).parent
    sources = {path: path.read_text() for path in root.rglob("*.py")}
    assert not [str(path) for path, source in sources.items() if re.search(r"gettempdir|mktemp\(|[\"']/tmp", source)]


def test_the_emulator_keeps_nothing_under_a_name_that_a_caller_chose(tmp_path: Path) -> None:
    from airflow_provider_openai_batches.emulator import Emulator

    with (
        Emulator(speed=0, api_key=API_KEY, data_dir=tmp_path / "data") as server,
        connect(server.base_url, api_key=API_KEY) as client,
    ):
        for name in ("../../outside.jsonl", "/outside.jsonl", "..\\outside.jsonl"):
            client.upload_file(lambda: io.BytesIO(b"{}\n"), filename=name)
        for file_id in ("../../../etc/hostname", "..%2f..%2fetc%2fhostname", "/etc/hostname"):
            with pytest.raises(OpenAIBatchesError):
                client.download_file(file_id, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert not any("outside" in path.name for path in tmp_path.rglob("*"))
