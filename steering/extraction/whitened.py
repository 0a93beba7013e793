"""whitened: the mean difference seen through the spread within the classes (linear discriminant analysis)."""

from typing import ClassVar

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf_shrinkage

from steering.errors import InvalidRequest
from steering.extraction.base import Direction, Negatives, Positives
from steering.extraction.orientation import check_activations_shape, mean_shift, orient
from steering.shapes import Activations, Tensor
from steering.shapes import Direction as DirectionVector

LEAST_SHRINKAGE = 1e-3
"""Ledoit-Wolf may say 0 for a handful of rows, where S would have no inverse."""


class Whitened:
    """w = S^-1 delta, S = (1 - l) S_within + l (tr S_within / d_model) I, l by Ledoit-Wolf; d = w / |w|.

    In pairs the two rows share their topic and are no two independent observations, so l is the mean of what each class
    asks for by itself; pooled rows would pass for twice the evidence. Reads well where the classes overlap and does not
    always steer best: the card tells.
    """

    name: ClassVar[str] = "whitened"
    needs_pairs: ClassVar[bool] = False
    least: ClassVar[int] = 4

    @staticmethod
    def fit(positive: Positives, negative: Negatives, paired: bool) -> Direction:
        """positive (pos, d_model), negative (neg, d_model) -> Direction. Solved in the small dual when examples are few."""
        check_activations_shape(Whitened.name, positive, negative, paired, Whitened.least)
        upper, lower = positive.double(), negative.double()
        within = torch.cat([upper - upper.mean(0), lower - lower.mean(0)])
        examples, d_model = within.shape
        mean_variance = float((within**2).sum()) / (examples * d_model)
        if mean_variance == 0.0:
            raise InvalidRequest(
                "the examples of each class are all alike, so 'whitened' has no spread to go by", param="method"
            )
        shrinkage = _shrinkage(within, classes=2 if paired else 1)
        values = _solve(within, (1.0 - shrinkage) / examples, shrinkage * mean_variance, mean_shift(positive, negative))
        return orient(values, positive, negative)


def _shrinkage(within: Activations, classes: int) -> float:
    """l, from the rows in `classes` equal parts."""
    parts = within.numpy(force=True).reshape(classes, -1, within.shape[1])
    return max(float(np.mean([ledoit_wolf_shrinkage(part, assume_centered=True) for part in parts])), LEAST_SHRINKAGE)


def _solve(within: Activations, share: float, ridge: float, delta: DirectionVector) -> DirectionVector:
    """(share W^T W + ridge I)^-1 delta for W (example, d_model): by Woodbury in (example, example) where that is smaller."""
    examples, d_model = within.shape
    if examples >= d_model:
        eye = torch.eye(d_model, dtype=within.dtype)
        solution: DirectionVector = torch.linalg.solve(share * within.T @ within + ridge * eye, delta)
        return solution
    if share <= 0.0:
        return delta / ridge
    gram = within @ within.T + (ridge / share) * torch.eye(examples, dtype=within.dtype)
    inner: Tensor = torch.linalg.solve(gram, within @ delta)
    return (delta - within.T @ inner) / ridge
