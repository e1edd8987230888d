"""An Airflow connection becomes a :class:`BatchClient`, with files from wherever Airflow can read them."""

from __future__ import annotations

import errno
import logging
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow.providers.common.compat.sdk import BaseHook, ObjectStoragePath, mask_secret

from airflow_provider_openai_batches.api.errors import (
    AuthenticationError,
    InvalidInputError,
    OpenAIBatchesError,
    WaitTimeoutError,
)
from airflow_provider_openai_batches.api.inputs import MAX_BYTES, check_input_file, check_text, shown
from airflow_provider_openai_batches.api.progress import Progress
from airflow_provider_openai_batches.hooks.connection import (
    client_settings,
    connection_extra,
    connection_prices,
    connection_queue_limits,
)
from airflow_provider_openai_batches.jobs.locations import check_location

if TYPE_CHECKING:
    from airflow_provider_openai_batches.api.client import BatchClient
    from airflow_provider_openai_batches.api.download import Partial
    from airflow_provider_openai_batches.api.models import Batch, File
    from airflow_provider_openai_batches.api.settings import ClientSettings
    from airflow_provider_openai_batches.jobs.pricing import Price

log = logging.getLogger(__name__)

DEFAULT_CONN_ID = "openai_batches_default"
_FILES_VISIBLE_WITHIN_S = 600.0
_COPY_BYTES = 1 << 20


class OpenAIBatchesHook(BaseHook):
    """The Batch API through an Airflow connection of type ``openai_batches`` (or the official ``openai``).

    :param conn_id: the connection: password is the API key, host the base URL
    """

    conn_name_attr = "conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "openai_batches"
    hook_name = "OpenAI Batches"

    def __init__(self, conn_id: str = DEFAULT_CONN_ID) -> None:
        super().__init__()
        self.conn_id = conn_id
        self._client: BatchClient | None = None
        self._single: BatchClient | None = None

    def get_conn(self) -> BatchClient:
        """Return the client, made once per hook.

        :raises InvalidInputError: the connection lacks the key, or a field cannot be used
        """
        # Parsing a DAG file imports this module, and needs no HTTP.
        from airflow_provider_openai_batches.api.client import BatchClient

        if self._client is None:
            self._client = BatchClient(self._settings())
        return self._client

    def _looking(self) -> BatchClient:
        """Return a client that tries once: where one look follows the other, the next one is the retry."""
        from airflow_provider_openai_batches.api.client import BatchClient

        if self._single is None:
            self._single = BatchClient(self._settings(), attempts=1)
        return self._single

    @property
    def queue_limits(self) -> dict[str, int]:
        """Prompt tokens that may be queued per model, from the connection's ``enqueued_token_limits``.

        :raises InvalidInputError: a limit is no number of tokens
        """
        return connection_queue_limits(self.get_connection(self.conn_id))

    @property
    def prices(self) -> dict[str, Price]:
        """What tokens cost by model, from the connection's ``prices``; empty if it has none."""
        return connection_prices(self.get_connection(self.conn_id))

    def close(self) -> None:
        """Close the connections to the service. The next call reads the Airflow connection again."""
        for client in (self._client, self._single):
            if client is not None:
                client.close()
        self._client = self._single = None

    def read_again(self) -> None:
        """Take up what was changed in the Airflow connection; while it cannot be read, go on with what is known of it.

        What takes the service away may take the secrets backend with it.
        """
        try:
            settings = self._settings()
        except Exception as error:  # noqa: BLE001 - a secrets backend can raise anything
            log.warning("Connection %s cannot be read now, so it is taken to be as before: %s", self.conn_id, error)
            return
        if any(client is not None and client.settings != settings for client in (self._client, self._single)):
            self.close()

    @property
    def webhook_secret(self) -> str:
        """The signing secret of the webhook endpoint, from the connection; empty if it has none."""
        secret = str(connection_extra(self.get_connection(self.conn_id)).get("webhook_secret") or "").strip()
        if secret:
            # Airflow masks the fields that it knows, and what exactly is written there.
            mask_secret(secret)
        return secret

    def _settings(self) -> ClientSettings:
        conn = self.get_connection(self.conn_id)
        return client_settings(conn, connection_extra(conn))

    def test_connection(self) -> tuple[bool, str]:
        """List one batch: the cheapest call that needs a valid key. Tried once: a person is waiting."""
        from airflow_provider_openai_batches.api.client import BatchClient

        try:
            with BatchClient(self._settings(), attempts=1) as client:
                next(client.list_batches(limit=1), None)
        except OpenAIBatchesError as error:
            return False, str(error)
        return True, f"Connected to {client.settings.base_url}."

    # --- files -------------------------------------------------------------------------------------------------------

    def upload_file(
        self,
        source: str | Path | ObjectStoragePath | bytes | BinaryIO,
        *,
        filename: str | None = None,
        expires_after: int | Mapping[str, Any] | None = None,
    ) -> File:
        """Check every line of an input file, then upload it, streamed.

        :param source: path, URI or ObjectStoragePath of a JSONL file, its bytes, or a file opened in binary mode
        :param filename: name shown by the service; default: the source's own
        :param expires_after: seconds (3,600 to 2,592,000) until the service deletes the file; default: 30 days
        :raises InvalidInputError: the file is not what the API takes; names line, field and remedy
        """
        if filename is not None:
            check_text(filename, "filename")
        with _readable(source) as (open_content, own_name):
            dialect = self.get_conn().settings.dialect
            with open_content() as content:
                summary = check_input_file(
                    content, own_name, max_requests=dialect.max_requests, max_bytes=dialect.max_bytes
                )
            name = filename or own_name
            file = self.get_conn().upload_file(
                open_content,
                filename=name if name.endswith(".jsonl") else f"{name}.jsonl",
                expires_after=expires_after,
            )
        log.info("Uploaded %s: %s requests, %s bytes, file %s.", name, summary.requests, summary.bytes, file.id)
        return file

    def retrieve_file(self, file_id: str) -> File:
        """Return one file's object."""
        return self.get_conn().retrieve_file(file_id)

    def list_files(self, *, purpose: str | None = None, limit: int | None = None) -> Iterator[File]:
        """Iterate over the project's files; see :meth:`BatchClient.list_files`."""
        return self.get_conn().list_files(purpose=purpose, limit=limit)

    def delete_file(self, file_id: str) -> None:
        """Delete a file; one that is gone already is fine."""
        self.get_conn().delete_file(file_id)

    def download_file(
        self,
        file_id: str,
        destination: str | Path | ObjectStoragePath,
        *,
        check: Callable[[Path], None] | None = None,
    ) -> int:
        """Write a file's content to a path or URI; it appears there whole or not at all.

        :param file_id: the file
        :param destination: local path, URI or ObjectStoragePath; directories are made as needed
        :param check: called with the local path of the finished content before it replaces anything; may raise. It is
            taken to read lines, so that one of more than 512 MiB is refused
        :return: size in bytes
        """
        target = _path(destination, "destination")
        if not isinstance(target, ObjectStoragePath):
            target.parent.mkdir(parents=True, exist_ok=True)
            return self.get_conn().download_file(file_id, target, check=check, by_lines=check is not None)
        with tempfile.TemporaryDirectory(prefix="openai-batches-") as directory:
            local = Path(directory, "content")
            size = self.get_conn().download_file(file_id, local, check=check, by_lines=check is not None)
            _place(local, target)
        return size

    def iter_lines(self, file_id: str) -> Iterator[bytes]:
        """Iterate over the lines of a JSONL file. The content is on disk before the first line comes.

        :param file_id: the file
        """
        with tempfile.TemporaryDirectory(prefix="openai-batches-") as directory:
            local = Path(directory, "content")
            self.get_conn().download_file(file_id, local)
            with local.open("rb") as lines:
                yield from lines

    def download_partial(
        self, batch_id: str, destination: str | Path | ObjectStoragePath, *, offset: int = 0
    ) -> Partial:
        """Write the answers that a batch has so far, where the service streams them (dialect ``doubleword``).

        :param batch_id: the batch, in any status
        :param destination: path or URI of the new file
        :param offset: answers to leave out: ``next_offset`` of what this returned before
        :raises InvalidInputError: the service hands out results at the end
        """
        target = _path(destination, "destination")
        with tempfile.TemporaryDirectory(prefix="openai-batches-") as directory:
            local = Path(directory, "content")
            partial = self.get_conn().download_partial(batch_id, local, offset=offset)
            _place(local, target)
        return partial

    # --- batches -----------------------------------------------------------------------------------------------------

    def create_batch(
        self,
        input_file_id: str,
        endpoint: str,
        *,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        output_expires_after: int | Mapping[str, Any] | None = None,
        idempotency_token: str | None = None,
    ) -> Batch:
        """Create exactly one batch, whatever happens to the answer; see :meth:`BatchClient.create_batch`.

        Where a batch needs a file that is ``processed``, it is waited for.
        """
        self.get_conn().wait_for_file(input_file_id)
        return self.get_conn().create_batch(
            input_file_id,
            endpoint,
            completion_window=completion_window,
            metadata=metadata,
            output_expires_after=output_expires_after,
            idempotency_token=idempotency_token,
        )

    def retrieve_batch(self, batch_id: str) -> Batch:
        """Return one batch as it is now."""
        return self.get_conn().retrieve_batch(batch_id)

    def list_batches(self, *, limit: int | None = None, after: str | None = None) -> Iterator[Batch]:
        """Iterate over the project's batches, newest first; see :meth:`BatchClient.list_batches`."""
        return self.get_conn().list_batches(limit=limit, after=after)

    def cancel_batch(self, batch_id: str) -> Batch:
        """Cancel a batch; one that is over already is returned as it is."""
        return self.get_conn().cancel_batch(batch_id)

    def wait_for_batch(
        self,
        batch_id: str,
        *,
        poll_interval: float = 60,
        timeout: float | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> Batch:
        """Block until a batch is over and its files are named; outages of the service are waited out.

        :param batch_id: the batch
        :param poll_interval: seconds between looks
        :param timeout: seconds to wait at most, 0 for one look; default: as long as it takes
        :param sleep: called with the seconds between looks; it may end the wait by raising. Default: ``time.sleep``
        :raises WaitTimeoutError: the batch was not over in time; it goes on
        """
        from airflow_provider_openai_batches.api.retry import LONGEST_WAIT_S, Patience

        started = time.monotonic()
        patience = Patience()
        over_since: float | None = None
        is_doubted = False
        progress = Progress()
        while True:
            now = time.monotonic()
            pause = poll_interval
            if is_doubted:
                self.read_again()
                is_doubted = False
            try:
                batch = self._looking().retrieve_batch(batch_id)
            except OpenAIBatchesError as error:
                is_news = patience.outage_since is None
                if not patience.outlasts(error, now):
                    raise
                if is_news:
                    log.warning("Could not look at batch %s, trying again until it can be seen: %s", batch_id, error)
                pause = max(pause, min(error.retry_after_s or 0, LONGEST_WAIT_S))
                if isinstance(error, AuthenticationError):
                    # The key may have been rotated by the next look.
                    is_doubted = True
            else:
                if patience.outage_since is not None:
                    log.info("Batch %s is seen again after %.0f seconds.", batch_id, now - patience.outage_since)
                patience.recovered()
                if line := progress.line(batch):
                    log.info(line)
                if batch.is_terminal:
                    over_since = now if over_since is None else over_since
                    if not batch.files_pending or now - over_since > _FILES_VISIBLE_WITHIN_S:
                        return batch
            left = math.inf if timeout is None else timeout - (time.monotonic() - started)
            if left <= 0:
                raise WaitTimeoutError(f"Batch {batch_id} was not over after {timeout:,.0f} seconds; it goes on.")
            (sleep or time.sleep)(min(pause, left))


def _path(location: str | Path | ObjectStoragePath, param: str) -> Path | ObjectStoragePath:
    """Return a local Path for anything local, so that renames are atomic; else an ObjectStoragePath."""
    check_location(location, param)
    if isinstance(location, str):
        location = ObjectStoragePath(location) if "://" in location else Path(location)
    if isinstance(location, ObjectStoragePath) and location.protocol in ("file", "local", ""):
        return Path(location.path)
    return location


def _place(local: Path, target: Path | ObjectStoragePath) -> None:
    """Put a finished file where it belongs, whole or not at all."""
    if isinstance(target, ObjectStoragePath):
        # put_file commits at its end; closing a half-written remote stream would publish the half.
        target.fs.put_file(str(local), target.path)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        shutil.copyfile(local, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _readable(source: Any) -> Iterator[tuple[Callable[[], BinaryIO], str]]:
    """Give an opener that can be called for each attempt, and the source's name.

    What cannot be opened twice, or only over a network, is copied to local disk first.
    """
    if isinstance(source, (bytes, bytearray)):
        yield lambda: BytesIO(source), "requests.jsonl"
        return
    if isinstance(source, (str, Path, ObjectStoragePath)):
        if not str(source).strip():
            raise InvalidInputError("source", "the path is empty. Did the upstream task push one?")
        path = _path(source, "source")
        try:
            exists = path.exists()
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise InvalidInputError("source", f"{shown(str(source))} is too long for a path.") from error
        if not exists:
            raise InvalidInputError("source", f"{source} does not exist, or this worker cannot see it.")
        if path.is_dir():
            raise InvalidInputError("source", f"{source} is a directory; give one JSONL file.")
        if not isinstance(path, ObjectStoragePath):
            if not path.is_file():
                # Opening a pipe would wait for a writer, and a device may never end.
                raise InvalidInputError("source", f"{source} is no regular file; give one JSONL file.")
            yield lambda: path.open("rb"), path.name
            return
        with path.open("rb") as remote, _staged(remote) as local:
            yield lambda: local.open("rb"), path.name
        return
    if not hasattr(source, "read"):
        raise InvalidInputError("source", f"expected a path, bytes or a binary file, got {type(source).__name__}.")
    with _staged(source) as local:
        yield lambda: local.open("rb"), Path(str(getattr(source, "name", "requests.jsonl"))).name


@contextmanager
def _staged(stream: BinaryIO) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="openai-batches-") as directory:
        local = Path(directory, "source")
        left = MAX_BYTES + 1  # Enough for the check to refuse what is too large.
        with local.open("wb") as copy:
            while left > 0 and (chunk := stream.read(min(left, _COPY_BYTES))):
                if isinstance(chunk, str):
                    raise InvalidInputError("source", "the file is open in text mode; open it with 'rb'.")
                left -= copy.write(chunk)
        yield local
