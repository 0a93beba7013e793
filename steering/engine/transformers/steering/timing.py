"""When an intervention acts: its scope as a range of positions and a choice of tokens, its schedule as a weight per generated token,
its condition as a tree over verdicts."""

from collections.abc import Sequence
from functools import reduce
from math import cos, inf, pi

import torch

from steering.engine.transformers.steering.gather import Index, index_of
from steering.plan.order import waits_for_prompt
from steering.plan.types import ConditionTree, Intervention, SteeringPlan
from steering.shapes import Bool, Int, Tensor
from steering.spec import Schedule, TokenScope


def positions_of(scope: TokenScope, prompt_length: int) -> tuple[float, float]:
    """Half-open range of absolute positions in scope. `generated` begins at the last prompt position (index 0)."""
    last = prompt_length - 1
    if scope.tokens == "all":
        return 0, inf
    if scope.tokens == "last":
        return last, prompt_length
    if scope.tokens == "generated":
        return last + (scope.start or 0), inf if scope.end is None else last + scope.end
    start, end, _ = slice(scope.start, scope.end).indices(prompt_length)
    return start, end


def weight(schedule: Schedule, index: int) -> float:
    """w(index of the generated token): 1 at the start, `to` after `tokens` (warmup: 0 to 1)."""
    if schedule.kind == "constant":
        return 1.0
    assert schedule.tokens is not None
    x = min(index / schedule.tokens, 1.0)
    if schedule.kind == "linear":
        return 1.0 + (schedule.to - 1.0) * x
    if schedule.kind == "cosine":
        return schedule.to + (1.0 - schedule.to) * (1.0 + cos(pi * x)) / 2.0
    if schedule.kind == "exponential":
        return float(schedule.to**x)
    return x


GENERATED_ROLE = "assistant"
"""Of generated tokens, and of the position that predicts the first of them."""


class Timing:
    """The positions at which an intervention acts and its weight at each, for one sequence.

    start, end: the range of positions. varies: whether the weight may differ between positions of the range.
    """

    def __init__(self, intervention: Intervention, plan: SteeringPlan, ids: Sequence[int], prompt_length: int) -> None:
        """ids: those of the sequence, which grows. A condition that is decided at the prompt's end cannot act before it. A prompt
        scope has no generated index."""
        scope, schedule, self._last = intervention.spec.scope, intervention.spec.schedule, prompt_length - 1
        self.start, self.end = positions_of(scope, prompt_length)
        if waits_for_prompt(intervention.condition, plan.thresholds):
            self.start = max(self.start, self._last)
        self._schedule, self._ids, self._prompt_roles = schedule, ids, plan.prompt_roles or ()
        self._scheduled = schedule.kind != "constant" and scope.tokens in ("all", "generated")
        self._token_ids = None if scope.token_ids is None else frozenset(scope.token_ids)
        self._roles = None if scope.roles is None else frozenset[str](scope.roles)
        self._selects = scope.selects
        self.varies = self._scheduled or self._selects

    def _names(self, position: int) -> bool:
        """Whether the scope names the token at a position, by its id and by its role."""
        if self._token_ids is not None and self._ids[position] not in self._token_ids:
            return False
        return self._roles is None or self._role(position) in self._roles

    def _role(self, position: int) -> str | None:
        return GENERATED_ROLE if position >= self._last else self._prompt_roles[position]

    def at(self, position: int) -> float:
        """Weight at a position, 0 where it is out of scope."""
        if not self.start <= position < self.end or (self._selects and not self._names(position)):
            return 0.0
        index = position - self._last
        return weight(self._schedule, index) if self._scheduled and index >= 0 else 1.0

    def is_constant_from(self, position: int) -> bool:
        """Whether the weight is 1 at this and every later position."""
        return self.start <= position and self.end == inf and not self.varies


def follows_single_tokens(plan: SteeringPlan) -> bool:
    """Whether a generated token's steering depends on the token before it, so that a pass computes one of them at a time.

    That is so for held readouts, and for conditions that are read at a later layer than one where they act.
    """
    if any(one.holds for one in plan.interventions):
        return True
    return any(
        plan.thresholds[leaf].layer > layer
        for layer, steering in plan.layers.items()
        for call in steering.calls
        if (condition := plan.intervention(call).condition) is not None
        for leaf in condition.leaves()
    )


def evaluate(tree: ConditionTree, verdicts: Int[Tensor, "token threshold"]) -> Int[Tensor, "token"]:
    """The verdict of a tree at each token: 1 it holds, -1 it does not, 0 that is not decided yet (Kleene's three values). `all` is
    the minimum, `any` the maximum and `not` the negation, so what is not decided stays so unless the other operands decide."""
    if tree.kind == "threshold":
        return verdicts[:, tree.threshold]
    values = [evaluate(child, verdicts) for child in tree.children]
    if tree.kind == "not":
        return -values[0]
    return reduce(torch.minimum if tree.kind == "all" else torch.maximum, values)


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
