"""The one place where it is decided what became of a request, and whether it is worth another attempt.

What a row is when no further attempt follows, because none would help or none is left:

===============================================================  ================  =====================  ==============
the batch gave                                                   status            error code             another try
===============================================================  ================  =====================  ==============
an answer, 2xx, complete (and valid, with an output type)        `succeeded`                              no
an answer cut off by the request's token cap                     `invalid_output`  `truncated`            larger cap
an answer cut off, and the request has no cap to enlarge         `invalid_output`  `truncated`            no
an answer that does not follow the output type                   `invalid_output`  `invalid_output`       with feedback
an answer that the output type's own validators cannot check     `invalid_output`  `invalid_output`       no
an answer to a request that asked for another output type        `invalid_output`  `invalid_output`       no
an answer with nothing in it                                     `invalid_output`  `no_output`            same request
a vector with NaN; numbers that no reader takes, such as 1e400   `invalid_output`  `unusable_output`      same request
a refusal by the model                                           `failed`          `refusal`              no
an answer stopped by the content filter                          `failed`          `content_filter`       no
a response that the service failed itself                        `failed`          the service's          same, see [1]_
408, 409, 429 or 5xx                                             `failed`          the service's          same, see [2]_
any other status                                                 `failed`          the service's          no
`batch_expired`; no line in an expired batch                     `expired`         `batch_expired`        same, free
`batch_cancelled`; no line in a cancelled batch                  `cancelled`       `batch_cancelled`      same, free
`request_timeout`, or another error without an HTTP status       `failed`          the service's          same request
no line in a completed batch                                     `missing`         `missing`              same, free
not sent, in a round without a batch                             `missing`         `not_sent`             same, free
no batch was created yet                                         `missing`         `not_submitted`        same, free
no batch could be created, for the service refused it            `failed`          the service's          see [3]_
===============================================================  ================  =====================  ==============

.. [1] For `server_error`, `rate_limit_exceeded` and a response that was still going on; any other reason is final.
.. [2] Not if a person has to act first (`insufficient_quota`, spend limits): another batch would end the same way.

.. [3] In the next attempt of the task, which tries the whole shard again.

"Free" does not use up one of the row's attempts: it did not run. Sources: reference of the Batch API's error object and
https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_openai_batches.api.models import BatchStatus, Usage
from airflow_provider_openai_batches.jobs.answers import Answer, Ending, read_answer
from airflow_provider_openai_batches.jobs.changes import Change, Feedback, asked_schema, input_is_list, larger_cap
from airflow_provider_openai_batches.jobs.lines import ABSENT, UNREADABLE, ResultLine, integer, text

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.structured import Parsed

_OTHER_TYPE = (
    "The request asked for another output_type than the task has now. Clear the task when it is over: it buys the row "
    "anew.\n"
)

STOPPED = "stopped"
"""How a round ended that was sent without a batch, and not to its end."""

RETRYABLE_STATUSES = frozenset({408, 409, 429})
"""Besides 5xx."""

NEEDS_A_PERSON = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    }
)
_RETRYABLE_FAILURES = frozenset({"server_error", "rate_limit_exceeded", "in_progress", "queued", "cancelled"})


class RowStatus(StrEnum):
    """What became of a row."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    INVALID_OUTPUT = "invalid_output"
    MISSING = "missing"


class RowFailure(msgspec.Struct, frozen=True):
    """Why a row has no output. ``http_status`` is the model endpoint's, None if the request got no such answer."""

    code: str
    message: str | None = None
    http_status: int | None = None


class RetryLimits(msgspec.Struct, frozen=True):
    """How often a row may be tried.

    :param max_attempts: times it may run in all, 1 for no repetition
    """

    max_attempts: int = 3


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one request came to: a result row's content.

    :param status: true if no further attempt follows
    :param output: None unless the row succeeded
    :param error: None if the row succeeded
    :param written: what the model wrote, if the output is made of that: a text, or a list of texts, as JSON
    """

    status: RowStatus
    output: Any = None
    written: Any = None
    error: RowFailure | None = None
    finish_reason: str | None = None
    model: str | None = None
    usage: Usage | None = None
    request_id: str | None = None


class Done(Outcome, frozen=True):
    """The request is answered."""


class Dead(Outcome, frozen=True):
    """The request is not answered and will not be."""


class Retry(Outcome, frozen=True):
    """The request is worth another attempt. Status and error hold if none comes.

    :param change: what the next attempt has to do differently; None for nothing
    """

    change: Change | None = None


NOT_SUBMITTED = Retry(
    status=RowStatus.MISSING, error=RowFailure("not_submitted", "The request was never part of a batch.")
)
"""What a row is before its first round."""


def ran(line: ResultLine | None) -> bool:
    """Whether a request reached the model, so that it used up one of its attempts."""
    return line is not None and line.ran


def classify(
    line: ResultLine | None,
    *,
    batch_status: str,
    attempts: int,
    limits: RetryLimits,
    endpoint: str,
    request: Callable[[], bytes],
    parse_output: Callable[[str], Parsed] | None = None,
    output_schema: dict[str, Any] | None = None,
) -> Done | Retry | Dead:
    """Decide what one request becomes. Never raises, whatever the line, unless ``parse_output`` does.

    :param line: its line in the output or error file; None when neither has one
    :param batch_status: how the batch ended
    :param attempts: how often the request has run, this time included
    :param limits: how often it may
    :param endpoint: path of the batch's requests
    :param request: reads the request's own line; called only where the decision depends on it
    :param parse_output: validates the text of an answer; None where any text will do
    :param output_schema: the schema that it goes by
    """
    if line is None:
        return _unanswered(batch_status)
    outcome = _answered(line, endpoint, request, parse_output) if line.is_success else _failed(line)
    if isinstance(outcome, Retry) and line.ran and attempts >= limits.max_attempts:
        return _final(outcome, outcome.error)
    if isinstance(outcome, Retry) and isinstance(outcome.change, Feedback) and output_schema is not None:
        asked = asked_schema(request())
        if asked is not None and asked != output_schema:
            # To repeat it would ask for the same again.
            assert outcome.error is not None
            return _final(
                outcome, msgspec.structs.replace(outcome.error, message=f"{_OTHER_TYPE}{outcome.error.message}")
            )
    return outcome


def _final(outcome: Retry, error: RowFailure | None) -> Dead:
    facts = {name: getattr(outcome, name) for name in Outcome.__struct_fields__}
    return Dead(**(facts | {"error": error}))


def _unanswered(batch_status: str) -> Retry:
    status = RowStatus.MISSING
    match batch_status:
        case BatchStatus.EXPIRED:
            status, code, message = RowStatus.EXPIRED, "batch_expired", "The batch expired before the request ran."
        case BatchStatus.CANCELLED:
            status, code, message = RowStatus.CANCELLED, "batch_cancelled", "The batch was cancelled before it ran."
        case _ if batch_status == STOPPED:
            code, message = "not_sent", "The request was to be sent without a batch, and there was no time for it."
        case _:
            message = f"The batch is {batch_status}, but neither of its files has a line for the request."
            code = "missing"
    return Retry(status=status, error=RowFailure(code, message))


def _answered(
    line: ResultLine,
    endpoint: str,
    request: Callable[[], bytes],
    parse_output: Callable[[str], Parsed] | None,
) -> Done | Retry | Dead:
    response = line.response
    assert response is not None
    answer = read_answer(response.body, endpoint, lambda: input_is_list(request()))
    facts: dict[str, Any] = {
        "finish_reason": answer.finish_reason,
        "model": answer.model,
        "usage": answer.usage,
        "request_id": text(response.request_id),
    }

    def error(code: str, message: str | None) -> RowFailure:
        return RowFailure(code, message, line.http_status)

    match answer.ending:
        case Ending.COMPLETE:
            return _complete(answer, facts, error, parse_output)
        case Ending.TRUNCATED:
            change = _larger_cap(request)
            cut = error("truncated", _cut_off_message(change is not None))
            if change is None:
                return Dead(status=RowStatus.INVALID_OUTPUT, error=cut, **facts)
            return Retry(status=RowStatus.INVALID_OUTPUT, error=cut, change=change, **facts)
        case Ending.FILTERED:
            filtered = error("content_filter", answer.message or "The service's content filter stopped the answer.")
            return Dead(status=RowStatus.FAILED, error=filtered, **facts)
        case Ending.REFUSED:
            return Dead(status=RowStatus.FAILED, error=error("refusal", answer.message), **facts)
        case Ending.FAILED:
            code = answer.code or "failed"
            decision = Retry if code in _RETRYABLE_FAILURES else Dead
            return decision(status=RowStatus.FAILED, error=error(code, answer.message), **facts)
        case Ending.EMPTY:
            empty = error("no_output", "The answer holds nothing that could be an output.")
            return Retry(status=RowStatus.INVALID_OUTPUT, error=empty, **facts)
        case Ending.UNUSABLE:
            unusable = error("unusable_output", answer.message)
            return Retry(status=RowStatus.INVALID_OUTPUT, error=unusable, **facts)


def _complete(
    answer: Answer,
    facts: dict[str, Any],
    error: Callable[[str, str | None], RowFailure],
    parse_output: Callable[[str], Parsed] | None,
) -> Done | Retry | Dead:
    written = answer.output if answer.is_text else None
    if parse_output is None:
        return Done(status=RowStatus.SUCCEEDED, output=answer.output, written=written, **facts)
    if written is None:
        wrong = error("invalid_output", "The answer is not a text, so it cannot follow the output type.")
        return Retry(status=RowStatus.INVALID_OUTPUT, error=wrong, **facts)
    several = isinstance(written, list)
    values = []
    for raw in written if several else [written]:
        said = msgspec.json.decode(raw, type=str)
        parsed = parse_output(said)
        if parsed.error is not None:
            wrong = error("invalid_output", parsed.error)
            if parsed.checker_failed:
                return Dead(status=RowStatus.INVALID_OUTPUT, error=wrong, **facts)
            feedback = Feedback(said, parsed.error)
            return Retry(status=RowStatus.INVALID_OUTPUT, error=wrong, change=feedback, **facts)
        values.append(parsed.value)
    return Done(status=RowStatus.SUCCEEDED, output=values if several else values[0], written=written, **facts)


def _failed(line: ResultLine) -> Retry | Dead:
    status = line.http_status
    code, message = _reason(line)
    request_id = text(line.response.request_id) if line.response is not None else None
    if code == "batch_expired":
        row_status = RowStatus.EXPIRED
    elif code == "batch_cancelled":
        row_status = RowStatus.CANCELLED
    else:
        row_status = RowStatus.FAILED
    # An error without a status says nothing about the request itself, so that another attempt may go through.
    retryable = status is None or 200 <= status < 300 or status in RETRYABLE_STATUSES or status >= 500
    decision = Retry if retryable and code not in NEEDS_A_PERSON else Dead
    return decision(status=row_status, error=RowFailure(code, message, status), request_id=request_id)


def _reason(line: ResultLine) -> tuple[str, str | None]:
    """Code and message of a failed line. The endpoint's own error is within the body, the batch's beside it."""
    response = line.response
    body = None
    if response is not None and response.body is not ABSENT:
        try:
            body = msgspec.json.decode(response.body)
        except UNREADABLE:
            body = None
    envelope = body.get("error", body) if isinstance(body, dict) else body
    code = message = None
    for source in (line.error, envelope):
        if isinstance(source, dict):
            code = code or text(source.get("code")) or text(source.get("type"))
            message = message or text(source.get("message"))
        else:
            message = message or text(source)
    if response is not None:
        message = message or text(response.message)
    status = line.http_status
    # Gateways repeat the status as the code, which tells nothing that http_status does not.
    if code is None or integer(code) is not None:
        code = "request_failed" if status is None else f"http_{status}"
    return code, message


def _larger_cap(request: Callable[[], bytes]) -> Change | None:
    try:
        return larger_cap(request())
    except UNREADABLE:
        return None


def _cut_off_message(can_grow: bool) -> str:
    if can_grow:
        return "The answer was cut off by the request's token cap. Raise it, or max_attempts: each attempt doubles it."
    return "The answer was cut off by the model's own limit: the request sets no token cap that could be raised."
