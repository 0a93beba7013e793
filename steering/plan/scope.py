"""When an intervention acts: the only place that decides phases, positions, windows, roles, token ids and schedules.

Positions count from 0. The last prompt position predicts the first generated token, so `generated` begins there.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from math import inf, pi

import torch

from steering.model.hook_points import in_order
from steering.plan.types import ConditionTree, Intervention, ResolvedThreshold, SteeringPlan
from steering.shapes import Float, Int, Tensor
from steering.spec import InterventionSpec, PhaseName, TokenScope


class Phase(IntEnum):
    """Where a position stands. The last prompt position is a phase of its own: it predicts the first generated token."""

    PROMPT = 0
    LAST = 1
    GENERATED = 2


SCOPE_PHASES: Mapping[str, frozenset[Phase]] = {
    "all": frozenset(Phase),
    "prompt": frozenset({Phase.PROMPT, Phase.LAST}),
    "generated": frozenset({Phase.LAST, Phase.GENERATED}),
    "last": frozenset({Phase.LAST}),
}
GENERATED_ROLE = "assistant"
"""Of generated tokens, and of the position that predicts the first of them."""
TIMING = 7
"""Numbers of `timing`."""
_CURVES = {"constant": 0.0, "linear": 0.0, "warmup": 0.0, "cosine": 1.0, "exponential": 2.0}
_SCHEDULED = frozenset({"all", "generated"})
"""Scopes whose weight follows the schedule; on prompt positions it is 1."""


def positions_of(scope: TokenScope, prompt_length: int) -> tuple[float, float]:
    """Returns the half-open range of absolute positions in scope."""
    last = prompt_length - 1
    if scope.tokens == "all":
        return 0, inf
    if scope.tokens == "last":
        return last, prompt_length
    if scope.tokens == "generated":
        return last + (scope.start or 0), inf if scope.end is None else last + scope.end
    start, end, _ = slice(scope.start, scope.end).indices(prompt_length)
    return start, end


def positions_key(scope: TokenScope) -> object:
    """Returns what scopes share that cover the same positions of each phase that both have."""
    windowed = bool(scope.start) or scope.end is not None
    return scope.model_copy(update={"start": scope.start or 0, "tokens": scope.tokens if windowed else "all"})


def acting_positions(intervention: Intervention, plan: SteeringPlan, prompt_length: int) -> tuple[float, float]:
    """Returns `positions_of` its scope, without those before the prompt's end where its condition is decided there."""
    start, end = positions_of(intervention.spec.scope, prompt_length)
    waits = waits_for_prompt(intervention.condition, plan.thresholds)
    return max(start, prompt_length - 1) if waits else start, end


def timing(intervention: Intervention, plan: SteeringPlan, prompt_length: int) -> tuple[float, ...]:
    """Returns the TIMING numbers from which `weights` computes the weight of an intervention at any position.

    (first position, end of the positions, last prompt position, tokens of the schedule, weight at its beginning, weight
    after its tokens, curve: 0 linear, 1 cosine, 2 exponential)
    """
    schedule, scope = intervention.spec.schedule, intervention.spec.scope
    start, end = acting_positions(intervention, plan, prompt_length)
    if schedule.kind == "constant" or scope.tokens not in _SCHEDULED:
        return start, end, prompt_length - 1, 1.0, 1.0, 1.0, 0.0
    begin, to = (0.0, 1.0) if schedule.kind == "warmup" else (1.0, schedule.to)
    return start, end, prompt_length - 1, float(schedule.tokens or 1), begin, to, _CURVES[schedule.kind]


def weights(
    timings: Float[Tensor, "token column timing"], positions: Int[Tensor, "token"]
) -> Float[Tensor, "token column"]:
    """Returns the weight of each intervention at each token: 0 out of its positions, otherwise that of its schedule."""
    start, end, last, tokens, begin, to, curve = timings.unbind(-1)
    at = positions[:, None].to(timings.dtype)
    x = ((at - last) / tokens).clamp(0.0, 1.0)
    part = torch.where(curve == 1.0, (1.0 + torch.cos(pi * x)) / 2.0, 1.0 - x)
    weight = torch.where(curve == 2.0, to.abs() ** x, to + (begin - to) * part)
    weight = torch.where(at < last, 1.0, weight)
    return torch.where((at >= start) & (at < end), weight, 0.0)


def is_constant_from(intervention: Intervention, plan: SteeringPlan, prompt_length: int, position: int) -> bool:
    """Whether the weight is the same at this and every later position."""
    scope = intervention.spec.scope
    start, end = acting_positions(intervention, plan, prompt_length)
    constant = intervention.spec.schedule.kind == "constant" or scope.tokens not in _SCHEDULED
    return not scope.selects and constant and ((start <= position and end == inf) or end <= position)


def is_named(
    scope: TokenScope, plan: SteeringPlan, ids: Sequence[int], prompt_length: int, position: int, phase: PhaseName
) -> bool:
    """Whether a scope with token ids, roles or phases names the token at a position. phase: of that token."""
    if scope.token_ids is not None and ids[position] not in scope.token_ids:
        return False
    if scope.phase is not None and phase not in scope.phase:
        return False
    if scope.roles is None:
        return True
    role = GENERATED_ROLE if position >= prompt_length - 1 else (plan.prompt_roles or ())[position]
    return role in scope.roles


def waits_for_prompt(condition: ConditionTree | None, thresholds: Sequence[ResolvedThreshold]) -> bool:
    """Whether a condition is decided at the prompt's end, and so cannot act on the positions before it."""
    return condition is not None and any(thresholds[leaf].at != "token" for leaf in condition.leaves())


def acts_on_prompt(intervention: Intervention, thresholds: Sequence[ResolvedThreshold]) -> bool:
    """Whether an intervention may act on prompt positions before the last."""
    scope = intervention.spec.scope
    in_scope = Phase.PROMPT in SCOPE_PHASES[scope.tokens] and (scope.phase is None or "prompt" in scope.phase)
    return in_scope and not waits_for_prompt(intervention.condition, thresholds)


def counts_from_prompt_end(scope: TokenScope) -> bool:
    """Whether token ids before a position do not tell if it is in scope: a window from the prompt's end, or roles."""
    return min(scope.start or 0, scope.end or 0) < 0 or scope.roles is not None


def largest_weight(spec: InterventionSpec, phase: Phase) -> float:
    """Returns the largest magnitude of the schedule's weight in a phase."""
    schedule = spec.schedule
    fixed = schedule.kind in ("constant", "warmup") or spec.scope.tokens not in _SCHEDULED
    return 1.0 if fixed or phase is not Phase.GENERATED else max(1.0, abs(schedule.to))


def computes_whole(plan: SteeringPlan) -> bool:
    """Whether a request must compute each of its positions itself: what is decided or summed at one counts later."""
    return not plan.reusable or bool(plan.thresholds) or any(one.holds for one in plan.interventions)


def follows_single_tokens(plan: SteeringPlan) -> bool:
    """Whether a generated token's steering depends on the token before it, so that a pass computes one of them at a
    time. That is so for held readouts, and for conditions that are read at a later layer than one where they act."""
    return any(one.holds for one in plan.interventions) or bool(late_layers(plan))


def late_layers(plan: SteeringPlan) -> frozenset[int]:
    """Returns the layers where conditions are read that act before them, and so at the tokens that follow."""
    return frozenset(
        read
        for layer, edits in plan.layers.items()
        for one in edits
        if (condition := plan.interventions[one.owner].condition) is not None
        for leaf in condition.leaves()
        if in_order(read := plan.thresholds[leaf].layer) > in_order(layer)
    )
