"""JSON with no second reading: no duplicate key, no non-finite number, no lone surrogate, bounded depth; one way to write."""

import json
import math
from typing import Any, NoReturn

from steering.errors import InvalidRequest

DEPTH_LIMIT = 96
"""Somewhat above the depth of a request body, which may rest inside a record."""


def dump_json(value: Any, param: str) -> str:
    """Canonical ASCII text: sorted keys, no spaces. Raises InvalidRequest for what `load_json` would not take back."""
    try:
        _check_tree(value, param, DEPTH_LIMIT)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} cannot be kept as JSON: {error}", param=param) from error


def load_json(text: str, param: str) -> Any:
    """The value of a text that may come from a stranger. Raises InvalidRequest, without repeating what it refused."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite_float)
    except RecursionError as error:
        raise InvalidRequest(f"{param} is nested deeper than {DEPTH_LIMIT}", param=param) from error
    except InvalidRequest as error:
        raise InvalidRequest(f"{param}: {error.message}", param=param) from error
    except ValueError as error:  # malformed, or an integer of thousands of digits
        raise InvalidRequest(f"{param} is not valid JSON", param=param) from error
    _check_tree(value, param, DEPTH_LIMIT)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise InvalidRequest("a key is given twice")
    return entries


def _refuse_constant(_: str) -> NoReturn:
    raise InvalidRequest("a number is not finite")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidRequest("a number is not finite")
    return number


def _check_tree(value: Any, param: str, depth: int) -> None:
    if depth < 0:
        raise InvalidRequest(f"{param} is nested deeper than {DEPTH_LIMIT}", param=param)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{param} holds a lone surrogate, which is not text", param=param) from error
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_tree(item, param, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_tree(key, param, depth)
            _check_tree(item, param, depth - 1)
