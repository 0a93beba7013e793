"""Orders the interventions of a plan at each layer: static adds are summed once, what follows keeps its order."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from steering.operations import OPERATIONS
from steering.plan.types import (
    SCOPE_PHASES,
    ConditionTree,
    Intervention,
    LayerSteering,
    OperationCall,
    Phase,
    ResolvedThreshold,
    StaticAdd,
)
from steering.shapes import Direction, Float, Tensor
from steering.spec import InterventionSpec

RANK_TOLERANCE = 1e-4
"""Singular values below this share of the largest are noise of float32 directions, not directions of their own."""


def weight_index(operation: str) -> int:
    """Returns the index of the parameter that the schedule multiplies; 0 there makes the operation the identity."""
    entry = OPERATIONS[operation]
    return entry.parameters.index(entry.weighted)


def is_constant(spec: InterventionSpec) -> bool:
    """Whether it changes every residual in its scope by the same vector, wherever in the order it stands."""
    varies = (
        spec.unit == "relative" or spec.when is not None or spec.hold is not None or spec.schedule.kind != "constant"
    )
    return OPERATIONS[spec.operation].static and not varies


def may_be_static(spec: InterventionSpec) -> bool:
    """Whether the change is one constant per phase, so that it can be summed when the plan is made."""
    return is_constant(spec) and spec.scope.start is None and spec.scope.end is None and not spec.scope.selects


def static_change(intervention: Intervention, layer: int) -> Direction:
    """The constant r' - r of a static intervention at a layer."""
    directions = intervention.directions[layer]
    origin = torch.zeros(1, directions.shape[1])
    parameters = torch.tensor([intervention.parameters[layer]])
    return OPERATIONS[intervention.spec.operation].apply(origin, directions[None], parameters)[0]


def layer_steering(interventions: Sequence[Intervention], limit: int) -> dict[int, LayerSteering]:
    """Returns the order at every layer where anything acts. A weighted parameter of 0 costs nothing and is left out.

    limit: the interventions from this index on become calls of their own, because they act after the dose guard.
    """
    at_layer: dict[int, list[int]] = {}
    for index, one in enumerate(interventions):
        for layer, parameters in one.parameters.items():
            if parameters[weight_index(one.spec.operation)] != 0.0:
                at_layer.setdefault(layer, []).append(index)
    return {layer: _order(interventions, layer, indices, limit) for layer, indices in sorted(at_layer.items())}


def _order(interventions: Sequence[Intervention], layer: int, indices: Sequence[int], limit: int) -> LayerSteering:
    """Static adds join the sum only up to the first intervention that depends on r: addition commutes with nothing else."""
    static = [index < limit and may_be_static(interventions[index].spec) for index in indices]
    count = next((n for n, one in enumerate(static) if not one), len(indices))
    changes = [(index, static_change(interventions[index], layer)) for index in indices[:count]]
    return LayerSteering(
        static_sum=_sum_by_phase(interventions, changes) if changes else None,
        static_adds=tuple(StaticAdd(index, float(change.norm())) for index, change in changes),
        calls=_merge(interventions, layer, indices[count:], limit),
    )


def _sum_by_phase(
    interventions: Sequence[Intervention], changes: Sequence[tuple[int, Direction]]
) -> Float[Tensor, "phase d_model"]:
    rows = torch.zeros(len(Phase), changes[0][1].shape[0])
    for index, change in changes:
        for phase in SCOPE_PHASES[interventions[index].spec.scope.tokens]:
            rows[phase] += change
    return rows


def _merge(
    interventions: Sequence[Intervention], layer: int, indices: Iterable[int], limit: int
) -> tuple[OperationCall, ...]:
    """Neighbours of a merging operation become one call over a joint basis, so that their order does not matter."""
    calls: list[OperationCall] = []
    for index in indices:
        one = interventions[index]
        directions = one.directions[layer]
        first = calls[-1].interventions[0] if calls else -1
        if calls and (first < limit) == (index < limit) and _alike(interventions[first], one, layer):
            last = calls[-1]
            basis = joint_basis(torch.cat([last.directions, directions]))
            calls[-1] = replace(last, interventions=(*last.interventions, index), directions=basis)
        else:
            calls.append(OperationCall((index,), directions))
    return tuple(calls)


def _alike(one: Intervention, other: Intervention, layer: int) -> bool:
    """Whether two neighbours may be merged: they differ in nothing but their directions."""
    mine, theirs = one.spec, other.spec
    return (
        OPERATIONS[mine.operation].merges(one.parameters[layer])
        and (mine.operation, mine.scope, mine.schedule) == (theirs.operation, theirs.scope, theirs.schedule)
        and (one.relative, one.condition) == (other.relative, other.condition)
        and one.parameters[layer] == other.parameters[layer]
    )


def joint_basis(directions: Float[Tensor, "k d_model"]) -> Float[Tensor, "rank d_model"]:
    """Returns an orthonormal basis of the span. Directions that are (nearly) dependent do not add a row: QR would make
    one out of rounding noise."""
    _, values, rows = torch.linalg.svd(directions.double(), full_matrices=False)
    basis: Tensor = rows[values > RANK_TOLERANCE * values[0]]
    return basis.to(torch.float32)


def waits_for_prompt(condition: ConditionTree | None, thresholds: Sequence[ResolvedThreshold]) -> bool:
    """Whether a condition is decided at the prompt's end, and so cannot act on the positions before it."""
    return condition is not None and any(thresholds[leaf].at != "token" for leaf in condition.leaves())


def acts_on_prompt(intervention: Intervention, thresholds: Sequence[ResolvedThreshold]) -> bool:
    """Whether an intervention may act on prompt positions before the last."""
    in_scope = Phase.PROMPT in SCOPE_PHASES[intervention.spec.scope.tokens]
    return in_scope and not waits_for_prompt(intervention.condition, thresholds)


def adds_to_prompt(interventions: Sequence[Intervention], steering: LayerSteering) -> bool:
    """Whether static adds act on prompt positions before the last, even if several cancel each other there."""
    return any(
        Phase.PROMPT in SCOPE_PHASES[interventions[add.intervention].spec.scope.tokens] for add in steering.static_adds
    )
