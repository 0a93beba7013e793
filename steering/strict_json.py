"""Reads and writes JSON strictly: no duplicate key, no non-finite number, no lone surrogate, bounded depth and size."""

import json
import math
from dataclasses import dataclass
from typing import Any

from steering.errors import InvalidRequest

DEPTH_LIMIT = 96
"""Default bound on nesting: larger than that of a request body, because a stored record may contain one."""

ELEMENT_BYTES = 256
"""Memory of one parsed value: most for the entry of a large object, with its key and the list of pairs it is made of."""
PIECE_BYTES = 1 << 18
"""Bytes of a text that are counted at a time, in about a millisecond."""


def dump_json(value: Any, param: str) -> str:
    """Returns canonical ASCII text: sorted keys, no spaces. Raises InvalidRequest for what `load_json` would refuse."""
    try:
        _check_tree(value, param, param, DEPTH_LIMIT)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} cannot be written as JSON: {error}", param=param) from error


@dataclass(frozen=True, slots=True)
class Size:
    """How much a JSON text contains, which is known before it is parsed. characters: bytes of the text. elements: its values,
    empty lists and objects counted twice. containers: lists and objects. widest: bytes of its widest character."""

    characters: int
    elements: int
    containers: int
    widest: int

    @property
    def memory(self) -> int:
        """Bytes that parsing takes at most: the text, three copies of the characters as wide as the widest, and the objects."""
        return self.characters * (2 + 3 * self.widest) + self.elements * ELEMENT_BYTES


def size_of(text: bytes, piece_bytes: int = PIECE_BYTES) -> Size:
    """Counts what a text contains, in pieces, so that other threads run meanwhile. Punctuation inside strings does not count."""
    elements, containers, inside, start = 1, 0, False, 0
    while start < len(text):
        piece = text[start : start + piece_bytes]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # an escape stays in one piece
            piece = text[start : start + piece_bytes + 1]
        start += len(piece)
        piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b"".join(parts[inside::2])
        opened = outside.count(b"[") + outside.count(b"{")
        elements, containers = elements + opened + outside.count(b","), containers + opened
        inside ^= len(parts) % 2 == 0
    widest = 4 if b"\\u" in text or not text.isascii() else 1
    return Size(len(text), elements, containers, widest)


def load_json(text: str | bytes, what: str, *, param: str | None = None, depth: int = DEPTH_LIMIT) -> Any:
    """Parses untrusted text, named `what` in messages. Raises InvalidRequest without repeating the input. The hooks are
    Python functions, so that parsing in a thread releases the interpreter lock between numbers and objects."""
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            decoded,
            object_pairs_hook=_unique_keys,
            parse_constant=finite_number,
            parse_float=finite_number,
            parse_int=_whole_number,
        )
    except RecursionError:
        raise InvalidRequest(f"{what} is nested deeper than {depth} levels", param=param) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise InvalidRequest(f"{what} is not valid JSON: {error.msg} at {place}", param=param) from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{what} is not valid JSON: it is not UTF-8 text", param=param) from None
    except _Refused as error:
        raise InvalidRequest(f"{what} is not valid JSON: {error}", param=param) from None
    except ValueError:  # Python refuses to convert integers of more than 4,300 digits
        raise InvalidRequest(f"{what} is not valid JSON: a number has too many digits", param=param) from None
    _check_tree(value, what, param, depth)
    return value


class _Refused(ValueError):
    """Raised inside the parser for what the JSON grammar allows and this reader does not."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise _Refused("a key is given twice")
    return entries


class NotFinite(_Refused):
    """Raised inside the parser for a number that is not finite. The message names constants, and does not repeat other numbers."""


def finite_number(text: str) -> float:
    """Returns a number of a JSON text, for the hooks of Python's parser. Raises NotFinite."""
    number = float(text)
    if not math.isfinite(number):
        raise NotFinite(f"{text if text.isalpha() or text == '-Infinity' else 'a number'} is not finite")
    return number


def _whole_number(text: str) -> int:
    return int(text)


def _check_tree(value: Any, what: str, param: str | None, depth: int) -> None:
    """Raises for lone surrogates and nesting beyond `depth`. Iterates level by level."""
    level: list[Any] = [value]
    for _ in range(depth + 1):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item, what, param)
            elif isinstance(item, (list, tuple)):
                deeper.extend(item)
            elif isinstance(item, dict):
                deeper.extend(item.values())
                for key in item:
                    if isinstance(key, str):
                        _check_text(key, what, param)
        if not deeper:
            return
        level = deeper
    raise InvalidRequest(f"{what} is nested deeper than {depth} levels", param=param)


def _check_text(text: str, what: str, param: str | None) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{what} is not valid JSON: it contains a lone surrogate, which is not text", param=param
        ) from None
