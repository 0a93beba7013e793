"""Rules that every store applies in the same way: timestamps, fields of records, cursors, limits of texts, and references to vectors."""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Literal, TypeAlias

from steering.errors import InvalidRequest, LimitExceeded, VectorInUse
from steering.store.base import VectorFilter
from steering.vectors import check_name

DESCRIPTION_LIMIT = 4096
SEARCH_LIMIT = 256
TAG_LIMIT = 32
PAGE_LIMIT = 200
PAGE_BYTES = 4 << 20
"""Stored bytes after which a page of vectors or profiles ends before its limit."""
OTHERS = "another namespace"
"""How a message names steerings of other namespaces; it is always the last."""
STEERING_KEYS = ("vector", "to")
"""Fields of a steering whose value names a vector."""
_REFUSED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
_CURSOR_LIMIT = 256
_PINNED = re.compile(r'"([a-z0-9][a-z0-9._-]{0,63}@[1-9][0-9]{0,8})"')  # names are ASCII, so JSON escapes none

Listing: TypeAlias = Literal["vector", "profile", "job", "link", "audit"]


def now() -> str:
    """Returns the UTC time in ISO 8601 with microseconds. The length is fixed, so the texts sort by time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def values_of(source: object, record: type[Any]) -> dict[str, Any]:
    """Returns what a record or a row of the database has under the names of the fields of the dataclass `record`."""
    return {field.name: getattr(source, field.name) for field in fields(record)}


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


def check_text(text: str, param: str, limit: int) -> None:
    """Raises LimitExceeded beyond `limit` characters, InvalidRequest for what no database stores."""
    if len(text) > limit:
        raise LimitExceeded(f"{param} has {len(text)} characters; at most {limit} are stored", param=param)
    if refused := _REFUSED.search(text):
        code = ord(refused[0])
        if code >= 0xD800:
            raise InvalidRequest(f"{param} contains a lone surrogate (U+{code:04X}), which is not text", param=param)
        raise InvalidRequest(f"{param} contains the control character U+{code:04X}", param=param)


def check_labels(description: str | None, tags: tuple[str, ...] | None) -> None:
    """Checks what a vector is to be described by; None is left as it is.

    Raises LimitExceeded for too long a description or too many tags, InvalidRequest for what no database stores, and for a
    tag that breaks the rule of names or is repeated.
    """
    if description is not None:
        check_text(description, "description", DESCRIPTION_LIMIT)
    if tags is None:
        return
    if len(tags) > TAG_LIMIT:
        raise LimitExceeded(f"{len(tags)} tags given; a vector has at most {TAG_LIMIT}", param="tags")
    for tag in tags:
        check_name(tag, "tags")
    if len(set(tags)) != len(tags):
        raise InvalidRequest("a tag is given twice", param="tags")


def check_filter(where: VectorFilter) -> VectorFilter:
    """Returns the filter. Raises InvalidRequest for a tag, method or search that nothing stored could match."""
    if where.tag is not None:
        check_name(where.tag, "tag")
    if where.method is not None:
        check_name(where.method, "method")
    if where.search is not None:
        check_text(where.search, "search", SEARCH_LIMIT)
    return where


def check_page(limit: int) -> int:
    """Returns the size of a page, 1 to PAGE_LIMIT. Raises InvalidRequest below, LimitExceeded above."""
    if limit < 1:
        raise InvalidRequest(f"limit must be at least 1, got {limit}", param="limit")
    if limit > PAGE_LIMIT:
        raise LimitExceeded(f"limit is {limit}; a page has at most {PAGE_LIMIT} entries", param="limit")
    return limit


def entries_that_fit(sizes: Iterable[int]) -> int:
    """Returns how many entries of these sizes a page has: at least one, and no further one beyond PAGE_BYTES."""
    totals = list(accumulate(sizes))
    return max(1, sum(total <= PAGE_BYTES for total in totals))


def pinned_vectors(document: str) -> tuple[str, ...]:
    """Returns every `name@version` that is a text of its own in a JSON document such as the policy: vectors of `shared`."""
    return tuple(dict.fromkeys(_PINNED.findall(document)))


def names_in_steering(name: str, version: int | None, *, only: bool) -> list[str]:
    """Returns the texts of which a stored steering contains one if it names a version that is deleted, None for all.

    only: whether no other version remains for the name alone. Steering is stored without spaces, and names are ASCII.
    """
    ends = ['"', "@"] if version is None else [f'@{version}"', *(['"'] if only else [])]
    return [f'"{key}":"{name}{end}' for key in STEERING_KEYS for end in ends]


def refuse_if_used(name: str, version: int | None, users: Iterable[str]) -> None:
    """Raises VectorInUse, naming the users: what the caller knows each by, or OTHERS."""
    named = sorted(dict.fromkeys(users), key=lambda user: user == OTHERS)
    if named:
        shown = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
        deleted = name if version is None else f"{name}@{version}"
        raise VectorInUse(f"vector {deleted!r} is used by {shown}; change those first, or force the delete")
