"""ConditionTree trees of many rows, evaluated as one circuit, hold where plain recursion says so."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.engine.transformers.steering.conditions import Circuit
from steering.plan.types import ConditionTree

WIDTH = 3
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


def holds(tree: ConditionTree, values: list[bool]) -> bool:
    if tree.kind == "threshold":
        return values[tree.threshold]
    found = [holds(child, values) for child in tree.children]
    return {"all": all(found), "any": any(found), "not": not found[0]}[tree.kind]


@given(st.lists(st.one_of(st.none(), trees), min_size=1, max_size=4), st.data())
def test_each_row_follows_its_own_tree(decisions: list[ConditionTree | None], data: st.DataObject) -> None:
    spread = list(range(len(decisions)))
    values = [data.draw(st.lists(st.booleans(), min_size=WIDTH, max_size=WIDTH)) for _ in decisions]
    circuit = Circuit(decisions, spread, WIDTH, torch.device("cpu"))
    found = circuit.evaluate(torch.tensor(values, dtype=torch.float32))
    assert found.tolist() == [tree is None or holds(tree, row) for tree, row in zip(decisions, values, strict=True)]


def test_a_threshold_that_is_written_twice_is_asked_once() -> None:
    leaf = ConditionTree("threshold", threshold=1)
    both = Circuit([ConditionTree("all", children=(leaf, leaf))], [0], WIDTH, torch.device("cpu"))
    assert both.evaluate(torch.tensor([[0.0, 1.0, 0.0]])).tolist() == [True]
    assert both.evaluate(torch.tensor([[1.0, 0.0, 1.0]])).tolist() == [False]
