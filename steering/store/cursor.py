"""Cursors of listings: opaque to callers, one form for every store."""

import base64
import binascii
from typing import Literal, TypeAlias

from steering.errors import InvalidRequest

Listing: TypeAlias = Literal["vector", "job"]
_LENGTH_LIMIT = 256


def make_cursor(listing: Listing, last: str) -> str:
    """Where the page after the entry `last` begins."""
    return base64.urlsafe_b64encode(f"{listing}:{last}".encode()).decode()


def read_cursor(listing: Listing, cursor: str) -> str:
    """The last entry of the page before. Raises InvalidRequest for anything `make_cursor` did not make for this listing."""
    refusal = InvalidRequest("the cursor is not one this listing gave out", param="cursor")
    if len(cursor) > _LENGTH_LIMIT:
        raise refusal
    try:
        kind, _, last = base64.b64decode(cursor.encode("ascii"), b"-_", validate=True).decode().partition(":")
    except (UnicodeError, binascii.Error) as error:
        raise refusal from error
    if kind != listing or make_cursor(listing, last) != cursor:
        raise refusal
    return last


def read_position(listing: Listing, cursor: str) -> int:
    """The same for listings ordered by a running number."""
    last = read_cursor(listing, cursor)
    if not (last.isascii() and last.isdigit() and len(last) <= 18):
        raise InvalidRequest("the cursor is not one this listing gave out", param="cursor")
    return int(last)
