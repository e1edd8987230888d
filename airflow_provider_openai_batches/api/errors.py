"""Everything that can go wrong with the Batch API, as one tree.

::

    OpenAIBatchesError
    ├── InvalidInputError             refused here, before any call (also a ValueError)
    │   └── NoRowsError               a job without a row
    ├── APIConnectionError            no answer: reset, timeout, no trusted connection
    │   └── UnreachableError          no connection at all: DNS, refused, proxy
    ├── InvalidResponseError          an answer, but not the API's: HTML, a redirect, something else than JSON
    ├── CredentialError               no token from the identity that the connection says to use
    ├── FileNotReadyError             the service has not taken in an input file, or cannot
    ├── DownloadIncompleteError       a file's content ended early
    ├── WaitTimeoutError              a wait ended before the batch did (also a TimeoutError)
    ├── CreateOutcomeUnknownError     a batch may or may not have been created, and the service cannot say
    ├── APIStatusError                the API refused; carries status, code, param and request id
    │   ├── BadRequestError           400 and other 4xx
    │   ├── AuthenticationError       401
    │   ├── PermissionDeniedError     403
    │   ├── NotFoundError             404
    │   │   └── WrongPathError        404, or 405 for a POST, for a path that every such service has
    │   ├── ConflictError             409
    │   ├── TooLargeError             413
    │   ├── RateLimitError            429 that passes by itself
    │   ├── QuotaExhaustedError       429 that a person has to solve
    │   ├── QueueFullError            the model's batch queue is full (400 or 429)
    │   └── ServerError               408 and 5xx
    ├── WebhookError                  a webhook that must not be acted upon: its kinds are in :mod:`.webhooks`
    └── BatchEndedError               a batch came to an end that gives nothing to work with
        ├── BatchFailedError          the service refused the batch; carries its line errors
        ├── BatchUnfinishedError      expired or cancelled before all requests were answered
        └── NoRequestSucceededError   completed, but every single request failed

Each error knows whether it is ``transient``: whether the same call may succeed later without anybody doing anything.
"""

from __future__ import annotations

from typing import ClassVar

from airflow_provider_openai_batches.api.models import Batch, BatchStatus

_ERRORS_SHOWN = 100


class OpenAIBatchesError(Exception):
    """Base of all errors of this package.

    :param message: what happened, to what, and what to do
    :param transient: whether the same call may succeed later by itself; default: the class's usual answer
    :param maybe_applied: whether the service may have carried out the call all the same; default: the class's answer
    """

    transient: bool = False
    maybe_applied: bool = False
    timed_out: bool = False
    """Whether we stopped waiting for the answer, so that the service may carry out the call later still."""
    status: int | None = None
    code: str | None = None
    param: str | None = None
    request_id: str | None = None
    retry_after_s: float | None = None

    def __init__(self, message: str, *, transient: bool | None = None, maybe_applied: bool | None = None) -> None:
        super().__init__(message)
        if transient is not None:
            self.transient = transient
        if maybe_applied is not None:
            self.maybe_applied = maybe_applied


class InvalidInputError(OpenAIBatchesError, ValueError):
    """A value that cannot work, found before anything was sent.

    :param param: the parameter or field that has to change
    :param message: what is wrong with it and what to do
    """

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


class NoRowsError(InvalidInputError):
    """A job without a row. For some that is a mistake, for others a quiet night."""

    def __init__(self) -> None:
        super().__init__("requests", "there is no row. If that is no mistake, give the task when_empty='skip'.")


class APIConnectionError(OpenAIBatchesError):
    """The service gave no complete answer. A write may have been carried out, unless ``maybe_applied`` is false."""

    transient = True
    maybe_applied = True


class UnreachableError(APIConnectionError):
    """There was no connection to the service, so nothing was sent."""

    maybe_applied = False


class InvalidResponseError(OpenAIBatchesError):
    """Something answered that does not speak the Batch API, usually a proxy or the wrong host."""

    maybe_applied = True


class CredentialError(OpenAIBatchesError):
    """There is no token to call the service with. Nothing was sent."""


class FileNotReadyError(OpenAIBatchesError):
    """A batch cannot be created yet, because its input file is not ``processed``, or never will be."""


class DownloadIncompleteError(OpenAIBatchesError):
    """The content of a file ended before its announced length."""

    transient = True


class WaitTimeoutError(OpenAIBatchesError, TimeoutError):
    """The batch was still going on when the time given for the wait was over. It goes on unless it is cancelled."""


class CreateOutcomeUnknownError(OpenAIBatchesError):
    """The answer to a create was lost and the batches could not be listed to find out what became of it.

    :meth:`BatchClient.find_batch` with the token named in the message tells, once the service answers again.
    """

    transient = True
    maybe_applied = True


class APIStatusError(OpenAIBatchesError):
    """The API answered with an error status: https://platform.openai.com/docs/guides/error-codes.

    :param call: method and path, e.g. ``POST /batches``
    :param status: HTTP status
    :param reason: the API's message
    :param code: the API's machine-readable code
    :param param: the request field the API complains about
    :param request_id: OpenAI support asks for it
    :param retry_after_s: seconds the server asks to wait, if it does
    :param transient: overrides the class, for servers that say whether to retry
    """

    hint: ClassVar[str] = ""

    def __init__(
        self,
        call: str,
        *,
        status: int,
        reason: str,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        transient: bool | None = None,
    ) -> None:
        details = ", ".join(
            f"{name} {value}"
            for name, value in (("code", code), ("field", param), ("request id", request_id))
            if value is not None
        )
        message = f"{call} was refused with HTTP {status}: {reason}" + (f" ({details})" if details else "")
        super().__init__(f"{message} {self.hint}".rstrip(), transient=transient)
        self.reason = reason
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class BadRequestError(APIStatusError):
    """400, 422 and other 4xx: the request itself has to change."""


class AuthenticationError(APIStatusError):
    """401: the key is missing, wrong or revoked."""

    hint = "Check the API key (password), organization and project of the Airflow connection."


class PermissionDeniedError(APIStatusError):
    """403: the key is valid but may not do this."""

    hint = "Check that the key's project and permissions allow files and batches, and that your region is supported."


class NotFoundError(APIStatusError):
    """404: no such object, or one of another project."""

    hint = "Check the id, and that the connection's key belongs to the project that made it; files also expire."


class WrongPathError(NotFoundError):
    """404 for ``/files`` or ``/batches`` itself, or 405 for a POST there: there is no Batch API at this URL."""

    hint = "Is the connection's host the base URL of the API, including '/v1'?"


class ConflictError(APIStatusError):
    """409: the object is in a state that does not allow this."""

    transient = True


class TooLargeError(APIStatusError):
    """413: the body is larger than the service accepts."""

    hint = "Split the input into smaller files: OpenAI takes 200 MB and 50,000 requests per batch."


class RateLimitError(APIStatusError):
    """429: too many calls; passes by itself."""

    transient = True
    hint = "Try again later; if it lasts, make fewer calls at a time."


class QuotaExhaustedError(APIStatusError):
    """429 (at some services 400, 402, 403) about money or limits that a person has to raise."""

    hint = "Waiting does not help: check plan, billing and spend limits of the organization and project."


class QueueFullError(APIStatusError):
    """The model's batch queue is full: https://platform.openai.com/docs/guides/batch#rate-limits.

    Transient, but on the scale of minutes to hours: batches that are running have to finish first.
    """

    transient = True
    hint = "Batches already queued for this model have to finish first; then create it again with the same file."


class ServerError(APIStatusError):
    """408 and 5xx: the service has trouble. That is no proof that it did not carry out the call."""

    transient = True
    maybe_applied = True
    hint = "Try again later; if it lasts, look at the service's status page."


class BatchEndedError(OpenAIBatchesError):
    """A batch ended in a way that gives nothing to work with.

    :param batch: the batch as last seen
    :param message: what happened and what to do
    """

    def __init__(self, batch: Batch, message: str) -> None:
        super().__init__(message)
        self.batch = batch


class BatchFailedError(BatchEndedError):
    """The service refused the batch at validation: nothing ran and nothing is billed.

    :param batch: the failed batch; every entry of its ``errors`` is in the message
    """

    def __init__(self, batch: Batch) -> None:
        entries = [str(entry) for entry in batch.errors] or ["the service gave no reason"]
        # A limit keeps a file of 50,000 bad lines from becoming a 5 MB log line; `errors` still has them all.
        shown = entries[:_ERRORS_SHOWN]
        if len(entries) > len(shown):
            shown.append(f"... and {len(entries) - len(shown)} more, see this error's batch.errors")
        super().__init__(
            batch,
            f"Batch {batch.id} (input file {batch.input_file_id}) failed validation; nothing ran or was billed:\n  "
            + "\n  ".join(shown),
        )
        self.errors = batch.errors
        self.code = batch.errors[0].code if batch.errors else None
        self.param = batch.errors[0].param if batch.errors else None


class BatchUnfinishedError(BatchEndedError):
    """The batch expired or was cancelled.

    :param batch: the batch; its finished requests are billed and stay downloadable
    """

    def __init__(self, batch: Batch) -> None:
        counts = batch.request_counts
        super().__init__(
            batch,
            f"Batch {batch.id} is {batch.status} with {counts.completed} of {counts.total} requests answered. "
            + (
                f"They are paid for: download them (output file {batch.output_file_id}) before you submit the rest."
                if batch.output_file_id
                else "Nothing was finished."
            ),
        )


class NoRequestSucceededError(BatchEndedError):
    """The batch completed, but not one request succeeded.

    :param batch: the batch; the reasons are in its error file
    """

    def __init__(self, batch: Batch) -> None:
        what = (
            f"all {batch.request_counts.total} requests failed"
            if batch.none_succeeded
            else "the service names no output file"
        )
        super().__init__(
            batch,
            f"Batch {batch.id} completed, but {what}. The reasons are in error file {batch.error_file_id}.",
        )


def raise_for_outcome(batch: Batch) -> None:
    """Raise unless this terminal batch answered all its requests, or completed with some of them failed.

    :raises BatchFailedError: it failed validation
    :raises BatchUnfinishedError: it expired or was cancelled
    :raises NoRequestSucceededError: it completed, but every request failed
    """
    if batch.status == BatchStatus.FAILED:
        raise BatchFailedError(batch)
    if batch.status in (BatchStatus.EXPIRED, BatchStatus.CANCELLED):
        raise BatchUnfinishedError(batch)
    if batch.status == BatchStatus.COMPLETED and not batch.bought_answers:
        raise NoRequestSucceededError(batch)
