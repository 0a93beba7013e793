"""Relative dose before anything runs: what is planned against the model's typical norms, and the guard over it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import pi, sin
from typing import Literal

from steering.errors import DoseExceeded
from steering.model.info import ModelInfo
from steering.plan.types import LayerProgram, Step

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


def planned_dose(layer: int, step: Step, info: ModelInfo) -> float | None:
    """Relative dose of a step, where it is known before the residual is met; None where it is not."""
    weight = abs(step.parameters[0])
    if step.operation == "rotate":
        return 2.0 * sin(min(weight, pi) / 2.0)
    if step.operation != "add":
        return None
    if step.relative:
        return weight
    return weight / info.typical_norms[layer] if info.typical_norms else None


def guarded(
    layer: int, program: LayerProgram, info: ModelInfo, guard: DoseGuard, warn: Callable[[str], None]
) -> LayerProgram:
    """The program as the guard lets it pass. Raises DoseExceeded."""
    if program.opening is None or not info.typical_norms or guard.action == "off":
        return program
    dose = float(program.opening.norm(dim=1).max()) / info.typical_norms[layer]
    if dose <= guard.bound:
        return program
    said = f"the planned relative dose at layer {layer} is {dose:.2f}, beyond the bound of {guard.bound:g}"
    if guard.action == "refuse":
        raise DoseExceeded(said, param="steering")
    if guard.action == "warn":
        warn(f"{said}: text may break")
        return program
    share = guard.bound / dose
    warn(f"{said}: the adds there were scaled down by {share:.2f}")
    adds = tuple(replace(add, amount=add.amount * share) for add in program.opening_adds)
    return LayerProgram(program.opening * share, adds, program.steps)
