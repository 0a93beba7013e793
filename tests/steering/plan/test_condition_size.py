"""The nodes of a condition are counted as written, before it is validated."""

from typing import Any

import pytest

from steering.spec import MAX_CONDITION_NODES, count_nodes

THRESHOLD = {"vector": "mood", "above": 0.0}


def nested(key: str, depth: int) -> Any:
    """A threshold inside so many nodes."""
    condition: Any = THRESHOLD
    for _ in range(depth):
        condition = {key: [condition] if key in {"all", "any"} else condition}
    return condition


@pytest.mark.parametrize("key", ["all", "any", "not", "not_"])
def test_every_form_counts_up_to_one_more_than_is_allowed(key: str) -> None:
    assert count_nodes(nested(key, 9)) == 10
    assert count_nodes(nested(key, 5000)) == MAX_CONDITION_NODES + 1
