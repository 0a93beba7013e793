"""replace: carries the component of one concept over to another direction."""

from typing import ClassVar

from steering.operations.base import Wish
from steering.rowwise import dot
from steering.shapes import Directions, Parameters, Residual


class Replace:
    """r' = r + t p_a (g d_b - d_a), p_a = r . d_a. Nothing outside span(d_a, d_b) changes."""

    name: ClassVar[str] = "replace"
    parameters: ClassVar[tuple[str, ...]] = ("share", "ratio")
    scaled: ClassVar[frozenset[str]] = frozenset()
    weighted: ClassVar[str] = "share"
    fields: ClassVar[frozenset[str]] = frozenset({"to"})
    required: ClassVar[frozenset[str]] = frozenset({"to"})
    merges: ClassVar[bool] = False

    @staticmethod
    def resolve(wish: Wish) -> tuple[float, ...]:
        """(share, ratio) = (strength, kappa_b / kappa_a in unit `scale`, else 1)."""
        return (wish.strength, wish.ratio)

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model), directions (token, 2, d_model) as (from, to), parameters (token, 2)."""
        source, target = directions[:, 0], directions[:, 1]
        component = dot(residual, source)
        moved = parameters[:, 1:2] * target - source
        return residual + (parameters[:, 0] * component).unsqueeze(-1) * moved
