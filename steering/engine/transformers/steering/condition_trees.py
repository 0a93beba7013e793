"""Evaluates condition trees over verdicts: 1 holds, -1 does not hold, 0 is not decided yet (Kleene's three values)."""

from collections.abc import Sequence

import torch

from steering.engine.transformers.steering.gather import Index, index_of
from steering.plan.types import ConditionTree
from steering.shapes import Bool, Int, Tensor


def evaluate(tree: ConditionTree, verdicts: Int[Tensor, "token threshold"]) -> Int[Tensor, "token"]:
    """The verdict of a tree at each token. `all` is the minimum, `any` the maximum and `not` the negation, so what is not
    decided stays so unless the other operands decide."""
    if tree.kind == "threshold":
        return verdicts[:, tree.threshold]
    values = [evaluate(child, verdicts) for child in tree.children]
    if tree.kind == "not":
        return -values[0]
    combine = torch.minimum if tree.kind == "all" else torch.maximum
    result = values[0]
    for value in values[1:]:
        result = combine(result, value)
    return result


class TreeGroups:
    """The conditions of many rows; rows with equal trees are evaluated together."""

    def __init__(self, trees: Sequence[ConditionTree | None], counts: Sequence[int], device: torch.device) -> None:
        """counts: tokens that follow each tree, which are neighbours."""
        rows: dict[ConditionTree | None, list[range]] = {}
        start = 0
        for tree, count in zip(trees, counts, strict=True):
            rows.setdefault(tree, []).append(range(start, start + count))
            start += count
        self._tokens = start
        self._groups: list[tuple[ConditionTree, Index]] = [
            (tree, index_of(tokens, device)) for tree, tokens in rows.items() if tree is not None
        ]

    def hold(self, verdicts: Int[Tensor, "token threshold"]) -> Bool[Tensor, "token"]:
        """Whether each token's condition holds; it does where there is none."""
        if len(self._groups) == 1 and self._groups[0][1] == slice(0, self._tokens):
            return evaluate(self._groups[0][0], verdicts) > 0
        found = torch.ones(self._tokens, dtype=torch.bool, device=verdicts.device)
        for tree, tokens in self._groups:
            found[tokens] = evaluate(tree, verdicts[tokens]) > 0
        return found
