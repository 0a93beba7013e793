"""Reads and writes JSON strictly: no duplicate key, no non-finite number, no lone surrogate, bounded depth and size."""

import json
import math
from typing import Any

from steering.errors import InvalidRequest, LimitExceeded

DEPTH_LIMIT = 96
"""Default bound on nesting: larger than that of a request body, because a stored record may contain one."""


def dump_json(value: Any, param: str) -> str:
    """Returns canonical ASCII text: sorted keys, no spaces. Raises InvalidRequest for what `load_json` would refuse."""
    try:
        _check_tree(value, param, param, DEPTH_LIMIT, None)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} cannot be written as JSON: {error}", param=param) from error


def load_json(
    text: str | bytes, what: str, *, param: str | None = None, depth: int = DEPTH_LIMIT, elements: int | None = None
) -> Any:
    """Parses untrusted text. `what` names the text in messages; `elements` bounds the values it may contain.

    Raises InvalidRequest, or LimitExceeded for too many elements, without repeating the input. The hooks are Python
    functions, so parsing in a thread releases the interpreter lock between values.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            decoded, object_pairs_hook=_unique_keys, parse_constant=_finite_float, parse_float=_finite_float
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
    _check_tree(value, what, param, depth, elements)
    return value


class _Refused(ValueError):
    """Raised inside the parser for what the JSON grammar allows and this reader does not."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise _Refused("a key is given twice")
    return entries


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Refused("a number is not finite")
    return number


def _check_tree(value: Any, what: str, param: str | None, depth: int, elements: int | None) -> None:
    """Raises for lone surrogates, nesting beyond `depth` and more than `elements` values. Iterates level by level."""
    level: list[Any] = [value]
    count = 0
    for _ in range(depth + 1):
        count += len(level)
        if elements is not None and count > elements:
            raise LimitExceeded(f"{what} has more than {elements} elements", param=param)
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
