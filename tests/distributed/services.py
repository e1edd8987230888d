"""PostgreSQL, Redis and S3 of this run alone: own data, own passwords, free ports of 127.0.0.1, gone at the end."""

from __future__ import annotations

import grp
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests

from demo.processes import HOST, Child, Processes, claim_port, local_environment
from tests.distributed.killing import kill

START_TIMEOUT_S = 60
BUCKET = "jobs"
REGION, S3_KEY = "us-east-1", "test"
NEEDED_MODULES = (
    "airflow.providers.amazon",
    "airflow.providers.celery",
    "asyncpg",
    "flask",
    "moto",
    "psycopg2",
    "s3fs",
)
DEBIAN_PATTERN = "postgresql/*/bin"
SERVICE_USERS = ("postgres", "nobody")
"""Who may run PostgreSQL for root, which it refuses to run as."""


@dataclass(frozen=True)
class Services:
    """Where the services are.

    :param postgresql: ``user:password@host:port/database``, to be put behind a driver's name
    :param redis: URL with password
    :param s3: endpoint; any key will do
    :param home: the data of all of them
    :param processes: what they run in
    """

    home: Path
    processes: Processes = field(repr=False)
    postgresql: str = field(repr=False)
    redis: str = field(repr=False)
    s3: str

    def read_result(self, uri: str) -> bytes:
        """Read an object as S3 has it, past everything of ours.

        :param uri: ``s3://conn@bucket/key``
        """
        import boto3

        parts = urlsplit(uri)
        client = boto3.client(
            "s3", endpoint_url=self.s3, region_name=REGION, aws_access_key_id=S3_KEY, aws_secret_access_key=S3_KEY
        )
        found = client.get_object(Bucket=parts.netloc.rpartition("@")[2], Key=parts.path.lstrip("/"))
        return bytes(found["Body"].read())

    def kill(self, name: str) -> Child:
        """Kill ``postgresql`` or ``redis``; the data stays where it is.

        :return: what :meth:`start_again` takes
        """
        return kill(self.processes, name)[0]

    def start_again(self, dead: Child) -> None:
        """Start a service as it was, on its old port and data."""
        self.processes.start(dead.name, dead.popen.args, env=_environment())

    def s3_connection(self) -> str:
        """Return the Airflow connection to S3, as JSON."""
        extra = {"endpoint_url": self.s3, "region_name": REGION}
        return json.dumps({"conn_type": "aws", "login": S3_KEY, "password": S3_KEY, "extra": extra})


def missing() -> str | None:
    """Say what this machine lacks; None if it has everything."""
    if sys.platform != "linux":
        return "needs Linux"
    lacking = [name for name in ("initdb", "postgres", "pg_isready") if _postgresql(name) is None]
    lacking += [name for name in ("redis-server", "setpriv") if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)}: install Debian's packages postgresql and redis-server"
    if modules := [name for name in NEEDED_MODULES if not _is_installed(name)]:
        return f"no {', '.join(modules)}: install the dependency group `distributed`"
    return None


@contextmanager
def running(processes: Processes) -> Iterator[Services]:
    """Start the three and wait until each answers. Their data goes when the context closes.

    :param processes: ends them; stopped when the context closes
    :raises DemoError: one does not start; the message carries the end of its log
    """
    with tempfile.TemporaryDirectory(prefix="distributed-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        as_user = unprivileged(home)
        yield Services(
            home=home,
            processes=processes,
            postgresql=_start_postgresql(processes, home, as_user),
            redis=_start_redis(processes, home, as_user),
            s3=_start_s3(processes),
        )


def _start_postgresql(processes: Processes, home: Path, as_user: list[str]) -> str:
    password, port = secrets.token_urlsafe(12), claim_port(None, "")
    password_file, data = _private(home / "postgresql.password", password), home / "postgresql"
    locale = ("--encoding=UTF8", "--locale=C", "--no-sync")
    access = ("--username=airflow", f"--pwfile={password_file}", "--auth=scram-sha-256")
    initdb = [*as_user, str(_postgresql("initdb")), "--pgdata", str(data), *locale, *access]
    processes.run("initdb", initdb, env=_environment(), timeout_s=START_TIMEOUT_S)
    settings = {
        "listen_addresses": HOST,
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 200,
        # Nobody needs the data after a power cut.
        "fsync": "off",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    postgres = [*as_user, str(_postgresql("postgres")), "-D", str(data), *options]
    processes.start("postgresql", postgres, env=_environment())
    ready = [str(_postgresql("pg_isready")), "-q", "-h", HOST, "-p", str(port), "-t", "30"]
    processes.wait_for(lambda: os.spawnv(os.P_WAIT, ready[0], ready) == 0, timeout_s=START_TIMEOUT_S, what="PostgreSQL")
    return f"airflow:{password}@{HOST}:{port}/postgres"


def _start_redis(processes: Processes, home: Path, as_user: list[str]) -> str:
    password, port = secrets.token_urlsafe(12), claim_port(None, "")
    settings = {"bind": HOST, "port": port, "requirepass": password, "dir": home, "save": '""', "appendonly": "no"}
    # In a file, since everybody may read a command line.
    config = _private(home / "redis.conf", "".join(f"{name} {value}\n" for name, value in settings.items()))
    command = [*as_user, str(shutil.which("redis-server")), str(config)]
    child = processes.start("redis", command, env=_environment())
    ready = "Ready to accept connections"
    processes.wait_for(lambda: ready in child.log.read_text(), timeout_s=START_TIMEOUT_S, what="Redis")
    return f"redis://:{password}@{HOST}:{port}/0"


def _start_s3(processes: Processes) -> str:
    port = claim_port(None, "")
    url = f"http://{HOST}:{port}"
    argv = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    processes.start("s3", argv, env=_environment())

    def bucket_made() -> bool:
        try:
            return requests.put(f"{url}/{BUCKET}", timeout=60).ok
        except requests.ConnectionError:
            return False

    processes.wait_for(bucket_made, timeout_s=START_TIMEOUT_S, what="S3")
    return url


def _environment() -> dict[str, str]:
    return local_environment({}, without=("PG", "AWS_"))


def unprivileged(home: Path) -> list[str]:
    """Return what to put before a command so that it does not run as root, and give that user the directory."""
    if os.getuid() != 0:
        return []
    user = next(pwd.getpwnam(name) for name in SERVICE_USERS if name in {each.pw_name for each in pwd.getpwall()})
    os.chown(home, user.pw_uid, user.pw_gid)
    group = grp.getgrgid(user.pw_gid).gr_name
    return ["setpriv", f"--reuid={user.pw_name}", f"--regid={group}", "--clear-groups", "--"]


def _private(path: Path, content: str) -> Path:
    """Write a file that only the owner of its directory can read."""
    path.touch(mode=0o600)
    path.write_text(content)
    os.chown(path, path.parent.stat().st_uid, path.parent.stat().st_gid)
    return path


def _postgresql(program: str) -> Path | None:
    """Find a program of PostgreSQL, the newest one that is installed. Debian does not put them on PATH."""
    versions = sorted(Path("/usr/lib").glob(DEBIAN_PATTERN), key=lambda folder: int(folder.parent.name), reverse=True)
    found = shutil.which(program, path=os.pathsep.join([*map(str, versions), os.environ.get("PATH", "")]))
    return Path(found) if found else None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
