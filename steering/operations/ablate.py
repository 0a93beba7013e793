"""ablate: r' = r - t (r Q^T - m) Q. Share 1 sets the component to m; several at a layer are set jointly."""

from collections.abc import Mapping
from typing import ClassVar

from steering.errors import InvalidRequest
from steering.operations.base import Operation
from steering.rowwise import dot
from steering.shapes import Directions, Parameters, Residual
from steering.spec import InterventionSpec
from steering.vectors import LayerDirection


class Ablate(Operation):
    """Removes the share t of the component in span(Q), Q (k, d_model) orthonormal (Arditi et al., arXiv 2406.11717).

    With target `middle` the component of one direction is set to the middle of the poles instead of 0.
    """

    name: ClassVar[str] = "ablate"
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
