"""The table of cases: which fault meets which operation, at which of its calls, and what ours has to make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from airflow_provider_openai_batches.testing import faults
from airflow_provider_openai_batches.testing.faults import CANCEL as CANCEL_CALL
from airflow_provider_openai_batches.testing.faults import CREATE, Call, Rule
from airflow_provider_openai_batches.testing.faults import DOWNLOAD as CONTENT
from airflow_provider_openai_batches.testing.faults import UPLOAD as FILE
from benchmarks.faults.operations import (
    CANCEL,
    COMMON_AI,
    DOWNLOAD,
    JOB,
    OFFICIAL,
    SENSOR,
    SUBMIT,
    TRIGGER,
    UPLOAD,
    WATCHER,
)

LOOK: Call = ("GET", "/v1/batches**")
NOWHERE = "http://127.0.0.1:9"
CROWD = 120

SUCCESS = "success"
RETRIED = "success after a retry"
CLEARED = "success after a clear"
FAILED = "failed"
ENDLESS = "does not end"

CALLS: dict[str, dict[str, Call]] = {
    JOB: {"upload": FILE, "create": CREATE, "look": LOOK, "download": CONTENT},
    SUBMIT: {"create": CREATE, "look": LOOK},
    SENSOR: {"look": LOOK},
    TRIGGER: {"look": LOOK},
    WATCHER: {"look": LOOK},
    UPLOAD: {"upload": FILE},
    DOWNLOAD: {"look": LOOK, "download": CONTENT},
    CANCEL: {"cancel": CANCEL_CALL, "look": LOOK},
    COMMON_AI: {"upload": FILE, "create": CREATE, "look": LOOK, "download": CONTENT},
    OFFICIAL: {"create": CREATE, "look": LOOK},
}
"""Of the calls an operation makes, those that a fault is aimed at, each in a case of its own."""

OURS = (JOB, SUBMIT, SENSOR, TRIGGER, WATCHER, UPLOAD, DOWNLOAD, CANCEL)
RIVALS = {COMMON_AI: JOB, OFFICIAL: SUBMIT}
"""And what of ours does the same work."""


@dataclass(frozen=True)
class Case:
    """One fault that meets one operation.

    :param operation: the operation
    :param fault: its name, for people
    :param at: which of the operation's calls it is aimed at; empty if it is not about calls
    :param rules: the fault, for the emulator
    :param heals: whether it is over when a user clears the task
    :param expected: outcome; what ours has to come to
    :param crowd: number of batches of others that the service has beside
    """

    operation: str
    fault: str
    at: str
    rules: tuple[Rule, ...]
    heals: bool
    expected: str
    crowd: int = 0

    @property
    def is_long(self) -> bool:
        """Whether an operation may wait for a day, and had better look seldom."""
        return any(rule["do"].get("outcome") == "stuck" or "azure" in rule["do"] for rule in self.rules)


def cases(operation: str) -> Iterator[Case]:
    """All cases of an operation."""
    return (case for case in _all_cases(operation) if (operation, case.fault) not in LEFT_OUT)


def _all_cases(operation: str) -> Iterator[Case]:
    # A watcher begins with its first look, and is to have had it.
    skip = {"skip": 1} if operation == WATCHER else {}
    for fault, make in OF_CALLS.items():
        for at, call in CALLS[operation].items():
            yield _case(operation, fault, at, make(on=call, **skip))
    for fault, rules in OF_LOOKS.items():
        if "look" in CALLS[operation]:
            yield _case(operation, fault, "look", *(rule | skip for rule in rules))
    for fault, rules in OF_CONTENTS.items():
        if "download" in CALLS[operation]:
            yield _case(operation, fault, "download", *rules)
    if operation != UPLOAD:
        for fault, rules in OF_BATCHES.items():
            yield _case(operation, fault, "", *rules)
    if operation in (JOB, DOWNLOAD, COMMON_AI):
        for fault, rules in OF_ROWS.items():
            yield _case(operation, fault, "", *rules)
    if operation in (JOB, SUBMIT, COMMON_AI, OFFICIAL):
        for fault, rule in (("never made", faults.lost_call(on=CREATE)), ("made", faults.lost_create_response())):
            name = f"the create's answer is lost, it was {fault}, and the list of {CROWD} others ignores after"
            yield _case(operation, name, "create", rule, faults.list_ignores_after(), crowd=CROWD)
    if operation == CANCEL:
        yield _case(operation, "stuck in cancelling", "", faults.batch_stuck("cancelling"))
        yield _case(operation, "409: the batch is over already", "cancel", faults.cancel_conflict())


def _case(operation: str, fault: str, at: str, *rules: Rule, crowd: int = 0) -> Case:
    names = {fault, f"{fault} @ {at}"}
    outcomes = EXPECTED.get(operation, {}).items()
    expected = next((outcome for outcome, faults_ in outcomes if names & set(faults_)), SUCCESS)
    return Case(operation, fault, at, rules, fault not in LASTING, expected, crowd)


OF_CALLS: dict[str, Callable[..., Rule]] = {
    "429, Retry-After 1 s": faults.rate_limited,
    "429, Retry-After 1 s as a date": lambda **on: faults.rate_limited(2, form="date", **on),
    "429, retry-after-ms": lambda **on: faults.rate_limited(form="milliseconds", **on),
    "429, Retry-After 600 s": lambda **on: faults.rate_limited(600, **on),
    "429 without a time": lambda **on: faults.rate_limited(None, **on),
    "429 insufficient_quota": faults.insufficient_quota,
    "429 insufficient_quota, for ever": lambda **on: faults.insufficient_quota(times=None, **on),
    "401": lambda **on: faults.refused(401, "invalid_api_key", **on),
    "401, for ever": lambda **on: faults.refused(401, "invalid_api_key", times=None, **on),
    "500": faults.server_error,
    "500, x-should-retry: false": lambda **on: faults.server_error(should_retry=False, **on),
    "500, x-should-retry: true": lambda **on: faults.server_error(should_retry=True, **on),
    "502, a page of HTML": lambda **on: faults.server_error(502, html=True, **on),
    "503": lambda **on: faults.server_error(503, **on),
    "503, 30 times": lambda **on: faults.server_error(503, times=30, **on),
    "connection reset, not applied": faults.lost_call,
    "connection reset, applied": faults.lost_response,
    "redirect to another host": lambda **on: faults.redirected(NOWHERE, **on),
}

OF_LOOKS: dict[str, tuple[Rule, ...]] = {
    "404 for the first 3 looks": (faults.batch_not_found(times=3),),
    "404 for ever": (faults.batch_not_found(times=None),),
    "unknown status, 3 times": (faults.batch_shows({"status": "paused"}, times=3),),
    "request_counts is null": (faults.batch_shows({"request_counts": None}),),
    "optional members are missing": (
        faults.batch_lacks(
            "usage",
            "metadata",
            "request_counts",
            "expires_at",
            "in_progress_at",
            "finalizing_at",
            "completed_at",
            "model",
        ),
    ),
    "ids of files that are not there are empty": (faults.empty_file_ids(),),
    "Azure's spelling": (faults.azure_dialect(),),
}

OF_CONTENTS: dict[str, tuple[Rule, ...]] = {
    "cut after 500 bytes": (faults.truncated_download(500),),
    "cut after 500 bytes, 3 times": (faults.truncated_download(500, times=3),),
    "cut after 500 bytes, can be resumed": (faults.resumable_download(), faults.truncated_download(500)),
    "500, 3 times": (faults.failed_download(times=3),),
    "gzip": (faults.compressed_download(),),
    "404: the file was deleted": (faults.deleted_file(),),
}

OF_BATCHES: dict[str, tuple[Rule, ...]] = {
    "stuck in validating": (faults.batch_stuck("validating"),),
    "stuck in in_progress": (faults.batch_stuck("in_progress"),),
    "stuck in finalizing": (faults.batch_stuck("finalizing"),),
    "in_progress for 25 hours": (faults.batch_stuck("in_progress", hours=25),),
    "states are skipped": (faults.skipped_states(),),
    "fails validation": (faults.batch_fails([{"code": "invalid_request", "message": "No.", "line": 2}]),),
    "fails at once, without a reason": (faults.batch_fails(at_once=True),),
    "token_limit_exceeded": (faults.queue_full(),),
    "token_limit_exceeded, 3 times": (faults.queue_full(times=3),),
    "cannot find its file yet": (faults.input_file_not_found(),),
    "expires with half its rows": (faults.batch_expires(0.5),),
    "expires with no row": (faults.batch_expires(0),),
    "all requests fail with 500": (faults.all_requests_fail(),),
    "all requests fail, file ids are empty": (faults.all_requests_fail(), faults.empty_file_ids()),
    "an error file of no bytes": (faults.empty_error_file(),),
}

OF_ROWS: dict[str, tuple[Rule, ...]] = {
    "a row fails with 400": (faults.row_fails("*-1", 400),),
    "a row fails with 429": (faults.row_fails("*-1", 429),),
    "a row fails with 500": (faults.row_fails("*-1", 500),),
    "a row times out": (faults.row_times_out("*-1"),),
    "a row is in neither file": (faults.row_missing("*-1"),),
    "a row is there twice": (faults.row_duplicated("*-1"),),
    "a row has an unknown custom_id": (faults.row_unknown("*-1"),),
    "a row's line is cut": (faults.row_broken("*-1"),),
    "a row is cut by the token cap": (faults.row_cut_off("*-1"),),
    "a row is refused by the model": (faults.row_refused("*-1"),),
    "a row with U+2028": (faults.row_answers("*-1", "say green\u2028\u2029\x85 and more"),),
    "a row of 3 MB": (faults.row_answers("*-1", "say green " + "x" * 3_000_000),),
}

LASTING = {"404: the file was deleted", "Azure's spelling", "gzip", "request_counts is null"}
"""Faults that are not over when the task is cleared."""

LEFT_OUT = {
    (WATCHER, "fails at once, without a reason"): "it begins with the batches that are not over yet",
    (DOWNLOAD, "in_progress for 25 hours"): "it refuses a batch that goes on",
}
"""What makes no sense, and why."""


def _at(names: tuple[str, ...], *calls: str) -> tuple[str, ...]:
    return tuple(f"{name} @ {call}" for name in names for call in calls)


_QUOTA, _KEY, _NO_RETRY = "429 insufficient_quota", "401", "500, x-should-retry: false"
_REDIRECT, _LONG_PAUSE, _LONG_OUTAGE = "redirect to another host", "429, Retry-After 600 s", "503, 30 times"
_NOT_REPEATED = (_QUOTA, _KEY, _NO_RETRY, _REDIRECT)
_FOR_EVER = ("429 insufficient_quota, for ever", "401, for ever")
_STUCK = ("stuck in validating", "stuck in in_progress", "stuck in finalizing")
_INVALID = ("fails validation", "fails at once, without a reason")
_NOTHING_RAN = (*_INVALID, "token_limit_exceeded", "cannot find its file yet")
_ALL_FAILED = ("all requests fail with 500", "all requests fail, file ids are empty")

EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    JOB: {
        RETRIED: (
            *_at((_QUOTA, _KEY, _NO_RETRY), "upload", "create", "download"),
            *_at((_REDIRECT,), "upload", "create"),
            *_at((_LONG_OUTAGE,), "create"),
            "stuck in validating",
            *_INVALID,
        ),
        CLEARED: (
            *_FOR_EVER,
            "404 for ever",
            "a row fails with 400",
            "a row is cut by the token cap",
            "a row is refused by the model",
        ),
        FAILED: ("404: the file was deleted",),
    },
    SUBMIT: {
        RETRIED: (
            *_at((*_NOT_REPEATED, _LONG_PAUSE), "create"),
            "404 for ever",
            "stuck in validating",
            *_NOTHING_RAN,
            "expires with no row",
            *_ALL_FAILED,
        ),
        FAILED: (
            *_FOR_EVER,
            *_at((_LONG_OUTAGE,), "create"),
            "stuck in in_progress",
            "stuck in finalizing",
            "token_limit_exceeded, 3 times",
            "expires with half its rows",
        ),
    },
    SENSOR: {
        RETRIED: _NOT_REPEATED,
        FAILED: (
            *_FOR_EVER,
            "404 for ever",
            *_STUCK,
            *_NOTHING_RAN,
            "token_limit_exceeded, 3 times",
            *_ALL_FAILED,
        ),
    },
    TRIGGER: {FAILED: (*_FOR_EVER, "404 for ever", *_STUCK)},
    WATCHER: {FAILED: (*_FOR_EVER, *_STUCK)},
    UPLOAD: {RETRIED: (*_NOT_REPEATED, _LONG_PAUSE), FAILED: (*_FOR_EVER, _LONG_OUTAGE)},
    DOWNLOAD: {
        RETRIED: (_QUOTA, _KEY, _NO_RETRY, _LONG_PAUSE, *_at((_REDIRECT,), "look")),
        CLEARED: (
            *_FOR_EVER,
            _LONG_OUTAGE,
            "404 for the first 3 looks",
            "404 for ever",
            "unknown status, 3 times",
        ),
        FAILED: (
            "404: the file was deleted",
            *_STUCK,
            *_NOTHING_RAN,
            "token_limit_exceeded, 3 times",
            "expires with no row",
            *_ALL_FAILED,
            "a row is in neither file",
        ),
    },
    CANCEL: {
        RETRIED: (*_at((*_NOT_REPEATED, _LONG_PAUSE), "cancel"), *_at(_FOR_EVER, "look"), "404 for ever"),
        FAILED: (*_at((*_FOR_EVER, _LONG_OUTAGE), "cancel"), "stuck in cancelling"),
    },
}
"""What ours comes to where that is not plain success, by operation and outcome: the fault, or fault and call."""
