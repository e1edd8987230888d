"""What goes over the wire besides the objects: error envelopes and ids in OpenAI's shapes."""

from __future__ import annotations

import hashlib
import json
import secrets
import string
from collections.abc import Mapping
from typing import Any

_BASE62 = string.ascii_letters + string.digits


class ApiError(Exception):
    """A refusal, in the API's own words.

    :param status: HTTP status
    :param message: for people
    :param param: the request parameter at fault, if one is
    :param code: for programs
    :param kind: the envelope's ``type``
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, param=param, code=code, kind=kind)


def error_body(
    message: str, *, param: str | None = None, code: str | None = None, kind: str = "invalid_request_error"
) -> dict[str, Any]:
    """Build the error envelope: https://platform.openai.com/docs/guides/error-codes."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def new_file_id() -> str:
    """``file-`` and 22 letters or digits."""
    return "file-" + "".join(secrets.choice(_BASE62) for _ in range(22))


def new_hex_id(prefix: str) -> str:
    """A prefix and 32 hex digits, as batches and requests have them."""
    return prefix + secrets.token_hex(16)


def derived_id(prefix: str, *parts: object) -> str:
    """An id that is always the same for the same parts, so a restarted emulator writes the same lines."""
    digest = hashlib.blake2b("\0".join(map(str, (prefix, *parts))).encode(), digest_size=16)
    return prefix + digest.hexdigest()


def dump(value: Any) -> bytes:
    """Encode compact UTF-8 JSON, as the API's own result files have it."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can carry only escaped
        return json.dumps(value, separators=(",", ":")).encode()


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply an RFC 7396 merge patch: null removes a member, objects merge, all else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged
