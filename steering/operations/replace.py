"""replace: moves the component of one concept onto another direction."""

from typing import ClassVar

from steering.operations.base import Operation
from steering.rowwise import dot
from steering.shapes import Directions, Parameters, Residual
from steering.spec import InterventionSpec
from steering.vectors import LayerDirection


class Replace(Operation):
    """r' = r + t p_a (g d_b - d_a), p_a = r . d_a. Nothing outside span(d_a, d_b) changes."""

    name: ClassVar[str] = "replace"
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
