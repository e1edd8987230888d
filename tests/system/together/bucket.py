"""A bucket of a local S3 server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

CONN_ID = "our_s3"
NAME = "tickets"
KEY_ID, KEY = "somebody", "sesame-open"


@dataclass(frozen=True)
class Bucket:
    """A bucket, seen beside Airflow.

    :param client: boto3's
    :param connection: what leads Airflow there
    :param uri: as DAGs name it
    """

    client: Any
    connection: dict[str, str]
    uri: str = f"s3://{CONN_ID}@{NAME}"

    @classmethod
    def create(cls, url: str) -> Self:
        """Create the bucket at a server."""
        import boto3

        where = {"endpoint_url": url, "region_name": "us-east-1"}
        client = boto3.client("s3", aws_access_key_id=KEY_ID, aws_secret_access_key=KEY, **where)
        client.create_bucket(Bucket=NAME)
        extra = json.dumps(where)
        credentials = {"login": KEY_ID, "password": KEY}
        return cls(client, {"connection_id": CONN_ID, "conn_type": "aws", "extra": extra, **credentials})

    def put(self, key: str, content: bytes) -> str:
        """Write an object; return its URI."""
        self.client.put_object(Bucket=NAME, Key=key, Body=content)
        return f"{self.uri}/{key}"

    def keys(self, prefix: str) -> list[str]:
        """List the objects below a key."""
        answer = self.client.list_objects_v2(Bucket=NAME, Prefix=prefix)
        assert not answer["IsTruncated"]
        return [entry["Key"] for entry in answer.get("Contents", ())]

    def results(self, manifest: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the result rows of a job."""
        rows = []
        for path in manifest["results"]:
            assert path.startswith(f"{self.uri}/")
            part = self.client.get_object(Bucket=NAME, Key=path.removeprefix(f"{self.uri}/"))["Body"]
            rows += [json.loads(line) for line in part.iter_lines()]
        return rows
