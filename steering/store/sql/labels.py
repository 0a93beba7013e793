"""The texts callers give a store (descriptions, tags, searches), checked in one place so every store takes the same."""

from steering.errors import InvalidRequest, LimitExceeded
from steering.store.base import VectorFilter
from steering.vectors import check_name

DESCRIPTION_LIMIT = 4096
SEARCH_LIMIT = 256
TAG_LIMIT = 32
PAGE_LIMIT = 200
_ALLOWED_CONTROLS = frozenset("\n\r\t")


def check_text(text: str, param: str, limit: int) -> str:
    """The text itself. Raises LimitExceeded beyond `limit` characters, InvalidRequest for what no database keeps."""
    if len(text) > limit:
        raise LimitExceeded(f"{param} has {len(text)} characters; at most {limit} are kept", param=param)
    for character in text:
        code = ord(character)
        if 0xD800 <= code <= 0xDFFF:
            raise InvalidRequest(f"{param} holds a lone surrogate (U+{code:04X}), which is not text", param=param)
        if code < 0x20 and character not in _ALLOWED_CONTROLS:
            raise InvalidRequest(f"{param} holds the control character U+{code:04X}", param=param)
    return text


def check_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """The tags, which follow the rule of names. Raises InvalidRequest for a bad or repeated one, LimitExceeded for many."""
    if len(tags) > TAG_LIMIT:
        raise LimitExceeded(f"{len(tags)} tags given; a vector carries at most {TAG_LIMIT}", param="tags")
    for tag in tags:
        check_name(tag, "tags")
    if len(set(tags)) != len(tags):
        raise InvalidRequest("a tag is given twice", param="tags")
    return tags


def check_filter(where: VectorFilter) -> VectorFilter:
    """The filter itself. Raises InvalidRequest for a tag, method or search that nothing stored could match."""
    if where.tag is not None:
        check_name(where.tag, "tag")
    if where.method is not None:
        check_name(where.method, "method")
    if where.search is not None:
        check_text(where.search, "search", SEARCH_LIMIT)
    return where


def check_limit(limit: int) -> int:
    """The size of a page, 1 to PAGE_LIMIT. Raises InvalidRequest below, LimitExceeded above."""
    if limit < 1:
        raise InvalidRequest(f"limit must be at least 1, got {limit}", param="limit")
    if limit > PAGE_LIMIT:
        raise LimitExceeded(f"limit is {limit}; a page holds at most {PAGE_LIMIT}", param="limit")
    return limit


def fold(text: str) -> str:
    """The form in which texts are searched: letter case does not count, in any script and any database."""
    return text.casefold()
