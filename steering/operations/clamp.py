"""clamp: keeps the projection between two bounds; a floor, a cap, or a pin when they are equal."""

from math import inf
from typing import ClassVar

from steering.errors import InvalidRequest
from steering.operations.base import Wish
from steering.rowwise import dot
from steering.shapes import Directions, Parameters, Residual


class Clamp:
    """r' = r + t (min(max(p, low), high) - p) d, p = r . d. Inside the bounds it is the identity; t = 1 is idempotent."""

    name: ClassVar[str] = "clamp"
    parameters: ClassVar[tuple[str, ...]] = ("low", "high", "share")
    scaled: ClassVar[frozenset[str]] = frozenset({"low", "high"})
    weighted: ClassVar[str] = "share"
    fields: ClassVar[frozenset[str]] = frozenset({"low", "high"})
    required: ClassVar[frozenset[str]] = frozenset()
    merges: ClassVar[bool] = False

    @staticmethod
    def resolve(wish: Wish) -> tuple[float, ...]:
        """(low, high, share) in residual units; a missing bound is infinite. Raises InvalidRequest without any bound."""
        if wish.low is None and wish.high is None:
            raise InvalidRequest("clamp needs 'low', 'high' or both", param="low")
        low = -inf if wish.low is None else wish.low * wish.unit_size
        high = inf if wish.high is None else wish.high * wish.unit_size
        if low > high:
            raise InvalidRequest(f"clamp needs low <= high, got {wish.low} and {wish.high}", param="low")
        return (low, high, wish.strength)

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model), directions (token, 1, d_model), parameters (token, 3)."""
        direction = directions[:, 0]
        projection = dot(residual, direction)
        bounded = projection.clamp(parameters[:, 0], parameters[:, 1])
        return residual + (parameters[:, 2] * (bounded - projection)).unsqueeze(-1) * direction
