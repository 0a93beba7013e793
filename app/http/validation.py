"""Describes what a schema refuses in plain words: the field, what was given, what is allowed, the nearest name."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steering.registry import suggestion

GIVEN_LIMIT = 40
"""Characters of a refused text that are repeated."""
DIGITS_LIMIT = 8
"""A longer number is not repeated: it may have thousands of digits, which are counted."""

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "model_attributes_type": "an object",
}
_CONTENT = {
    "greater_than_equal": "must be at least {ge}, got {given}",
    "greater_than": "must be greater than {gt}, got {given}",
    "less_than_equal": "must be at most {le}, got {given}",
    "less_than": "must be less than {lt}, got {given}",
    "missing": "is required",
    "union_tag_not_found": "is required",
    "steering_form": "{message}, got {given}",
    "vector_form": "{message}, got {given}",
    "input_form": "{message}, got {given}",
    "string_pattern_mismatch": "must match {pattern}, got {given}",
    "string_too_short": "must not be empty",
    "string_too_long": "takes at most {max_length} characters",
    "too_short": "needs at least {min_length} items, got {actual_length}",
    "too_long": "takes at most {max_length} items",
}


def describe(findings: Sequence[Mapping[str, Any]]) -> str:
    """Describes findings about one place. Several come from a field that has several forms.

    Where one form fits and only its content is wrong, that is described; else all forms are listed.
    """
    content = next((finding for finding in findings if _expected(finding) is None), None)
    if content is not None:
        return _sentence(content)
    expected = list(dict.fromkeys(str(_expected(finding)) for finding in findings))
    choices = [choice for finding in findings for choice in _choices(finding)]
    value = findings[0].get("input")
    hint = suggestion(value, choices) if isinstance(value, str) else ""
    if type(value) is int and abs(value) < 10**DIGITS_LIMIT and "a list" in expected:
        hint = f"; did you mean [{value}]?"
    return f"expected {_listed(expected)}, got {given(value)}{hint}"


def given(value: Any) -> str:
    """Names a refused value: short texts and numbers as they are, everything else by its kind."""
    if value is None or isinstance(value, dict):
        return "null" if value is None else "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return json.dumps(value) if len(value) <= GIVEN_LIMIT else f"a text of {len(value)} characters"
    if isinstance(value, int):
        return json.dumps(value) if abs(value) < 10**DIGITS_LIMIT else f"a number of {len(str(abs(value)))} digits"
    short = isinstance(value, float) and math.isfinite(value) and len(json.dumps(value)) <= DIGITS_LIMIT
    return json.dumps(value) if short else "a number"


def _expected(finding: Mapping[str, Any]) -> str | None:
    """Names the form that a finding misses; None where the form is right and the content is not."""
    kind, context = str(finding.get("type")), finding.get("ctx") or {}
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind == "literal_error":
        return str(context.get("expected", ""))
    if kind == "object_type":
        return f"an object with {context.get('known')}"
    return None


def _sentence(finding: Mapping[str, Any]) -> str:
    """Describes a finding about the content of a field."""
    kind, context = str(finding.get("type")), finding.get("ctx") or {}
    message = str(finding.get("msg", "not valid")).removeprefix("Value error, ")
    if kind == "unknown_key":
        return message + suggestion(str(context.get("key")), str(context.get("known", "")).split(", "))
    if kind == "union_tag_invalid":
        tag, known = str(context.get("tag")), str(context.get("expected_tags")).replace("'", "").split(", ")
        return f"expected {_listed([repr(one) for one in known])}, got {given(tag)}{suggestion(tag, known)}"
    words = {**context, "message": message, "given": given(finding.get("input"))}
    return _CONTENT[kind].format(**words) if kind in _CONTENT else message


def _choices(finding: Mapping[str, Any]) -> list[str]:
    """Returns the names a literal allows."""
    context = finding.get("ctx") or {}
    if finding.get("type") != "literal_error":
        return []
    return str(context.get("expected", "")).replace(" or ", ", ").replace("'", "").split(", ")


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
