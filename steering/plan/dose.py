"""Relative dose before anything runs: what is planned against the model's typical norms, and the guard over it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from steering.errors import DoseExceeded
from steering.model.info import ModelInfo
from steering.plan.order import weight_index
from steering.plan.types import Intervention, LayerSteering

BOUND = 0.2
"""Relative dose at which perplexity reaches 1.5 times on half of the starter concepts (docs/dose_response.md)."""


@dataclass(frozen=True, slots=True)
class DoseGuard:
    """What happens when the planned relative dose of the adds at a layer is beyond `bound`.

    warn: the answer says so. limit: the adds at that layer are scaled down to the bound, and the answer says so.
    refuse: DoseExceeded. Each layer is judged alone; BOUND is where the embedded model's text breaks when one is steered.
    """

    bound: float = BOUND
    action: Literal["off", "warn", "limit", "refuse"] = "warn"


def guarded(
    interventions: Sequence[Intervention],
    layers: Mapping[int, LayerSteering],
    info: ModelInfo,
    guard: DoseGuard,
    warn: Callable[[str], None],
) -> list[Intervention]:
    """The interventions as the guard lets them pass. Raises DoseExceeded."""
    allowed = list(interventions)
    if not info.typical_norms or guard.action == "off":
        return allowed
    for layer, steering in layers.items():
        if steering.static_sum is None:
            continue
        dose = float(steering.static_sum.norm(dim=1).max()) / info.typical_norms[layer]
        if dose <= guard.bound:
            continue
        message = f"the planned relative dose at layer {layer} is {dose:.2f}, beyond the bound of {guard.bound:g}"
        if guard.action == "refuse":
            raise DoseExceeded(message, param="steering")
        if guard.action == "warn":
            warn(f"{message}: text may break")
            continue
        share = guard.bound / dose
        warn(f"{message}: the adds there were scaled down by {share:.2f}")
        for add in steering.static_adds:
            allowed[add.intervention] = _scaled(allowed[add.intervention], layer, share)
    return allowed


def _scaled(intervention: Intervention, layer: int, share: float) -> Intervention:
    parameters = list(intervention.parameters[layer])
    parameters[weight_index(intervention.operation)] *= share
    return replace(intervention, parameters={**intervention.parameters, layer: tuple(parameters)})
