"""add: r' = r + a d. The amount a is signed, in residual units."""

from typing import ClassVar

from steering.operations.base import Wish
from steering.shapes import Directions, Parameters, Residual


class Add:
    """r' = r + a d (Turner et al., arXiv 2308.10248; Panickssery et al., arXiv 2312.06681). Amount 0 is the identity."""

    name: ClassVar[str] = "add"
    parameters: ClassVar[tuple[str, ...]] = ("amount",)
    scaled: ClassVar[frozenset[str]] = frozenset({"amount"})
    weighted: ClassVar[str] = "amount"
    fields: ClassVar[frozenset[str]] = frozenset()
    required: ClassVar[frozenset[str]] = frozenset()
    merges: ClassVar[bool] = False

    @staticmethod
    def resolve(wish: Wish) -> tuple[float, ...]:
        """(amount,) = (strength * unit_size,)."""
        return (wish.strength * wish.unit_size,)

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model), directions (token, 1, d_model), parameters (token, 1)."""
        return residual + parameters[:, :1] * directions[:, 0]
