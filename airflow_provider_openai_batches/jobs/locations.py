"""Whether a path or URI leads somewhere."""

from __future__ import annotations

from typing import Any

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import check_path

_REMEDY = "Install the Airflow provider for this kind of storage, such as apache-airflow-providers-amazon for s3"


def check_location(value: Any, param: str, expected: str = "a path or URI") -> Any:
    """Return a place of files as it is, or refuse what is none, or is in a storage that Airflow has no provider for.

    :param value: text, path or ObjectStoragePath
    :param param: whose value it is
    :param expected: what should be there, for the error
    :raises InvalidInputError: with what to install
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    check_path(value, param, expected)
    try:
        path = ObjectStoragePath(value) if isinstance(value, str) and "://" in value else value
        if isinstance(path, ObjectStoragePath):
            _ = path.fs  # Looked up by the scheme, when it is first asked for.
    except ValueError as error:
        raise InvalidInputError(param, f"{value}: {error}. {_REMEDY}.") from error
    return value
