"""Turns the interventions of a plan into edits by layer. All edits of a layer read the same residual, so they have no order."""

from collections.abc import Mapping, Sequence

import torch

from steering.operations import Edit
from steering.plan.fingerprint import EditKeys, digest
from steering.plan.types import LINEAR, RELU, ROTATE, Edits, Intervention, ResolvedThreshold
from steering.shapes import Direction, Float, Tensor
from steering.spec import InterventionSpec

RANK_TOLERANCE = 1e-4
"""Singular values below this share of the largest are noise of float32 directions, not directions of their own."""
_KINDS = {"linear": LINEAR, "relu": RELU, "rotate": ROTATE}


class EditBuilder:
    """Builds the edits of one plan. own: how many of the interventions, the first ones, are the request's."""

    def __init__(
        self, interventions: Sequence[Intervention], own: int, thresholds: Sequence[ResolvedThreshold]
    ) -> None:
        self._interventions, self._own = interventions, own
        self._keys = EditKeys(thresholds)

    def layers(self, edits: Sequence[Mapping[int, tuple[Edit, ...]]]) -> dict[int, tuple[Edits, ...]]:
        """Returns the edits by layer. edits: of each intervention, by layer; those that change nothing are left out."""
        at_layer: dict[int, dict[int, tuple[Edit, ...]]] = {}
        for index, by_layer in enumerate(edits):
            for layer, written in by_layer.items():
                if acting := tuple(one for one in written if one.acts and bool(one.write.any())):
                    at_layer.setdefault(layer, {})[index] = acting
        return {layer: self._layer(layer, found) for layer, found in sorted(at_layer.items())}

    def _layer(self, layer: int, edits: Mapping[int, tuple[Edit, ...]]) -> tuple[Edits, ...]:
        groups: dict[object, list[int]] = {}
        for index, written in edits.items():
            groups.setdefault(self._joins(index, written), []).append(index)
        built = [self._edits(layer, tuple(indices), [edits[one] for one in indices]) for indices in groups.values()]
        return tuple(sorted(built, key=lambda one: (one.mandatory, one.prompt_key, one.key)))

    def _joins(self, index: int, written: tuple[Edit, ...]) -> object:
        """Removals with an equal key are carried out together, over a basis of their span; others have a key of their own."""
        one = self._interventions[index]
        if len(written) > 1 or not _is_removal(written[0]) or one.holds:
            return index
        return index >= self._own, written[0].weight, one.spec.scope, one.spec.schedule, one.condition

    def _edits(self, layer: int, indices: tuple[int, ...], written: Sequence[tuple[Edit, ...]]) -> Edits:
        if len(indices) > 1:
            basis = joint_basis([edits[0].write for edits in written])
            edits = tuple(Edit(row, -row, weight=written[0][0].weight) for row in basis)
        else:
            edits = written[0]
        lengths = [1.0 if one.kind == "rotate" else float(one.write.norm()) for one in edits]
        write = torch.stack([one.write / length for one, length in zip(edits, lengths, strict=True)])
        read = torch.stack([torch.zeros_like(one.write) if one.read is None else one.read for one in edits])
        numbers = [[one.bias, one.relative, one.weight * n] for one, n in zip(edits, lengths, strict=True)]
        tensors = write.to(torch.float32), read.to(torch.float32), torch.tensor(numbers)
        kinds, mandatory = tuple(_KINDS[one.kind] for one in edits), indices[0] >= self._own
        keys = self._keys.of(self._interventions[indices[0]], layer, tensors, kinds, mandatory=mandatory)
        return Edits(*keys, indices, *tensors, kinds, mandatory)


def is_constant(edit: Edit, spec: InterventionSpec) -> bool:
    """Whether an edit adds the same vector to every residual in its scope."""
    varies = spec.when is not None or spec.hold is not None or spec.schedule.kind != "constant"
    return edit.read is None and edit.kind != "rotate" and edit.relative == 0.0 and not varies


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
    """Returns an orthonormal basis of the span, the same for any order of the directions.

    Directions that are (nearly) dependent do not add a row: QR would make one out of rounding noise.
    """
    rows = torch.stack(sorted(directions, key=digest))
    _, values, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    found: Tensor = basis[values > RANK_TOLERANCE * values[0]]
    return found.to(torch.float32)
