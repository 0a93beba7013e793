"""Pages of listings: how many entries a page has, and the cursor of the next one."""

import base64
import binascii
from collections.abc import Iterable
from itertools import accumulate
from typing import Literal, TypeAlias

from steering.errors import InvalidRequest, LimitExceeded

PAGE_LIMIT = 200
PAGE_BYTES = 4 << 20
"""Stored bytes after which a page of vectors or profiles ends before its limit."""
_CURSOR_LIMIT = 256

Listing: TypeAlias = Literal["vector", "profile", "job", "link", "audit"]


def make_cursor(listing: Listing, last: str) -> str:
    """Returns the opaque position after the entry `last`."""
    return base64.urlsafe_b64encode(f"{listing}:{last}".encode()).decode()


def read_cursor(listing: Listing, cursor: str) -> str:
    """Returns the last entry of the previous page. Raises InvalidRequest for a cursor of another listing or origin."""
    refusal = InvalidRequest("the cursor was not returned by this listing", param="cursor")
    if len(cursor) > _CURSOR_LIMIT:
        raise refusal
    try:
        kind, _, last = base64.b64decode(cursor.encode("ascii"), b"-_", validate=True).decode().partition(":")
    except (UnicodeError, binascii.Error) as error:
        raise refusal from error
    if kind != listing or make_cursor(listing, last) != cursor:
        raise refusal
    return last


def read_position(listing: Listing, cursor: str) -> int:
    """Reads a cursor of a listing that is ordered by an increasing number."""
    last = read_cursor(listing, cursor)
    if not (last.isascii() and last.isdigit() and len(last) <= 18):
        raise InvalidRequest("the cursor was not returned by this listing", param="cursor")
    return int(last)


def check_page(limit: int) -> int:
    """Returns the size of a page, 1 to PAGE_LIMIT. Raises InvalidRequest below, LimitExceeded above."""
    if limit < 1:
        raise InvalidRequest(f"limit must be at least 1, got {limit}", param="limit")
    if limit > PAGE_LIMIT:
        raise LimitExceeded(f"limit is {limit}; a page has at most {PAGE_LIMIT} entries", param="limit")
    return limit


def entries_that_fit(sizes: Iterable[int]) -> int:
    """Returns how many entries of these sizes a page has: at least one, and no further one beyond PAGE_BYTES."""
    return max(1, sum(total <= PAGE_BYTES for total in accumulate(sizes)))
