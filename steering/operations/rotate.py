"""rotate: turns the residual by an angle toward the direction, in the plane of the two; the norm is kept."""

from math import pi, radians, sin
from typing import ClassVar

import torch

from steering.errors import InvalidRequest
from steering.operations.base import Operation
from steering.rowwise import dot
from steering.shapes import Directions, Parameters, Residual
from steering.spec import InterventionSpec
from steering.vectors import LayerDirection


class Rotate(Operation):
    """phi = arccos(p / |r|), phi' = min(max(phi - theta, 0), pi), r' = |r| (cos phi' d + sin phi' u), u = unit of r - p d.

    Norm-preserving rotation (Vu & Nguyen, Angular Steering, arXiv 2510.26243; Selective Steering, arXiv 2601.19375).
    Identity for theta = 0 and where r is parallel to d, since no plane of rotation exists there.
    """

    name: ClassVar[str] = "rotate"
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
