"""The operations that come with the package."""

from collections.abc import Mapping
from math import inf, pi, radians, sin
from typing import ClassVar

import torch

from steering.errors import InvalidRequest
from steering.operations.base import Operation, unit_size
from steering.rowwise import dot
from steering.shapes import Directions, Parameters, Residual
from steering.spec import InterventionSpec
from steering.vectors import LayerDirection


class Add(Operation):
    """r' = r + a d (Turner et al., arXiv 2308.10248; Panickssery et al., arXiv 2312.06681). Amount a is signed, in
    residual units; 0 is the identity."""

    parameters: ClassVar[tuple[str, ...]] = ("amount",)
    scaled: ClassVar[frozenset[str]] = frozenset({"amount"})
    weighted: ClassVar[str] = "amount"
    fields: ClassVar[frozenset[str]] = frozenset({"hold", "share_dose"})
    static: ClassVar[bool] = True

    @staticmethod
    def resolve(spec: InterventionSpec, entry: LayerDirection, target: LayerDirection | None) -> tuple[float, ...]:
        """(amount,) = (strength * unit_size,)."""
        return (spec.strength * unit_size(spec, entry),)

    @staticmethod
    def planned_dose(parameters: tuple[float, ...], norm: float | None) -> float | None:
        """|amount| / |r|, since the direction is unit."""
        return None if norm is None else abs(parameters[0]) / norm

    @staticmethod
    def warnings(spec: InterventionSpec, entries: Mapping[int, LayerDirection]) -> tuple[str, ...]:
        """Warns of a set point on an axis that is not centred."""
        if spec.hold is None or all(entry.centred for entry in entries.values()):
            return ()
        return (
            f"{spec.vector} has no class means: the set point of 'hold' counts from the origin, not from their middle",
        )

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model), directions (token, 1, d_model), parameters (token, 1)."""
        return residual + parameters[:, :1] * directions[:, 0]


class Ablate(Operation):
    """r' = r - t (r Q^T - m) Q, Q (k, d_model) orthonormal (Arditi et al., arXiv 2406.11717).

    Removes the share t of the component in span(Q). Share 1 sets the component to m; several at a layer are set jointly.
    With target `middle` the component of one direction is set to the middle of the poles instead of 0.
    """

    parameters: ClassVar[tuple[str, ...]] = ("share", "middle")
    weighted: ClassVar[str] = "share"
    fields: ClassVar[frozenset[str]] = frozenset({"target"})

    @staticmethod
    def resolve(spec: InterventionSpec, entry: LayerDirection, target: LayerDirection | None) -> tuple[float, ...]:
        """(share, middle) = (strength, m or 0). Raises InvalidRequest for `middle` without class means."""
        if spec.target != "middle":
            return (spec.strength, 0.0)
        if not entry.centred:
            raise InvalidRequest(
                f"target 'middle' needs class means, which vector {spec.vector!r} does not have; use 'zero'",
                param="target",
            )
        return (spec.strength, entry.middle)

    @staticmethod
    def merges(parameters: tuple[float, ...]) -> bool:
        """Only removals: a value for each direction does not carry over to a joint basis."""
        return parameters[1] == 0.0

    @staticmethod
    def warnings(spec: InterventionSpec, entries: Mapping[int, LayerDirection]) -> tuple[str, ...]:
        """Warns where removing the component puts the residual beyond one of the vector's poles."""
        if spec.target == "middle":
            return ()
        scores = {layer: -entry.middle / entry.scale for layer, entry in entries.items() if entry.centred}
        beyond = ", ".join(f"{score:+.2f} at layer {layer}" for layer, score in scores.items() if abs(score) > 0.5)
        if not beyond:
            return ()
        return (
            f"ablate sets the component of {spec.vector} to 0, which lies beyond its poles (-0.5 and +0.5): score {beyond}; "
            "target 'middle' sets it between them",
        )

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model), directions (token, k, d_model) orthonormal, parameters (token, 2).

        middle applies to the first direction; only calls with middle 0 are merged over several.
        """
        components = dot(residual.unsqueeze(1).expand_as(directions), directions)
        removed = (components.unsqueeze(-1) * directions).sum(dim=1) - parameters[:, 1:2] * directions[:, 0]
        return residual - parameters[:, :1] * removed


class Clamp(Operation):
    """r' = r + t (min(max(p, low), high) - p) d, p = r . d. Inside the bounds it is the identity; t = 1 is idempotent.

    Keeps the projection between two bounds: a floor, a cap, or a pin when they are equal.
    """

    parameters: ClassVar[tuple[str, ...]] = ("low", "high", "share")
    scaled: ClassVar[frozenset[str]] = frozenset({"low", "high"})
    weighted: ClassVar[str] = "share"
    fields: ClassVar[frozenset[str]] = frozenset({"low", "high"})

    @staticmethod
    def resolve(spec: InterventionSpec, entry: LayerDirection, target: LayerDirection | None) -> tuple[float, ...]:
        """(low, high, share) in residual units; a missing bound is infinite. In unit `scale` bounds are centred on the poles.

        Raises InvalidRequest without any bound.
        """
        if spec.low is None and spec.high is None:
            raise InvalidRequest("clamp needs 'low', 'high' or both", param="low")
        size, middle = unit_size(spec, entry), entry.middle if spec.unit == "scale" else 0.0
        low = -inf if spec.low is None else spec.low * size + middle
        high = inf if spec.high is None else spec.high * size + middle
        if low > high:
            raise InvalidRequest(f"clamp needs low <= high, got {spec.low} and {spec.high}", param="low")
        return (low, high, spec.strength)

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model), directions (token, 1, d_model), parameters (token, 3)."""
        direction = directions[:, 0]
        projection = dot(residual, direction)
        bounded = projection.clamp(parameters[:, 0], parameters[:, 1])
        return residual + (parameters[:, 2] * (bounded - projection)).unsqueeze(-1) * direction


class Rotate(Operation):
    """phi = arccos(p / |r|), phi' = min(max(phi - theta, 0), pi), r' = |r| (cos phi' d + sin phi' u), u = unit of r - p d.

    Norm-preserving rotation toward d, in the plane of r and d (Vu & Nguyen, Angular Steering, arXiv 2510.26243; Selective Steering, arXiv 2601.19375).
    Identity for theta = 0 and where r is parallel to d, since no plane of rotation exists there.
    """

    parameters: ClassVar[tuple[str, ...]] = ("angle",)
    weighted: ClassVar[str] = "angle"
    fields: ClassVar[frozenset[str]] = frozenset({"degrees"})
    required: ClassVar[frozenset[str]] = frozenset({"degrees"})

    @staticmethod
    def resolve(spec: InterventionSpec, entry: LayerDirection, target: LayerDirection | None) -> tuple[float, ...]:
        """(angle,) = (strength * degrees in radians,). Raises InvalidRequest beyond 180 degrees."""
        assert spec.degrees is not None, "`degrees` is a required field"
        if abs(spec.degrees) > 180.0:
            raise InvalidRequest(f"degrees must lie between -180 and 180, got {spec.degrees}", param="degrees")
        return (spec.strength * radians(spec.degrees),)

    @staticmethod
    def planned_dose(parameters: tuple[float, ...], norm: float | None) -> float | None:
        """The chord of the angle, 2 sin(angle / 2), whatever the norm: it is kept."""
        return 2.0 * sin(min(abs(parameters[0]), pi) / 2.0)

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model), directions (token, 1, d_model), parameters (token, 1)."""
        direction, angle = directions[:, 0], parameters[:, 0]
        projection = dot(residual, direction)
        across = residual - projection.unsqueeze(-1) * direction
        norm, height = residual.norm(dim=-1), across.norm(dim=-1)
        # atan2 keeps the digits that arccos loses near 0 and pi
        phi = torch.atan2(height, projection)
        turned = (phi - angle).clamp(0.0, torch.pi)
        parallel = (height <= 1e-6 * norm) | (angle == 0.0)
        plane = across / torch.where(parallel, torch.ones_like(height), height).unsqueeze(-1)
        result = (norm * turned.cos()).unsqueeze(-1) * direction + (norm * turned.sin()).unsqueeze(-1) * plane
        return torch.where(parallel.unsqueeze(-1), residual, result)


class Replace(Operation):
    """r' = r + t p_a (g d_b - d_a), p_a = r . d_a: moves the component of one concept onto another direction.

    Nothing outside span(d_a, d_b) changes.
    """

    parameters: ClassVar[tuple[str, ...]] = ("share", "ratio")
    weighted: ClassVar[str] = "share"
    fields: ClassVar[frozenset[str]] = frozenset({"to"})
    required: ClassVar[frozenset[str]] = frozenset({"to"})

    @staticmethod
    def resolve(spec: InterventionSpec, entry: LayerDirection, target: LayerDirection | None) -> tuple[float, ...]:
        """(share, ratio) = (strength, kappa_b / kappa_a in unit `scale`, else 1)."""
        assert target is not None, "`to` is a required field"
        return (spec.strength, target.scale / entry.scale if spec.unit == "scale" else 1.0)

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model), directions (token, 2, d_model) as (from, to), parameters (token, 2)."""
        source, target = directions[:, 0], directions[:, 1]
        component = dot(residual, source)
        moved = parameters[:, 1:2] * target - source
        return residual + (parameters[:, 0] * component).unsqueeze(-1) * moved
