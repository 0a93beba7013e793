"""projection: the component along the vector in its natural scales."""

from typing import ClassVar

from steering.rowwise import dot
from steering.shapes import Parameters, Residual, Scores


class Projection:
    """score = (r . c) / kappa (Lee et al., conditional activation steering, arXiv 2409.05907, with a scale of its own)."""

    name: ClassVar[str] = "projection"
    parameters: ClassVar[tuple[str, ...]] = ("scale",)

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        """residual and direction (token, d_model), parameters (token, 1) -> (token,)."""
        return dot(residual, direction) / parameters[:, 0]
