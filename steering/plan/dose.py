"""The dose guard: compares what is planned with the bound, and divides the dose of one add over its layers."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import pi, sin
from typing import TypeAlias

import torch

from steering.errors import DoseExceeded, InvalidRequest
from steering.model.hook_points import only_residual
from steering.model.info import ModelInfo
from steering.operations.base import Edit, unit_size
from steering.plan.edits import constant_change, is_constant
from steering.plan.scope import SCOPE_PHASES, Phase, largest_weight, positions_key
from steering.plan.types import DoseGuard, Intervention
from steering.shapes import Direction
from steering.spec import InterventionSpec
from steering.vectors import ConceptVector

EditsByLayer: TypeAlias = Mapping[int, tuple[Edit, ...]]
"""The edits of one intervention."""
TOGETHER = 8
"""Sums of which every combination is tried."""


def planned_dose(edits: tuple[Edit, ...], norm: float | None) -> float | None:
    """Returns |r' - r| / |r| of the edits of one intervention at a layer, as far as it is known before r. norm: the
    typical |r| of the layer, None if not measured. None for edits that read r."""
    total = 0.0
    for edit in edits:
        if edit.kind == "head":
            return None
        if edit.kind == "rotate":  # the chord of the angle, whatever the norm: it is kept
            total += 2.0 * sin(min(abs(edit.weight), pi) / 2.0)
        elif edit.read is not None or (norm is None and edit.bias):
            return None
        else:
            amount = abs(edit.relative) + (abs(edit.bias) / norm if norm else 0.0)
            total += amount * abs(edit.weight) * float(edit.write.norm())
    return total


def check_planned_dose(
    interventions: Sequence[Intervention],
    edits: Sequence[EditsByLayer],
    info: ModelInfo,
    guard: DoseGuard,
    warn: Callable[[str], None],
) -> None:
    """Warns where the planned dose is beyond the bound, or raises DoseExceeded, as the guard says."""
    if guard.action == "off":
        return
    layers = sorted({layer for one in edits for layer in one if only_residual((layer,))})
    written = list(zip(interventions, edits, strict=True))
    planned = max(
        ({layer: _planned(written, layer, phase, info) for layer in layers} for phase in Phase),
        key=lambda doses: sum(doses.values()),
    )
    total, bound, action = sum(planned.values()), guard.bound, guard.action
    if total <= bound and guard.warned is not None:
        bound, action = guard.warned, "warn"
    if total <= bound:
        return
    where = [layer for layer, dose in planned.items() if dose]
    at = f"layer {where[0]}" if len(where) == 1 else f"{len(where)} layers from {where[0]} to {where[-1]} together"
    message = f"the planned relative dose at {at} is {total:.2f}, beyond the bound of {bound:g}"
    if action == "refuse":
        raise DoseExceeded(message, param="steering")
    effect = "the change is scaled down where it exceeds the bound" if action == "clamp" else "text may break"
    warn(f"{message}: {effect}")


def _planned(written: Sequence[tuple[Intervention, EditsByLayer]], layer: int, phase: Phase, info: ModelInfo) -> float:
    """Returns the dose known beforehand at a layer in a phase, as if windows covered it. Constant changes at the same positions are summed
    as vectors, of these sums those that are longest together, as it is not known which meet; of conditional changes the largest counts."""
    acting = [
        (one, by_layer[layer], all(is_constant(edit, one.spec) for edit in by_layer[layer]))
        for one, by_layer in written
        if layer in by_layer and phase in SCOPE_PHASES[one.spec.scope.tokens]
    ]
    constant: dict[object, list[Direction]] = {}
    for one, edits, always in acting:
        if always:
            constant.setdefault(positions_key(one.spec.scope), []).extend(map(constant_change, edits))
    total = 0.0
    if constant and info.typical_norms:
        changes = torch.stack([torch.stack(one).sum(dim=0) for one in constant.values()])
        some = torch.tensor([*product((0.0, 1.0), repeat=min(len(changes), TOGETHER))], dtype=changes.dtype)
        products = changes[:TOGETHER] @ changes[:TOGETHER].T
        longest = (some @ products * some).sum(dim=1).max().sqrt() + changes[TOGETHER:].norm(dim=1).sum()
        total += float(longest) / info.typical_norms[layer]
    others = [one for one, _, always in acting if not always]
    doses = [(one.condition, one.planned_dose.get(layer, 0.0) * largest_weight(one.spec, phase)) for one in others]
    unconditional = sum(dose for condition, dose in doses if condition is None)
    return total + unconditional + max((dose for condition, dose in doses if condition is not None), default=0.0)


def shared_strengths(
    item: InterventionSpec, vector: ConceptVector, layers: Sequence[int], norms: Sequence[float]
) -> dict[int, float]:
    """Returns the strength at each layer, in the unit of the item, so that all plan the same relative dose, together
    that of `item.strength` at the recommended layers. norms: typical |r|. Raises InvalidRequest where they are
    needed and not known."""
    if item.unit != "relative" and not norms:
        raise InvalidRequest(
            f"'share_dose' in unit {item.unit!r} needs the typical norms of the model, which were not measured; use unit "
            "'relative'",
            param="share_dose",
        )

    def dose(layer: int) -> float:  # of strength 1
        return 1.0 if item.unit == "relative" else unit_size(item, vector.at(layer)) / norms[layer]

    share = item.strength * sum(map(dose, vector.recommended_layers())) / len(layers)
    return {layer: share / dose(layer) for layer in layers}
