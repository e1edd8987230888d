"""Files and batches of the OpenAI Batch API: https://platform.openai.com/docs/guides/batch."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import msgspec
import requests

from airflow_provider_openai_batches.api.create import CLOCK_SKEW_S, IDEMPOTENCY_KEY, Purchase, Purchases
from airflow_provider_openai_batches.api.download import Partial, download, download_partial
from airflow_provider_openai_batches.api.errors import (
    ConflictError,
    InvalidInputError,
    InvalidResponseError,
    NotFoundError,
)
from airflow_provider_openai_batches.api.inputs import (
    check_completion_window,
    check_endpoint,
    check_expiry,
    check_id,
    check_metadata,
)
from airflow_provider_openai_batches.api.listing import pages
from airflow_provider_openai_batches.api.models import Batch, File
from airflow_provider_openai_batches.api.retry import DEFAULT_ATTEMPTS, is_retryable, retrying
from airflow_provider_openai_batches.api.session import ServiceSession, chunks
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.api.tracing import traced
from airflow_provider_openai_batches.api.upload import upload, wait_until_processed

log = logging.getLogger(__name__)

T = TypeVar("T")
Parsed = TypeVar("Parsed", Batch, File)


class BatchClient:
    """Files and batches of one connection, with one retry policy. Synchronous; not for use by several threads at once.

    :param settings: where the service is and who is calling
    :param attempts: calls made in all before a transient error is raised
    :param sleep: called with the seconds to pause between attempts
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        attempts: int = DEFAULT_ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self._session = ServiceSession(settings)
        self._attempts = attempts
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    # --- files -------------------------------------------------------------------------------------------------------

    @traced("openai_batches.upload")
    def upload_file(
        self,
        source: Callable[[], BinaryIO],
        *,
        filename: str,
        expires_after: int | Mapping[str, Any] | None = None,
        purpose: str | None = None,
    ) -> File:
        """Upload a file, streamed: https://platform.openai.com/docs/api-reference/files/create.

        Where a batch needs a file that is ``processed``, it is waited for.

        :param source: opens the content anew, seekable; called once per attempt, and the stream is closed after it
        :param filename: name the service shows; it has to end in ``.jsonl``
        :param expires_after: seconds (or the API's object) until the service deletes it; default: 30 days
        :param purpose: what the file is for; default: batches
        :raises FileNotReadyError: the service does not get ready to use it
        """
        dialect = self.settings.dialect
        range_s = dialect.expiry_range_s if dialect.expiry_part else None
        expiry = check_expiry(expires_after, "expires_after", range_s, dialect.service) or {}

        def attempt() -> File:
            answer = upload(
                self._session, source, filename=filename, expiry=expiry, purpose=purpose or dialect.file_purpose
            )
            return _parsed(File, "POST /files", answer)

        # A lost answer may leave a second copy behind. It costs nothing and expires; who minds looks for its name.
        return self._processed(self._retry(attempt))

    def wait_for_file(self, file_id: str) -> None:
        """Wait until a batch can be created for a file, where the service has to take it in first.

        :param file_id: an uploaded file; for one of our own, :meth:`upload_file` has waited
        :raises FileNotReadyError: the service does not get ready to use it
        """
        if self.settings.dialect.waits_for_file:
            self._processed(self.retrieve_file(file_id))

    def _processed(self, file: File) -> File:
        if not self.settings.dialect.waits_for_file:
            return file
        return wait_until_processed(lambda: self.retrieve_file(file.id), file, self._sleep)

    def retrieve_file(self, file_id: str) -> File:
        """Return one file's object."""
        file_id = check_id(file_id, "file_id")
        return _parsed(File, "GET /files/{id}", self._get("files", file_id))

    def list_files(self, *, purpose: str | None = None, limit: int | None = None) -> Iterator[File]:
        """Iterate over the files of the project, newest first.

        :param purpose: only files for this purpose, e.g. ``batch`` or ``batch_output``
        :param limit: at most this many; default: all
        """
        params = {} if purpose is None else {"purpose": purpose}
        return map(File.from_api, chain.from_iterable(self._pages("files", params, limit=limit, after=None)))

    def input_files_since(self, created_after: float) -> Iterator[File]:
        """Iterate over the files for batches uploaded since a moment, newest first; as :meth:`batches_since` does.

        Some services list other files, too.

        :param created_after: unix time by our clock
        """
        return self._since(File.from_api, "files", created_after, purpose=self.settings.dialect.file_purpose)

    def delete_file(self, file_id: str) -> None:
        """Delete a file. One that is gone already is fine."""
        file_id = check_id(file_id, "file_id")
        try:
            self._retry(lambda: self._session.json("DELETE", "files", file_id))
        except NotFoundError:
            log.info("File %s is already gone.", file_id)

    @traced("openai_batches.download")
    def download_file(
        self,
        file_id: str,
        destination: Path,
        *,
        check: Callable[[Path], None] | None = None,
        by_lines: bool = True,
    ) -> int:
        """Write a file's content to disk; ``destination`` appears whole or not at all.

        :param file_id: the file
        :param destination: path of the new file; an existing one is replaced
        :param check: called with the path of the finished content before it replaces anything; may raise
        :param by_lines: whether the content will be read by lines; one of more than 512 MiB is then refused
        :return: size in bytes
        :raises DownloadIncompleteError: every attempt ended before the announced length
        :raises InvalidResponseError: what is there is no content, or has a line that is too long
        """
        file_id = check_id(file_id, "file_id")
        return download(self._session, file_id, destination, retry=self._retry, check=check, by_lines=by_lines)

    def read_beginning(self, file_id: str, size: int) -> bytes:
        """Return at most the first bytes of a file's content, however large it is.

        :param file_id: the file
        :param size: in bytes
        """
        file_id = check_id(file_id, "file_id")
        content = bytearray()
        # No range is asked for: an empty file has none, and not every service knows them.
        path = ("files", file_id, "content")
        with closing(self._retry(lambda: self._session.send("GET", *path, follow_redirects=True))) as answer:
            try:
                for chunk in chunks(answer, within_s=self.settings.timeout_s):
                    content += chunk
                    if len(content) >= size:
                        break
            except requests.Timeout:
                pass  # What has come is a beginning, too.
            except requests.RequestException as error:
                raise self._session.connection_error("GET /files/{id}/content", error) from None
        return bytes(content[:size])

    def download_partial(self, batch_id: str, destination: Path, *, offset: int = 0) -> Partial:
        """Write the answers that a batch has so far, at a service that hands them out while the batch goes on.

        :param batch_id: the batch, in any status
        :param destination: path of the new file; an existing one is replaced
        :param offset: answers to leave out, such as those that were read before: :attr:`Partial.next_offset`
        :raises InvalidInputError: the service hands out results at the end
        :raises DownloadIncompleteError: every attempt ended before all was there
        :raises InvalidResponseError: what is there is no content, or has a line that is too long
        """
        dialect = self.settings.dialect
        if not dialect.streams:
            raise InvalidInputError(
                "dialect",
                f"{dialect.service} hands out results when a batch is over. Wait for its end, then download them.",
            )
        batch = self.retrieve_batch(batch_id)
        if not batch.output_file_id:
            destination.write_bytes(b"")
            return Partial(0, offset, is_complete=batch.is_terminal)
        return download_partial(
            self._session, batch.output_file_id, destination, offset, is_over=batch.is_terminal, retry=self._retry
        )

    # --- batches -----------------------------------------------------------------------------------------------------

    @traced("openai_batches.create")
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
        """Create exactly one batch: https://platform.openai.com/docs/api-reference/batch/create.

        After an answer that was lost, the batches are listed before anything is sent again: see :mod:`.create`.

        :param input_file_id: an uploaded file with purpose ``batch``
        :param endpoint: path that every request of the file is for
        :param completion_window: ``24h`` is all OpenAI takes
        :param metadata: up to 15 pairs of your own
        :param output_expires_after: seconds (or the API's object) until the result files are deleted
        :param idempotency_token: identifies this purchase; default: a new one. A batch that an earlier call made under
            it is not looked for: :meth:`find_batch` does that, and needs to know since when
        :raises CreateOutcomeUnknownError: the answer was lost and listing failed too
        """
        token, dialect = idempotency_token or uuid.uuid4().hex, self.settings.dialect
        own = check_metadata({IDEMPOTENCY_KEY: token})
        body: dict[str, Any] = {
            "input_file_id": check_id(input_file_id, "input_file_id"),
            "endpoint": check_endpoint(endpoint, dialect.endpoints, dialect.service),
            "completion_window": check_completion_window(completion_window, dialect.windows_h, dialect.service),
        }
        if pairs := dialect.metadata(check_metadata(metadata, reserved=len(own)) | own):
            body["metadata"] = pairs
        range_s = dialect.expiry_range_s if dialect.has_output_expiry else None
        expiry = check_expiry(output_expires_after, "output_expires_after", range_s, dialect.service)
        if expiry:
            body["output_expires_after"] = expiry
        payload = msgspec.json.encode(body)
        return self._purchases.make(
            Purchase(token, body["input_file_id"], time.time()),
            lambda: self._batch("POST /batches", self._session.json("POST", "batches", body=payload)),
            retry=self._retry,
            is_repeated=self._attempts > 1,
        )

    def keep_oldest(self, batch: Batch, idempotency_token: str, *, created_after: float) -> Batch:
        """Cancel all but the oldest of the batches with one token, and return that one.

        For a create that followed one whose outcome was not certain, and that may have been carried out late.

        :param batch: the one just created; returned if the others cannot be seen
        :param idempotency_token: as given to :meth:`create_batch`
        :param created_after: unix time of the earliest possible create
        """
        return self._purchases.keep_oldest(batch, Purchase(idempotency_token, batch.input_file_id, created_after))

    def find_batch(
        self, idempotency_token: str, *, created_after: float, input_file_id: str | None = None
    ) -> Batch | None:
        """Return the newest batch with this token that has not failed validation, else the newest failed one.

        Where metadata may be lost, a batch without a token is known by its input: there, one file is one purchase.

        :param idempotency_token: as given to :meth:`create_batch`
        :param created_after: unix time of the earliest possible create; the scan goes back to it, and no further
        :param input_file_id: as given to :meth:`create_batch`
        """
        return self._purchases.find(Purchase(idempotency_token, input_file_id, created_after))

    def batches_since(self, created_after: float) -> Iterator[Batch]:
        """Iterate over the batches created since a moment, newest first.

        The first page is read whatever its times are: a clock may be wrong by hours, and what was created just now
        is there.

        :param created_after: unix time by our clock; the scan goes a little further back, for clocks that differ
        """

        return self._since(self._listed, "batches", created_after)

    def retrieve_batch(self, batch_id: str) -> Batch:
        """Return one batch as it is now."""
        batch_id = check_id(batch_id, "batch_id")
        return self._batch("GET /batches/{id}", self._get("batches", batch_id))

    def list_batches(self, *, limit: int | None = None, after: str | None = None) -> Iterator[Batch]:
        """Iterate over the project's batches, newest first; pages are fetched as they are needed.

        :param limit: at most this many; default: all
        :param after: start behind the batch with this id
        """
        return map(self._listed, chain.from_iterable(self._pages("batches", {}, limit=limit, after=after)))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Cancel a batch: https://platform.openai.com/docs/api-reference/batch/cancel.

        It is ``cancelling`` for up to ten minutes; what is finished by then is billed and downloadable.

        :return: the batch as it is now, unchanged if it was over already
        """
        batch_id = check_id(batch_id, "batch_id")
        try:
            answer = self._retry(
                lambda: self._session.json("POST", "batches", batch_id, "cancel"),
                retry_if=lambda error: is_retryable(error) and not isinstance(error, ConflictError),
            )
            return self._batch("POST /batches/{id}/cancel", answer)
        except ConflictError as error:
            batch = self.retrieve_batch(batch_id)
            log.info("Batch %s is already %s (%s).", batch_id, batch.status, error)
            return batch

    # --- mechanics ---------------------------------------------------------------------------------------------------

    @property
    def _purchases(self) -> Purchases:
        # Made when it is needed: kept, it and this would hold each other.
        return Purchases(
            self.batches_since, self.cancel_batch, self._sleep, keeps_metadata=self.settings.dialect.keeps_metadata
        )

    def _retry(self, call: Callable[[], T], *, retry_if: Callable[[BaseException], bool] = is_retryable) -> T:
        return retrying(attempts=self._attempts, sleep=self._sleep, retry_if=retry_if)(call)

    def _get(self, *path: str, **options: Any) -> dict[str, Any]:
        return self._retry(lambda: self._session.json("GET", *path, **options))

    def _batch(self, call: str, answer: Mapping[str, Any]) -> Batch:
        return _parsed(Batch, call, self.settings.dialect.batch(answer))

    def _listed(self, item: Mapping[str, Any]) -> Batch:
        return Batch.from_api(self.settings.dialect.batch(item))

    def _since(
        self, parse: Callable[[dict[str, Any]], Parsed], collection: str, created_after: float, **query: str
    ) -> Iterator[Parsed]:
        def is_recent(each: Parsed) -> bool:
            return each.created_at is None or each.created_at >= created_after - CLOCK_SKEW_S

        for number, page in enumerate(self._pages(collection, query, limit=None, after=None)):
            found = list(map(parse, page))
            recent = list(takewhile(is_recent, found))
            yield from recent if number else found
            if len(recent) < len(found):
                return

    def _pages(
        self, collection: str, params: Mapping[str, Any], *, limit: int | None, after: str | None
    ) -> Iterator[list[dict[str, Any]]]:
        return pages(self._get, collection, params, self.settings.dialect, limit=limit, after=after)


def _parsed(kind: type[Parsed], call: str, answer: Mapping[str, Any]) -> Parsed:
    try:
        return kind.from_api(answer)
    except ValueError as error:
        raise InvalidResponseError(f"{call} answered with something unexpected: {error}.") from error
