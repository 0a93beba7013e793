"""rotate: turns the residual by an angle toward the direction, in the plane of the two; the norm is kept."""

from math import radians
from typing import ClassVar

import torch

from steering.errors import InvalidRequest
from steering.operations.base import Wish
from steering.rowwise import dot
from steering.shapes import Directions, Parameters, Residual


class Rotate:
    """phi = arccos(p / |r|), phi' = min(max(phi - theta, 0), pi), r' = |r| (cos phi' d + sin phi' u), u = unit of r - p d.

    Norm-preserving rotation (Vu & Nguyen, Angular Steering, arXiv 2510.26243; Selective Steering, arXiv 2601.19375).
    Identity for theta = 0 and where r is parallel to d, since no plane of rotation exists there.
    """

    name: ClassVar[str] = "rotate"
    parameters: ClassVar[tuple[str, ...]] = ("angle",)
    scaled: ClassVar[frozenset[str]] = frozenset()
    weighted: ClassVar[str] = "angle"
    fields: ClassVar[frozenset[str]] = frozenset({"degrees"})
    required: ClassVar[frozenset[str]] = frozenset({"degrees"})
    merges: ClassVar[bool] = False

    @staticmethod
    def resolve(wish: Wish) -> tuple[float, ...]:
        """(angle,) = (strength * degrees in radians,). Raises InvalidRequest without `degrees` or beyond a half turn."""
        if wish.degrees is None:
            raise InvalidRequest("rotate needs 'degrees', the angle toward the direction", param="degrees")
        if abs(wish.degrees) > 180.0:
            raise InvalidRequest(f"degrees must lie between -180 and 180, got {wish.degrees}", param="degrees")
        return (wish.strength * radians(wish.degrees),)

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model), directions (token, 1, d_model), parameters (token, 1)."""
        direction, angle = directions[:, 0], parameters[:, 0]
        projection = dot(residual, direction)
        across = residual - projection.unsqueeze(-1) * direction
        norm, height = residual.norm(dim=-1), across.norm(dim=-1)
        # atan2 keeps the digits that arccos loses near the poles
        phi = torch.atan2(height, projection)
        turned = (phi - angle).clamp(0.0, torch.pi)
        parallel = (height <= 1e-6 * norm) | (angle == 0.0)
        plane = across / torch.where(parallel, torch.ones_like(height), height).unsqueeze(-1)
        result = (norm * turned.cos()).unsqueeze(-1) * direction + (norm * turned.sin()).unsqueeze(-1) * plane
        return torch.where(parallel.unsqueeze(-1), residual, result)
