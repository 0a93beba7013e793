"""Turns the interventions of a plan into edits by layer, and digests them: equal digests compute equal numbers on one model.

All edits of a layer read the same residual, so they have no order.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from steering.errors import InvalidRequest
from steering.model.hook_points import in_order, layer_of
from steering.operations import Edit
from steering.plan.scope import acts_on_prompt, counts_from_prompt_end
from steering.plan.types import (
    HEAD,
    LINEAR,
    RELU,
    ROTATE,
    ConditionTree,
    Edits,
    Intervention,
    ResolvedThreshold,
    SteeringPlan,
)
from steering.shapes import Direction, Float, Tensor
from steering.spec import InterventionSpec

RANK_TOLERANCE = 1e-4
"""Singular values below this share of the largest are noise of float32 directions, not directions of their own."""
_KINDS = {"linear": LINEAR, "relu": RELU, "rotate": ROTATE, "head": HEAD}


class EditBuilder:
    """Builds the edits of one plan. own: how many of the interventions, the first ones, are the request's."""

    def __init__(
        self, interventions: Sequence[Intervention], own: int, thresholds: Sequence[ResolvedThreshold]
    ) -> None:
        self._interventions, self._own, self._thresholds = interventions, own, thresholds
        # thresholds are hashed once, however many interventions refer to them
        self._tests = [_sha256(_threshold(threshold)) for threshold in thresholds]

    def layers(self, edits: Sequence[Mapping[int, tuple[Edit, ...]]]) -> dict[int, tuple[Edits, ...]]:
        """Returns the edits by point. edits: of each intervention, by point; those that change nothing are left out."""
        at_layer: dict[int, dict[int, tuple[Edit, ...]]] = {}
        for index, by_layer in enumerate(edits):
            for layer, written in by_layer.items():
                if acting := tuple(edit for edit in written if edit.acts and bool(edit.write.any())):
                    at_layer.setdefault(layer, {})[index] = acting
        return {layer: self._layer(layer, at_layer[layer]) for layer in sorted(at_layer, key=in_order)}

    def _layer(self, layer: int, edits: Mapping[int, tuple[Edit, ...]]) -> tuple[Edits, ...]:
        groups: dict[object, list[int]] = {}
        for index, written in edits.items():
            groups.setdefault(self._joins(index, written), []).append(index)
        built = [self._edits(layer, tuple(group), [edits[index] for index in group]) for group in groups.values()]
        return tuple(sorted(built, key=lambda one: (one.mandatory, one.prompt_key, one.key)))

    def _joins(self, index: int, written: tuple[Edit, ...]) -> object:
        """Returns a key that removals share which are carried out together over a basis; others have one of their own."""
        owner = self._interventions[index]
        other = owner.holds or owner.spec.strength_from is not None or owner.spec.operation == "apply"
        if len(written) > 1 or not _is_removal(written[0]) or other:
            return index
        return index >= self._own, written[0].weight, owner.spec.scope, owner.spec.schedule, owner.condition

    def _edits(self, layer: int, indices: tuple[int, ...], written: Sequence[tuple[Edit, ...]]) -> Edits:
        edits = written[0]
        if len(indices) > 1:
            basis = joint_basis([removal.write for (removal,) in written])
            edits = tuple(Edit(row, -row, weight=edits[0].weight) for row in basis)
        lengths = [1.0 if edit.kind == "rotate" else float(edit.write.norm()) for edit in edits]
        write = torch.stack([edit.write / length for edit, length in zip(edits, lengths, strict=True)])
        read = torch.stack([torch.zeros_like(edit.write) if edit.read is None else edit.read for edit in edits])
        numbers = [[edit.bias, edit.relative, edit.weight * n] for edit, n in zip(edits, lengths, strict=True)]
        tensors = write.to(torch.float32), read.to(torch.float32), torch.tensor(numbers)
        owner = self._interventions[indices[0]]
        if not all(bool(torch.isfinite(one).all()) for one in tensors):
            raise InvalidRequest(
                f"{owner.spec.operation} {owner.spec.vector} at layer {layer_of(layer)}: its numbers must fit into float32 (up to 3.4e38)",
                param="steering",
            )
        kinds, mandatory = tuple(_KINDS[edit.kind] for edit in edits), indices[0] >= self._own
        scope, tree = owner.spec.scope, self._tree(owner.condition)
        chosen = [scope.token_ids, scope.roles] if scope.token_ids or scope.roles else []
        change = [[digest(values) for values in tensors], kinds, mandatory, chosen, tree]
        window, phases = [scope.start or 0, scope.end], [sorted(set(scope.phase))] if scope.phase else []
        schedule = owner.spec.schedule.model_dump()
        key = _sha256([change, scope.tokens, window, schedule, repr(owner.holds.get(layer)), *phases])
        # on the prompt `all` is a window of `prompt`, and no schedule has begun
        prompt_key = _sha256([change, window]) if acts_on_prompt(owner, self._thresholds) else ""
        return Edits(key, prompt_key, indices, *tensors, kinds, mandatory)

    def _tree(self, tree: ConditionTree | None) -> object:
        """The content of a condition, whatever the numbers of its thresholds in this plan."""
        if tree is None:
            return None
        if tree.kind == "threshold":
            return self._tests[tree.threshold]
        return [tree.kind, *map(self._tree, tree.children)]


def fingerprinted(plan: SteeringPlan, model: str) -> SteeringPlan:
    """Returns a plan with its digests, which are empty where it does nothing. model: the fingerprint of the model.

    Windows that count from the prompt's end, roles, which token ids alone do not tell, and conditions that carry state
    from position to position are not shareable. A mean over the prompt needs the residuals of all its positions, which
    shared KV does not hold.
    """
    on_prompt = {layer: [one for one in edits if one.prompt_key] for layer, edits in plan.layers.items()}
    stateful = any(one.until is not None or one.at == "prompt_mean" for one in plan.thresholds)
    scopes = [plan.interventions[one.owner].spec.scope for edits in on_prompt.values() for one in edits]

    def of_keys(keys: Mapping[int, list[str]]) -> str:
        content = sorted((layer, found) for layer, found in keys.items() if found)
        return _sha256([model, plan.dose_bound, content]) if content else ""

    return replace(
        plan,
        fingerprint=of_keys({layer: [one.key for one in edits] for layer, edits in plan.layers.items()}),
        prompt_fingerprint=of_keys({layer: [one.prompt_key for one in edits] for layer, edits in on_prompt.items()}),
        reusable=not stateful and not any(map(counts_from_prompt_end, scopes)),
    )


def digest(values: Tensor) -> str:
    """Returns the digest of a tensor's float32 values."""
    return hashlib.sha256(values.to(torch.float32).contiguous().numpy().tobytes()).hexdigest()


def _threshold(one: ResolvedThreshold) -> list[object]:
    direction = digest(one.direction)
    return [one.score, one.layer, direction, repr(one.parameters), one.above, one.bound, one.until, one.at]


def _sha256(description: object) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def is_constant(edit: Edit, spec: InterventionSpec) -> bool:
    """Whether an edit adds the same vector to every residual in its scope."""
    varies = spec.when is not None or spec.hold is not None or spec.schedule.kind != "constant"
    return edit.read is None and edit.kind in ("linear", "relu") and edit.relative == 0.0 and not varies


def constant_change(edit: Edit) -> Direction:
    """Returns what a constant edit adds."""
    bias = max(edit.bias, 0.0) if edit.kind == "relu" else edit.bias
    change: Direction = edit.weight * bias * edit.write
    return change


def _is_removal(edit: Edit) -> bool:
    """Whether it removes a share of the component along one unit direction."""
    if edit.kind != "linear" or edit.read is None or edit.bias or edit.relative:
        return False
    return torch.equal(edit.read, -edit.write) and abs(float(edit.write.norm()) - 1.0) < RANK_TOLERANCE


def joint_basis(directions: Sequence[Direction]) -> Float[Tensor, "rank d_model"]:
    """Returns an orthonormal basis of the span, alike in any order; (nearly) dependent directions add no row."""
    rows = torch.stack(sorted(directions, key=digest))
    _, values, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    found: Tensor = basis[values > RANK_TOLERANCE * values[0]]
    return found.to(torch.float32)
