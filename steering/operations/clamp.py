"""clamp: keeps the projection between two bounds; a floor, a cap, or a pin when they are equal."""

from math import inf
from typing import ClassVar

from steering.errors import InvalidRequest
from steering.operations.base import Operation, unit_size
from steering.rowwise import dot
from steering.shapes import Directions, Parameters, Residual
from steering.spec import InterventionSpec
from steering.vectors import LayerDirection


class Clamp(Operation):
    """r' = r + t (min(max(p, low), high) - p) d, p = r . d. Inside the bounds it is the identity; t = 1 is idempotent."""

    name: ClassVar[str] = "clamp"
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
