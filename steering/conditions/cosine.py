"""cosine: the angle between residual and vector, whatever the residual's length."""

from typing import ClassVar

import torch

from steering.conditions.base import Condition
from steering.rowwise import dot
from steering.shapes import Parameters, Residual, Scores


class Cosine(Condition):
    """score = (r . c) / |r|, between -1 and 1."""

    name: ClassVar[str] = "cosine"
    parameters: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def score(residual: Residual, direction: Residual, parameters: Parameters) -> Scores:
        """residual and direction (token, d_model), parameters (token, 0) -> (token,)."""
        norm: Scores = torch.linalg.vector_norm(residual, dim=-1)
        return dot(residual, direction) / norm.clamp_min(1e-12)
