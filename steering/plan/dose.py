"""The dose guard: what is planned against the model's typical norms, and the bound that holds while tokens are computed. Also
divides the dose of one add over its layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from steering.errors import DoseExceeded, InvalidRequest
from steering.model.info import ModelInfo
from steering.operations.base import unit_size
from steering.plan.order import is_constant, static_change
from steering.plan.types import SCOPE_PHASES, Intervention, LayerSteering, Phase
from steering.spec import InterventionSpec
from steering.vectors import ConceptVector

BOUND = 0.2
"""Relative dose at which perplexity reaches 1.5 times on half of the starter concepts (docs/dose_response_results.md)."""


@dataclass(frozen=True, slots=True)
class DoseGuard:
    """What happens when the relative dose of a request, summed over its layers, is beyond `bound`.

    warn: a planned dose beyond the bound is a warning. clamp: besides, the change is scaled down at every token where it
    would exceed the bound, whatever operation, scope, schedule or condition made it. refuse: a plan that is known to
    exceed the bound raises DoseExceeded, and what shows only at run time is scaled down.
    """

    bound: float = BOUND
    action: Literal["off", "warn", "clamp", "refuse"] = "warn"

    @property
    def run_time_bound(self) -> float | None:
        """The bound that holds at every token; None where it is only reported."""
        return self.bound if self.action in ("clamp", "refuse") else None


def check_planned_dose(
    interventions: Sequence[Intervention],
    layers: Mapping[int, LayerSteering],
    info: ModelInfo,
    guard: DoseGuard,
    warn: Callable[[str], None],
) -> None:
    """Warns where the planned dose is beyond the bound, or raises DoseExceeded, as the guard says."""
    if guard.action == "off" or not layers:
        return
    planned = max(
        ({layer: _planned(interventions, layer, phase, info) for layer in layers} for phase in Phase),
        key=lambda doses: sum(doses.values()),
    )
    total = sum(planned.values())
    if total <= guard.bound:
        return
    where = [layer for layer, dose in planned.items() if dose]
    at = f"layer {where[0]}" if len(where) == 1 else f"{len(where)} layers from {where[0]} to {where[-1]} together"
    message = f"the planned relative dose at {at} is {total:.2f}, beyond the bound of {guard.bound:g}"
    if guard.action == "refuse":
        raise DoseExceeded(message, param="steering")
    effect = "the change is scaled down where it exceeds the bound" if guard.action == "clamp" else "text may break"
    warn(f"{message}: {effect}")


def _planned(interventions: Sequence[Intervention], layer: int, phase: Phase, info: ModelInfo) -> float:
    """The dose that is known beforehand at a layer in a phase, as if every window covered the whole phase.

    Constant changes are summed as vectors. Of conditional ones only the largest counts, since it is not known which of
    their conditions hold together.
    """
    acting = [one for one in interventions if layer in one.parameters and phase in SCOPE_PHASES[one.spec.scope.tokens]]
    constant = [one for one in acting if is_constant(one.spec)]
    total = 0.0
    if constant and info.typical_norms:
        change = torch.stack([static_change(one, layer) for one in constant]).sum(dim=0)
        total += float(change.norm()) / info.typical_norms[layer]
    others = [one for one in acting if not is_constant(one.spec)]
    doses = [(one.condition, one.planned_dose.get(layer, 0.0) * _largest_weight(one, phase)) for one in others]
    always = sum(dose for condition, dose in doses if condition is None)
    return total + always + max((dose for condition, dose in doses if condition is not None), default=0.0)


def _largest_weight(one: Intervention, phase: Phase) -> float:
    """The largest magnitude of the schedule's weight in a phase; the scopes of prompts have no schedule."""
    schedule = one.spec.schedule
    fixed = schedule.kind in ("constant", "warmup") or one.spec.scope.tokens in ("prompt", "last")
    return 1.0 if fixed or phase is not Phase.GENERATED else max(1.0, abs(schedule.to))


def shared_strengths(
    item: InterventionSpec, vector: ConceptVector, layers: Sequence[int], norms: Sequence[float]
) -> dict[int, float]:
    """Returns the strength at each of the layers, in the unit of the item.

    Each layer plans the same relative dose, and together they plan what `item.strength` plans at the recommended layers of
    the vector. norms: the typical |r| of every layer of the model, empty where they were not measured. Raises InvalidRequest without
    them, unless the unit is `relative`.
    """
    if item.unit != "relative" and not norms:
        raise InvalidRequest(
            f"'share_dose' in unit {item.unit!r} needs the typical norms of the model, which were not measured; use unit "
            "'relative'",
            param="share_dose",
        )

    def dose(layer: int) -> float:
        """The planned relative dose of strength 1."""
        return 1.0 if item.unit == "relative" else unit_size(item, vector.at(layer)) / norms[layer]

    share = item.strength * sum(map(dose, vector.recommended_layers())) / len(layers)
    return {layer: share / dose(layer) for layer in layers}
