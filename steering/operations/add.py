"""add: r' = r + a d. The amount a is signed, in residual units."""

from collections.abc import Mapping
from typing import ClassVar

from steering.operations.base import Operation, unit_size
from steering.shapes import Directions, Parameters, Residual
from steering.spec import InterventionSpec
from steering.vectors import LayerDirection


class Add(Operation):
    """r' = r + a d (Turner et al., arXiv 2308.10248; Panickssery et al., arXiv 2312.06681). Amount 0 is the identity."""

    name: ClassVar[str] = "add"
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
