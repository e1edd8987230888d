"""What can go wrong, by name: each function makes one rule for ``openai_batches_emulator.add_fault(...)``.

A rule is plain JSON, as :mod:`airflow_provider_openai_batches.emulator.faults` describes it, so that it can also stand
in the file of ``openai-batches-emulator --faults``, and one that has no name here can be written by hand.

Every function takes ``times`` (on how many matches the fault acts; None: on all) and ``skip`` (how many it lets pass
first). Those about HTTP calls match calls, those about batches batches, and those about rows requests.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Rule = dict[str, Any]
"""A fault rule."""

ANY_CALL = ("*", "**")
CREATE = ("POST", "/v1/batches")
RETRIEVE = ("GET", "/v1/batches/*")
LIST = ("GET", "/v1/batches")
CANCEL = ("POST", "/v1/batches/*/cancel")
UPLOAD = ("POST", "/v1/files")
DOWNLOAD = ("GET", "/v1/files/*/content")
CHAT = ("POST", "/v1/chat/completions")
RESPONSES = ("POST", "/v1/responses")
EMBEDDINGS = ("POST", "/v1/embeddings")
SHOWN_BATCHES = ("*", "/v1/batches**")
"""Which HTTP calls: a method and a path, globs."""

Call = tuple[str, str]

# HTTP calls


def rate_limited(
    retry_after: float | None = 1.0,
    *,
    form: Literal["seconds", "milliseconds", "date"] = "seconds",
    on: Call = ANY_CALL,
    times: int | None = 1,
    skip: int = 0,
) -> Rule:
    """429: too many calls.

    :param retry_after: seconds the answer tells the client to wait, which are real ones; None says nothing
    :param form: as ``Retry-After`` in seconds, as ``retry-after-ms``, or as ``Retry-After`` with a date
    """
    headers: dict[str, str] | None = None
    if retry_after is not None:
        headers = {
            "seconds": {"Retry-After": f"{retry_after:g}"},
            "milliseconds": {"retry-after-ms": f"{retry_after * 1000:g}"},
            "date": {"Retry-After": email.utils.formatdate(time.time() + retry_after, usegmt=True)},
        }[form]
    body = _error("Rate limit reached for requests.", "requests", "rate_limit_exceeded")
    return _call(on, times, skip, status=429, headers=headers, body=body)


def insufficient_quota(*, on: Call = ANY_CALL, times: int | None = 1, skip: int = 0) -> Rule:
    """429, but not for a wait: the account has no money left."""
    message = "You exceeded your current quota, please check your plan and billing details."
    body = _error(message, "insufficient_quota", "insufficient_quota")
    return _call(on, times, skip, status=429, body=body)


def server_error(
    status: int = 500,
    *,
    html: bool = False,
    should_retry: bool | None = None,
    on: Call = ANY_CALL,
    times: int | None = 1,
    skip: int = 0,
) -> Rule:
    """5xx; the call is not applied.

    :param html: a gateway's page instead of the API's error
    :param should_retry: what the header ``x-should-retry`` says; None leaves it out
    """
    headers = None if should_retry is None else {"x-should-retry": str(should_retry).lower()}
    body = "<html><body><h1>Bad gateway</h1></body></html>" if html else None
    return _call(on, times, skip, status=status, headers=headers, body=body)


def refused(
    status: int,
    code: str | None = None,
    message: str = "Refused by a scripted fault.",
    *,
    on: Call = ANY_CALL,
    times: int | None = 1,
    skip: int = 0,
) -> Rule:
    """4xx with a code of the API, such as 401 ``invalid_api_key``."""
    return _call(on, times, skip, status=status, body=_error(message, "invalid_request_error", code))


def lost_call(*, on: Call = ANY_CALL, times: int | None = 1, skip: int = 0) -> Rule:
    """The connection is reset before the call is applied."""
    return _call(on, times, skip, drop="before")


def lost_response(*, on: Call = ANY_CALL, times: int | None = 1, skip: int = 0) -> Rule:
    """The connection is reset after the call was applied: the client cannot know."""
    return _call(on, times, skip, drop="after")


def lost_create_response(*, times: int | None = 1, skip: int = 0) -> Rule:
    """A batch is made, and nobody is told: whoever creates it once more buys it twice."""
    return lost_response(on=CREATE, times=times, skip=skip)


def slow(seconds: float, *, on: Call = ANY_CALL, times: int | None = 1, skip: int = 0) -> Rule:
    """The answer comes late, in real seconds."""
    return _call(on, times, skip, delay=seconds)


def redirected(url: str, *, on: Call = ANY_CALL, times: int | None = 1, skip: int = 0) -> Rule:
    """302 to another host, with the call's own path and query."""
    return _call(on, times, skip, redirect=url)


def batch_not_found(*, times: int | None = 1, skip: int = 0) -> Rule:
    """404 for a batch that is there, as right after its create."""
    return refused(404, None, "No batch found with this id.", on=RETRIEVE, times=times, skip=skip)


def cancel_conflict(*, times: int | None = 1, skip: int = 0) -> Rule:
    """409: the batch was over before the cancel came."""
    return refused(409, None, "Cannot cancel a batch with status 'completed'.", on=CANCEL, times=times, skip=skip)


def list_ignores_after(*, times: int | None = None, skip: int = 0) -> Rule:
    """Every page of the list of batches is the first."""
    return _call(LIST, times, skip, ignore_after=True)


# Downloads


def truncated_download(length: int, *, times: int | None = 1, skip: int = 0) -> Rule:
    """The connection closes after ``length`` bytes of a content; its announced length is the whole."""
    return _call(DOWNLOAD, times, skip, truncate=length)


def failed_download(status: int = 500, *, times: int | None = 1, skip: int = 0) -> Rule:
    """5xx instead of a content."""
    return server_error(status, on=DOWNLOAD, times=times, skip=skip)


def compressed_download(*, times: int | None = None, skip: int = 0) -> Rule:
    """Contents come in gzip."""
    return _call(DOWNLOAD, times, skip, gzip=True)


def resumable_download(*, times: int | None = None, skip: int = 0) -> Rule:
    """Contents can be fetched in ranges, which OpenAI does not promise."""
    return _call(DOWNLOAD, times, skip, ranges=True)


def deleted_file(*, times: int | None = None, skip: int = 0) -> Rule:
    """404: somebody else has deleted the content."""
    return refused(404, None, "No such File object.", on=DOWNLOAD, times=times, skip=skip)


# How batches are shown


def batch_shows(members: Mapping[str, Any], *, times: int | None = None, skip: int = 0) -> Rule:
    """Batches have these members, whatever they should say: ``{"request_counts": None}``, ``{"status": "paused"}``."""
    return _call(SHOWN_BATCHES, times, skip, set=dict(members))


def batch_lacks(*names: str, times: int | None = None, skip: int = 0) -> Rule:
    """Batches do not have these members."""
    return _call(SHOWN_BATCHES, times, skip, patch=dict.fromkeys(names))


def empty_file_ids(*, times: int | None = None, skip: int = 0) -> Rule:
    """A batch without an output or error file has ``""`` for its id, instead of null."""
    return _call(SHOWN_BATCHES, times, skip, fill={"output_file_id": "", "error_file_id": ""})


def azure_dialect(*, times: int | None = None, skip: int = 0) -> Rule:
    """Statuses have a capital, and times are ISO 8601 texts."""
    return _call(SHOWN_BATCHES, times, skip, azure=True)


# Batches. ``batch`` chooses them by globs: {"endpoint": ..., "model": ..., "metadata": {"airflow_task_id": "label"}}


def batch_fails(
    errors: Iterable[Mapping[str, Any]] | None = None,
    *,
    at_once: bool = False,
    batch: Mapping[str, Any] | None = None,
    times: int | None = 1,
    skip: int = 0,
) -> Rule:
    """Validation fails; nothing runs.

    :param errors: ``code``, ``message``, ``param`` and ``line`` of each; None: the batch does not say why
    :param at_once: without the usual three seconds
    """
    listed = None if errors is None else [dict(error) for error in errors]
    return _batch("failed", batch, times, skip, errors=listed, seconds=0 if at_once else None)


def queue_full(*, batch: Mapping[str, Any] | None = None, times: int | None = 1, skip: int = 0) -> Rule:
    """``token_limit_exceeded``: the batch fails, because the model's queue has no room for it."""
    return _batch("token_limit_exceeded", batch, times, skip)


def input_file_not_found(*, batch: Mapping[str, Any] | None = None, times: int | None = 1, skip: int = 0) -> Rule:
    """The batch fails, because the service does not see the file yet."""
    return _batch("file_not_found", batch, times, skip)


def batch_stuck(
    status: Literal["validating", "in_progress", "finalizing", "cancelling"] = "in_progress",
    *,
    hours: float | None = None,
    batch: Mapping[str, Any] | None = None,
    times: int | None = 1,
    skip: int = 0,
) -> Rule:
    """The batch stays in a status for virtual hours; None: for ever."""
    return _batch("stuck", batch, times, skip, status=status, seconds=None if hours is None else 3_600 * hours)


def skipped_states(*, batch: Mapping[str, Any] | None = None, times: int | None = 1, skip: int = 0) -> Rule:
    """The batch shows ``validating`` until it has ended."""
    return _batch("skip_states", batch, times, skip)


def batch_expires(
    finished: float = 0.5, *, batch: Mapping[str, Any] | None = None, times: int | None = 1, skip: int = 0
) -> Rule:
    """The batch expires when a share of its requests is answered; the others are in its error file.

    :param finished: from 0 to 1
    """
    return _batch("expire", batch, times, skip, finished=finished)


def all_requests_fail(
    status: int = 500,
    code: str | None = None,
    *,
    batch: Mapping[str, Any] | None = None,
    times: int | None = 1,
    skip: int = 0,
) -> Rule:
    """The batch is completed, and has no output file."""
    return _batch("all_failed", batch, times, skip, status=status, code=code)


def empty_error_file(*, batch: Mapping[str, Any] | None = None, times: int | None = 1, skip: int = 0) -> Rule:
    """A batch without a failed request has an error file all the same, of zero bytes."""
    return _batch("empty_error_file", batch, times, skip)


# Rows, by a glob of their custom_id


def row_fails(
    custom_id: str,
    status: int = 400,
    code: str | None = None,
    message: str | None = None,
    *,
    times: int | None = 1,
    skip: int = 0,
) -> Rule:
    """The request is answered with an error of the model's endpoint."""
    return _row("error", custom_id, times, skip, status=status, code=code, message=message)


def row_times_out(custom_id: str, *, times: int | None = 1, skip: int = 0) -> Rule:
    """The request ran and was never answered."""
    return _row("timeout", custom_id, times, skip)


def row_missing(custom_id: str, *, times: int | None = 1, skip: int = 0) -> Rule:
    """The answer is in neither file."""
    return _row("missing", custom_id, times, skip)


def row_duplicated(custom_id: str, *, times: int | None = 1, skip: int = 0) -> Rule:
    """The answer is there twice."""
    return _row("duplicate", custom_id, times, skip)


def row_unknown(custom_id: str, *, times: int | None = 1, skip: int = 0) -> Rule:
    """The answer bears a custom_id that nobody sent."""
    return _row("unknown", custom_id, times, skip)


def row_broken(custom_id: str, *, times: int | None = 1, skip: int = 0) -> Rule:
    """The answer's line is cut in the middle."""
    return _row("broken_line", custom_id, times, skip)


def row_cut_off(custom_id: str, *, times: int | None = 1, skip: int = 0) -> Rule:
    """200, but the text is cut by the token cap: ``length``, or ``incomplete`` for responses."""
    return _row("length", custom_id, times, skip)


def row_refused(custom_id: str, *, times: int | None = 1, skip: int = 0) -> Rule:
    """200, but the model refuses."""
    return _row("refusal", custom_id, times, skip)


def row_invalid(custom_id: str, *, times: int | None = 1, skip: int = 0) -> Rule:
    """200, but the text does not follow the schema."""
    return _row("invalid_output", custom_id, times, skip)


def row_answers(custom_id: str, text: str, *, times: int | None = 1, skip: int = 0) -> Rule:
    """200, with a text of your choice: a label, a megabyte, U+2028."""
    return _row("answer", custom_id, times, skip, text=text)


def _call(on: Call, times: int | None, skip: int, **do: Any) -> Rule:
    method, path = on
    return _rule({"method": method, "path": path}, do, times, skip)


def _batch(outcome: str, batch: Mapping[str, Any] | None, times: int | None, skip: int, **do: Any) -> Rule:
    return _rule({"batch": dict(batch or {})}, {"outcome": outcome, **do}, times, skip)


def _row(outcome: str, custom_id: str, times: int | None, skip: int, **do: Any) -> Rule:
    return _rule({"custom_id": custom_id}, {"outcome": outcome, **do}, times, skip)


def _rule(on: Mapping[str, Any], do: Mapping[str, Any], times: int | None, skip: int) -> Rule:
    said = {name: value for name, value in do.items() if value is not None}
    return {"on": dict(on), "do": said, "skip": skip, "times": times}


def _error(message: str, kind: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
