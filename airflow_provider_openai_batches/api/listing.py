"""Walking a list of the API, as the dialect has it: page by page, or all at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from airflow_provider_openai_batches.api.dialects import Dialect, Listing
from airflow_provider_openai_batches.api.models import parse_time

log = logging.getLogger(__name__)

PAGE_SIZE = 100


def pages(
    get: Callable[..., Mapping[str, Any]],
    collection: str,
    params: Mapping[str, Any],
    dialect: Dialect,
    *,
    limit: int | None,
    after: str | None,
) -> Iterator[list[dict[str, Any]]]:
    """Walk a listing, newest first. Ends, with a warning, at a server that starts over.

    :param get: makes one call; takes the collection, ``params``, and ``list_as`` where an array may come bare
    :param collection: ``batches`` or ``files``
    :param params: query parameters of each call
    :param dialect: how the service lists
    :param limit: objects in all; None for no limit
    :param after: id of the object to start behind
    """
    if dialect.listing is Listing.WHOLE:
        items = _items(get(collection, params=params, list_as=dialect.list_members[0]), dialect)
        items.sort(key=lambda item: parse_time(item.get("created_at")) or 0, reverse=True)
        start = 1 + next((at for at, item in enumerate(items) if item["id"] == after), -1)
        yield items[start:][:limit]
        return
    left = limit
    cursors = {after}
    while left is None or left > 0:
        size = PAGE_SIZE if left is None else min(PAGE_SIZE, left)
        page = get(collection, params={**params, "limit": size, **({"after": after} if after else {})})
        items = _items(page, dialect)
        if not items:
            return
        if dialect.listing is Listing.MAYBE_PAGES:
            # If it starts over, what follows the cursor is there all the same.
            items = items[1 + next((at for at, item in enumerate(items) if item["id"] == after), -1) :]
            if not items:
                return
        after = str(items[-1]["id"])
        if after in cursors:
            log.warning("GET /%s returned the page ending with %s twice; stopping there.", collection, after)
            return
        cursors.add(after)
        yield items[:left]
        left = None if left is None else left - len(items)
        if page.get("has_more") is False:
            return


def _items(page: Mapping[str, Any], dialect: Dialect) -> list[dict[str, Any]]:
    """Return what is in a page."""
    data = next(filter(None, map(page.get, dialect.list_members)), None)
    return [item for item in data if isinstance(item, dict) and item.get("id")] if isinstance(data, list) else []
