"""The values of a JSON text are counted before it is parsed: exactly, wherever the pieces end in which it is read."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from steering.strict_json import size_of

TEXTS = st.text(alphabet='ab\\",[]{}:\u00e9\U0001f600', max_size=9)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


def counted(value: Any) -> int:
    """Counts the values in a tree; an empty list or object counts twice."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + (sum(map(counted, value)) if value else 1) if isinstance(value, list) else 1


@given(value=VALUES, ascii_only=st.booleans(), piece_bytes=st.integers(1, 64))
def test_values_are_counted(value: Any, ascii_only: bool, piece_bytes: int) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    size = size_of(text, piece_bytes)
    assert size.elements == counted(value)
    assert (size.characters, size == size_of(text)) == (len(text), True)
