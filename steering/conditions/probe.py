"""probe: the calibrated probability of the concept, for vectors whose method fitted a probe."""

from typing import ClassVar

import torch

from steering.conditions.base import Condition
from steering.rowwise import dot
from steering.shapes import Parameters, Residual, Scores


class Probe(Condition):
    """score = sigmoid(w (r . c) + b), with the slope and offset the extraction fitted on the projection."""

    name: ClassVar[str] = "probe"
    parameters: ClassVar[tuple[str, ...]] = ("weight", "bias")

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        """residual and direction (token, d_model), parameters (token, 2) -> (token,)."""
        projection = dot(residual, direction)
        return torch.sigmoid(parameters[:, 0] * projection + parameters[:, 1])
