"""How other services speak, for an emulator that stands in for one of them.

The service behind is always the same. A dialect says where its paths begin, what it takes, and how it shows what it
has; docs/services.md says of each what is documented and what is assumed.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_openai_batches.api.models import ENDPOINTS
from airflow_provider_openai_batches.emulator.wire import ApiError

Shown = dict[str, Any]

_MARK = "litellm_proxy:"
_IDS = ("id", "input_file_id", "output_file_id", "error_file_id", "first_id", "last_id")


def _as_it_is(shown: Shown) -> Shown:
    return shown


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a service differs from OpenAI. The defaults are OpenAI.

    :param name: as on the command line
    :param prefix: of all its paths
    :param wants_version: whether each call has to name an ``api-version``
    :param purpose: of input files
    :param signed_upload: files come by a URL of their own
    :param expiry: form of the parts that say when a file expires; empty if there are none
    :param shortest_life_s: that may be asked for
    :param windows_h: shortest and longest completion window
    :param expires: whether a batch ends when its window is over
    :param endpoints: that a create takes
    :param metadata_keys: that are kept; None keeps all
    :param created: HTTP status of a create
    :param pending_looks: how often a new file is seen ``pending``
    :param max_requests: of a batch
    :param max_bytes: of a batch's file
    :param names_lines: whether result lines have an ``id``
    :param always_error_file: whether a finished batch has an error file, of zero bytes if need be
    :param streams: whether an output file can be read while it grows
    :param marks_ids: whether ids are wrapped into longer ones
    :param has_cursor: whether lists have pages
    :param answers_single: whether a model that is for batches answers single requests as well
    :param stale_lists: whether a list shows a batch as it was when it was last looked at
    :param batch: shows a batch
    :param new_batch: shows it in the answer to a create, after ``batch``
    :param file: shows a file
    :param page: shows a page, and may make something else of it
    :param error: shows a refusal's body, given its status
    """

    name: str
    prefix: str = "/v1"
    wants_version: bool = False
    purpose: str = "batch"
    signed_upload: bool = False
    expiry: str = "[]"
    shortest_life_s: int = 3_600
    windows_h: tuple[int, int] = (24, 24)
    expires: bool = True
    endpoints: frozenset[str] = ENDPOINTS
    metadata_keys: frozenset[str] | None = None
    created: int = 200
    pending_looks: int = 0
    max_requests: int = 50_000
    max_bytes: int = 200_000_000
    names_lines: bool = True
    always_error_file: bool = False
    streams: bool = False
    marks_ids: bool = False
    has_cursor: bool = True
    answers_single: bool = True
    stale_lists: bool = False
    batch: Callable[[Shown], Shown] = _as_it_is
    new_batch: Callable[[Shown], Shown] = _as_it_is
    file: Callable[[Shown], Shown] = _as_it_is
    page: Callable[[Shown], Any] = _as_it_is
    error: Callable[[int, Shown], Shown] | None = None

    def neutral(self, path: str) -> str:
        """Return a path as OpenAI has it, by which faults and counts go."""
        return "/v1" + path.removeprefix(self.prefix) if path.startswith(self.prefix) else path

    def window_s(self, window: str) -> float:
        """Seconds after which a batch ends by itself.

        :raises ValueError: that is none of this service's windows
        """
        if not (window[:-1].isdecimal() and window[-1:] in ("h", "d")):
            raise ValueError(window)
        hours = int(window[:-1]) * (24 if window[-1] == "d" else 1)
        least, most = self.windows_h
        if not least <= hours <= most:
            raise ValueError(window)
        return hours * 3_600.0 if self.expires else math.inf

    def kept(self, metadata: Mapping[str, str] | None) -> dict[str, str] | None:
        """Return what a batch keeps of its metadata."""
        if metadata is None or self.metadata_keys is None:
            return None if metadata is None else dict(metadata)
        return {key: value for key, value in metadata.items() if key in self.metadata_keys} or None

    def outward(self, shown: Shown) -> Shown:
        """Wrap the ids of what is shown, if this service does."""
        if not self.marks_ids:
            return shown
        return {name: _marked(value) if name in _IDS and value else value for name, value in shown.items()}

    def inward(self, given: str) -> str:
        """Unwrap an id that a client brings back."""
        if not self.marks_ids:
            return given
        try:
            text = base64.urlsafe_b64decode(given.removeprefix("batch_").removeprefix("file-")).decode()
        except ValueError:
            return given
        return text.removeprefix(_MARK)


def _marked(own: str) -> str:
    wrapped = base64.urlsafe_b64encode(f"{_MARK}{own}".encode()).decode()
    return f"batch_{wrapped}" if own.startswith("batch_") else f"file-{wrapped}"


class Intake:
    """Files that the service has not taken in yet.

    :param looks: how often a new one is seen before it is
    """

    def __init__(self, looks: int) -> None:
        self._left: Counter[str] = Counter()
        self._looks = looks

    def arrived(self, file_id: str) -> None:
        """Take note of a new file."""
        self._left[file_id] = self._looks

    def seen(self, file_id: str) -> None:
        """Count a look at a file."""
        if self._left[file_id] > 0:
            self._left[file_id] -= 1

    def status(self, file_id: str) -> str:
        """Return the file's status."""
        return "pending" if self._left[file_id] > 0 else "processed"

    def check(self, file_id: str) -> None:
        """Refuse to make a batch of a file that is not taken in: learn.microsoft.com/en-us/answers/questions/2203029.

        :raises ApiError: 400
        """
        if self.status(file_id) == "pending":
            raise ApiError(
                400,
                f"The input file '{file_id}' is in 'pending' state. Only files with status 'Processed' are accepted "
                "for batch inferencing. Please check the file status and try again",
                code="invalidPayload",
            )


# --- Azure ------------------------------------------------------------------------------------------------------------

_AZURE_CODES = {"invalid_url": "url_mismatch", "mismatched_model": "model_mismatch"}


def _azure_batch(shown: Shown) -> Shown:
    files = {name: shown[name] or "" for name in ("output_file_id", "error_file_id")}
    counts = shown["request_counts"]
    if shown["status"] == "validating":
        counts = dict.fromkeys(counts)
    errors = shown["errors"]
    if errors is not None:
        entries = [{**entry, "code": _AZURE_CODES.get(entry["code"], entry["code"])} for entry in errors["data"]]
        errors = {**errors, "data": entries}
    started = None if shown["status"] == "completed" else shown["in_progress_at"]
    return {**shown, **files, "request_counts": counts, "errors": errors, "in_progress_at": started, "endpoint": None}


def _azure_classic_batch(shown: Shown) -> Shown:
    return {name: _dated(name, value) for name, value in _azure_batch(shown).items()}


def _dated(name: str, value: Any) -> Any:
    if name == "status":
        return value.capitalize()
    return _iso(value, digits=7) if name.endswith("_at") and isinstance(value, int) else value


def _iso(moment: int, *, digits: int = 0) -> str:
    text = datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{'2491382'[:digits]}+00:00" if digits else f"{text}Z"


_AZURE = Dialect(
    name="azure",
    prefix="/openai/v1",
    expiry=".",
    shortest_life_s=1_209_600,
    expires=False,
    endpoints=frozenset({"/v1/chat/completions", "/v1/responses", "/chat/completions"}),
    created=201,
    pending_looks=2,
    max_requests=100_000,
    names_lines=False,
    always_error_file=True,
    answers_single=False,
    batch=_azure_batch,
)
_AZURE_CLASSIC = dataclasses.replace(
    _AZURE,
    name="azure-classic",
    prefix="/openai",
    wants_version=True,
    batch=_azure_classic_batch,
    page=lambda shown: {"value": shown["data"], "has_more": shown["has_more"]},
)

# --- Groq, Together, DashScope, Doubleword ----------------------------------------------------------------------------


def _without(*names: str) -> Callable[[Shown], Shown]:
    return lambda shown: {name: value for name, value in shown.items() if name not in names}


_GROQ = Dialect(
    name="groq",
    prefix="/openai/v1",
    expiry="",
    windows_h=(24, 168),
    endpoints=frozenset({"/v1/chat/completions"}),
    max_bytes=100_000_000,
    has_cursor=False,
    batch=_without("usage", "model"),
    file=_without("status", "status_details", "expires_at"),
    page=lambda shown: {"object": "list", "data": shown["data"]},
)


def _together_batch(shown: Shown) -> Shown:
    counts = shown["request_counts"]
    status = {"cancelling": "CANCELING"}.get(shown["status"], shown["status"].upper())
    errors = [entry["message"] for entry in (shown["errors"] or {}).get("data", ())]
    done = 100.0 * (counts["completed"] + counts["failed"]) / counts["total"] if counts["total"] else 0.0
    job = {
        "id": shown["id"],
        "user_id": "user-emulator",
        "input_file_id": shown["input_file_id"],
        "file_size_bytes": 0,
        "status": status,
        "job_deadline": _iso(shown["expires_at"]),
        "created_at": _iso(shown["created_at"]),
        "endpoint": shown["endpoint"],
        "progress": done,
        "model_id": shown["model"],
        "output_file_id": shown["output_file_id"],
        "error_file_id": shown["error_file_id"],
        "error": "; ".join(errors) or None,
        "completed_at": _iso(shown["completed_at"]) if shown["completed_at"] else None,
    }
    return {name: value for name, value in job.items() if value is not None}


def _together_file(shown: Shown) -> Shown:
    kept = {name: shown[name] for name in ("id", "object", "created_at", "filename", "bytes", "purpose")}
    return {**kept, "Processed": True, "FileType": "jsonl"}


def _together_page(shown: Shown) -> Any:
    # Files come in an object, batches bare; the order is not documented, so it is not the usual one.
    if shown["data"] and "Processed" in shown["data"][0]:
        return {"data": shown["data"]}
    return list(reversed(shown["data"]))


_TOGETHER = Dialect(
    name="together",
    purpose="batch-api",
    signed_upload=True,
    expiry="",
    endpoints=frozenset({"/v1/chat/completions", "/v1/completions"}),
    metadata_keys=frozenset(),
    max_bytes=100_000_000,
    has_cursor=False,
    batch=_together_batch,
    new_batch=lambda shown: {"job": shown},
    file=_together_file,
    page=_together_page,
)

_DASHSCOPE = Dialect(
    name="dashscope",
    prefix="/compatible-mode/v1",
    expiry="",
    windows_h=(24, 336),
    endpoints=frozenset({"/v1/chat/completions", "/v1/embeddings", "/v1/chat/ds-test"}),
    metadata_keys=frozenset({"ds_name", "ds_description", "ds_batch_finish_callback"}),
    max_bytes=100_000_000,
    batch=lambda shown: {name: value or 0 if name.endswith("_at") else value for name, value in shown.items()},
    file=_without("expires_at"),
)

_DOUBLEWORD = Dialect(
    name="doubleword",
    windows_h=(1, 24),
    max_bytes=100_000_000,
    streams=True,
    batch=lambda shown: {name: value for name, value in shown.items() if value is not None},
)

# --- LiteLLM ----------------------------------------------------------------------------------------------------------


def _litellm_error(status: int, body: Shown) -> Shown:
    error = body["error"]
    return {"error": {"message": json.dumps(body), "type": error["type"], "param": error["param"], "code": str(status)}}


_LITELLM = Dialect(name="litellm", windows_h=(1, 336), marks_ids=True, stale_lists=True, error=_litellm_error)

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(name="openai"),
        _AZURE,
        _AZURE_CLASSIC,
        _GROQ,
        _TOGETHER,
        _DASHSCOPE,
        _DOUBLEWORD,
        _LITELLM,
    )
}
