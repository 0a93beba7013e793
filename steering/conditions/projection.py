"""projection: the component along the vector in natural scales, centred on the poles."""

from typing import ClassVar

from steering.conditions.base import Condition
from steering.rowwise import dot
from steering.shapes import Parameters, Residual, Scores


class Projection(Condition):
    """score = (r . c - m) / kappa (Lee et al., conditional activation steering, arXiv 2409.05907, with a natural scale).

    The poles lie at +0.5 and -0.5; m is 0 for a vector without class means.
    """

    name: ClassVar[str] = "projection"
    parameters: ClassVar[tuple[str, ...]] = ("scale", "middle")

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        """residual and direction (token, d_model), parameters (token, 2) -> (token,)."""
        return (dot(residual, direction) - parameters[:, 1]) / parameters[:, 0]
