"""Condition trees of many rows, evaluated together, hold where plain recursion over three values says so."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.injection.conditions import evaluate
from steering.plan.types import ConditionTree

WIDTH = 3
VERDICTS = {True: 1, False: -1, None: 0}
leaves = st.builds(lambda column: ConditionTree("threshold", threshold=column), st.integers(0, WIDTH - 1))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda kind, children: ConditionTree(kind, children=tuple(children)), st.sampled_from(["all", "any"]),
                  st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda child: ConditionTree("not", children=(child,)), inner),
    ),
    max_leaves=6,
)  # fmt: skip


def verdict(tree: ConditionTree, values: list[bool | None]) -> bool | None:
    """None where the answer depends on a value that is not known."""
    if tree.kind == "threshold":
        return values[tree.threshold]
    found = [verdict(child, values) for child in tree.children]
    if tree.kind == "not":
        return None if found[0] is None else not found[0]
    decides = tree.kind == "any"
    if decides in found:
        return decides
    return None if None in found else not decides


@given(trees, st.lists(st.lists(st.sampled_from([True, False, None]), min_size=WIDTH, max_size=WIDTH), min_size=1))
def test_a_tree_is_evaluated_for_each_row(tree: ConditionTree, values: list[list[bool | None]]) -> None:
    verdicts = torch.tensor([[VERDICTS[one] for one in row] for row in values], dtype=torch.int8)
    assert evaluate(tree, verdicts).tolist() == [VERDICTS[verdict(tree, row)] for row in values]
