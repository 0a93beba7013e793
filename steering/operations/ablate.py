"""ablate: r' = r - t (r Q^T) Q. Share 1 leaves nothing of the directions; several at a layer are removed jointly."""

from typing import ClassVar

from steering.rowwise import dot
from steering.shapes import Directions, Parameters, Residual
from steering.spec import InterventionSpec
from steering.vectors import LayerDirection


class Ablate:
    """Removes the share t of the component in span(Q), Q (k, d_model) orthonormal (Arditi et al., arXiv 2406.11717)."""

    name: ClassVar[str] = "ablate"
    parameters: ClassVar[tuple[str, ...]] = ("share",)
    scaled: ClassVar[frozenset[str]] = frozenset()
    weighted: ClassVar[str] = "share"
    fields: ClassVar[frozenset[str]] = frozenset()
    required: ClassVar[frozenset[str]] = frozenset()
    static: ClassVar[bool] = False
    merges: ClassVar[bool] = True

    @staticmethod
    def resolve(spec: InterventionSpec, entry: LayerDirection, target: LayerDirection | None) -> tuple[float, ...]:
        """(share,) = (strength,)."""
        return (spec.strength,)

    @staticmethod
    def planned_dose(parameters: tuple[float, ...], norm: float | None) -> float | None:
        """None: the component that is removed is not known before the residual is."""
        return None

    @staticmethod
    def apply(residual: Residual, directions: Directions, parameters: Parameters) -> Residual:
        """residual (token, d_model), directions (token, k, d_model) orthonormal or zero rows, parameters (token, 1)."""
        components = dot(residual.unsqueeze(1), directions)
        return residual - parameters[:, :1] * (components.unsqueeze(-1) * directions).sum(dim=1)
