"""Where services with OpenAI's Batch API differ from OpenAI: one entry per service, chosen by the connection.

A dialect is data. What it says is used in these places, and nowhere is a service asked for by its name:

- :mod:`.settings`: where the service is, and how it is told who calls
- :mod:`.upload`: how a file gets there, and whether it has to be waited for
- :mod:`.client`: what a create takes, how answers are wrapped, how lists are walked, how a lost create is found
- :mod:`.download`: whether answers can be read before the end
- ``jobs/``, ``sighting``, ``survey``: limits of a batch, whether a listing is up to date, how old a batch may become

To add a service: an entry here, one in the emulator's ``dialects``, a row in docs/services.md; the tests of
``tests/dialects`` then run for it. The source of each fact is named beside it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.models import ENDPOINTS

_HOUR_S, _DAY_S = 3_600, 86_400
_AZURE_HOSTS = re.compile(r"[\w-]{1,63}\.(openai|cognitiveservices|services\.ai)\.azure\.(com|us|cn)", re.ASCII)


class Upload(Enum):
    """How a file gets to a service."""

    FORM = auto()
    """In one multipart form."""
    SIGNED_URL = auto()
    """The service names a place to put the content at, and is told when it is there."""


class Listing(Enum):
    """How batches and files are listed."""

    PAGES = auto()
    """Page by page: ``after`` is the last id of the page before."""
    MAYBE_PAGES = auto()
    """Not documented: asked for page by page, and a page that comes twice is the end."""
    WHOLE = auto()
    """All in one answer, in any order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a service differs from OpenAI. The defaults are OpenAI.

    :param name: as in the connection's ``dialect``
    :param service: as people call it
    :param base_url: where it is; empty if each customer has a place of their own
    :param placed: checks a base URL, and returns the query every call needs there beside the connection's
    :param auth: how the key is sent if the connection does not say
    :param has_entra: whether it takes tokens of Microsoft Entra instead of a key
    :param file_purpose: of input files
    :param upload: how a file gets there
    :param expiry_part: name of the parts of a form that say when a file expires; None if a file has no such choice
    :param expiry_range_s: seconds that may be chosen
    :param has_output_expiry: whether a create may say when result files expire
    :param waits_for_file: whether a batch must not be created before its file is ``processed``
    :param metadata_keys: the only metadata a create takes; None for any
    :param keeps_metadata: whether a batch is certain to show what metadata it was created with
    :param windows_h: shortest and longest completion window in hours; None if the service alone knows
    :param endpoints: those it documents; others are passed on with a warning
    :param max_requests: in a batch
    :param max_bytes: of an input file
    :param longest_life_s: how old a batch that goes on may be
    :param envelope: member that wraps the batch in the answer to a create
    :param batch_fields: members of a batch under other names than ours, as ``{theirs: ours}``
    :param list_members: names that the list in a page may have
    :param listing: how batches are listed
    :param lists_are_current: whether a listed batch is as it is; else each is asked for by its id
    :param streams: whether answers can be read while the batch goes on
    """

    name: str
    service: str
    base_url: str = ""
    placed: Callable[[str], Mapping[str, str]] = lambda base_url: {}
    auth: str = "bearer"
    has_entra: bool = False
    file_purpose: str = "batch"
    upload: Upload = Upload.FORM
    expiry_part: str | None = "expires_after[{}]"
    expiry_range_s: tuple[int, int] = (_HOUR_S, 30 * _DAY_S)
    has_output_expiry: bool = True
    waits_for_file: bool = False
    metadata_keys: frozenset[str] | None = None
    keeps_metadata: bool = True
    windows_h: tuple[int, int] | None = None
    endpoints: frozenset[str] = ENDPOINTS
    max_requests: int = 50_000
    max_bytes: int = 200_000_000
    longest_life_s: int = 2 * _DAY_S
    envelope: str | None = None
    batch_fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    list_members: tuple[str, ...] = ("data",)
    listing: Listing = Listing.PAGES
    lists_are_current: bool = True
    streams: bool = False

    def batch(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch in an answer, with its members under our names."""
        wrapped = answer.get(self.envelope) if self.envelope else None
        shown = wrapped if isinstance(wrapped, Mapping) else answer
        if not self.batch_fields:
            return shown
        ours = {self.batch_fields[name]: value for name, value in shown.items() if name in self.batch_fields}
        return {**ours, **{name: value for name, value in shown.items() if name not in self.batch_fields}}

    def metadata(self, pairs: Mapping[str, str]) -> dict[str, str]:
        """Return the pairs that a create may send."""
        allowed = self.metadata_keys
        return {key: value for key, value in pairs.items() if allowed is None or key in allowed}


def _azure_place(base_url: str) -> Mapping[str, str]:
    """Check an Azure base URL. Calls below the classic one carry an API version, calls below ``/v1`` none."""
    parts = urlsplit(base_url)
    example = "https://RESOURCE.openai.azure.com/openai/v1"
    if "/deployments" in parts.path:
        # Answered with 404 "Resource not found": the files and batches of all deployments are in one place.
        raise InvalidInputError("host", f"the Batch API of Azure is not below a deployment: use {example}.")
    if parts.path.endswith("/openai/v1"):
        return {}
    if parts.path.endswith("/openai"):
        return {"api-version": "2024-10-21"}
    raise InvalidInputError(
        "host", f"expected Azure's base URL, such as {example}, or one ending in /openai for dated API versions."
    )


OPENAI = Dialect(name="openai", service="OpenAI", base_url="https://api.openai.com/v1")

# github.com/MicrosoftDocs/azure-ai-docs: articles/foundry/openai/includes/how-to-batch-content.md, batch/batch-rest.md;
# the dated versions of the API are in github.com/Azure/azure-rest-api-specs. Jobs are "not expired" after their window.
# Metadata is in the schema of both create and batch.
AZURE = Dialect(
    name="azure",
    service="Azure OpenAI",
    placed=_azure_place,
    auth="api-key",
    has_entra=True,
    expiry_part="expires_after.{}",
    expiry_range_s=(14 * _DAY_S, 30 * _DAY_S),
    waits_for_file=True,
    windows_h=(24, 24),
    endpoints=frozenset({"/v1/chat/completions", "/v1/responses", "/chat/completions"}),
    max_requests=100_000,
    longest_life_s=30 * _DAY_S,
    list_members=("data", "value"),
)

# github.com/groq/groq-python: types/batch_create_params.py (windows, endpoint, 100 MB), batch_list_response.py (no
# has_more, and the method takes no cursor), file_create_response.py (no status), file_create_params.py (no expiry).
GROQ = Dialect(
    name="groq",
    service="Groq",
    base_url="https://api.groq.com/openai/v1",
    expiry_part=None,
    has_output_expiry=False,
    windows_h=(24, 7 * 24),
    endpoints=frozenset({"/v1/chat/completions"}),
    max_bytes=100_000_000,
    longest_life_s=8 * _DAY_S,
    listing=Listing.MAYBE_PAGES,
)

# github.com/togethercomputer/together-python: resources/batch.py (no metadata, {"job": ...}, a bare array),
# types/batch.py (fields, statuses in capitals), filemanager.py and together-py's lib/resources/files.py (302 to a
# signed URL, PUT, preprocess); docs.together.ai/docs/batch-inference (50,000 requests, 100 MB).
TOGETHER = Dialect(
    name="together",
    service="Together",
    base_url="https://api.together.xyz/v1",
    file_purpose="batch-api",
    upload=Upload.SIGNED_URL,
    expiry_part=None,
    has_output_expiry=False,
    metadata_keys=frozenset(),
    keeps_metadata=False,
    windows_h=(24, 24),
    endpoints=frozenset({"/v1/chat/completions", "/v1/completions"}),
    max_bytes=100_000_000,
    longest_life_s=4 * _DAY_S,
    envelope="job",
    batch_fields={"model_id": "model", "job_deadline": "expires_at", "error": "errors"},
    listing=Listing.WHOLE,
)

# help.aliyun.com and alibabacloud.com/help/en/model-studio/batch-interfaces-compatible-with-openai: windows of 24h to
# 336h, three keys of metadata, endpoints with one for trials; 100 MB and 50,000 requests.
DASHSCOPE = Dialect(
    name="dashscope",
    service="DashScope",
    base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    expiry_part=None,
    has_output_expiry=False,
    metadata_keys=frozenset({"ds_name", "ds_description", "ds_batch_finish_callback"}),
    keeps_metadata=False,
    windows_h=(24, 336),
    endpoints=frozenset({"/v1/chat/completions", "/v1/embeddings", "/v1/chat/ds-test"}),
    max_bytes=100_000_000,
    longest_life_s=15 * _DAY_S,
)

# github.com/doublewordai/control-layer: dwctl/src/api/models/batches.rs (metadata is kept, windows are configured),
# handlers/files.rs (offset, X-Incomplete), docs/src/reference/configuration.md (100 MiB by default).
DOUBLEWORD = Dialect(
    name="doubleword",
    service="Doubleword",
    base_url="https://api.doubleword.ai/v1",
    has_output_expiry=False,
    max_bytes=100_000_000,
    streams=True,
)

# docs.litellm.ai/docs/batches; github.com/BerriAI/litellm: pull 22982 (lists show batches as they were), 34436 (a list
# that starts over). What becomes of metadata is up to the service behind it, and so is the window.
LITELLM = Dialect(
    name="litellm",
    service="LiteLLM",
    keeps_metadata=False,
    longest_life_s=15 * _DAY_S,
    listing=Listing.MAYBE_PAGES,
    lists_are_current=False,
)

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect for dialect in (OPENAI, AZURE, GROQ, TOGETHER, DASHSCOPE, DOUBLEWORD, LITELLM)
}

MOST_REQUESTS = max(dialect.max_requests for dialect in DIALECTS.values())
"""What a batch may have at any service. Which service it is, is not known when a DAG is parsed."""


def is_azure(base_url: str) -> bool:
    """Whether a base URL is of one of Azure's own hosts."""
    return _AZURE_HOSTS.fullmatch(urlsplit(base_url).hostname or "") is not None


def dialect_named(name: object, base_url: str = "") -> Dialect:
    """Return the dialect that a connection names; if it names none, that of the host: Azure's or OpenAI's.

    :raises InvalidInputError: there is no such dialect
    """
    if name in (None, ""):
        return DIALECTS["azure"] if is_azure(base_url) else OPENAI
    dialect = DIALECTS.get(name) if isinstance(name, str) else None
    if dialect is None:
        raise InvalidInputError("dialect", f"{name!r} is not known; there are {', '.join(DIALECTS)}.")
    return dialect
