"""AffineMap: a ridge regression from one model's residuals to another's, fitted on texts that both have read.

Directions are carried by its linear part. Linear maps between residual streams, and vectors carried by them: Oozeer et al.,
arXiv 2503.04429.
"""

from dataclasses import dataclass

import numpy as np
import torch

from steering.auroc import Numbers
from steering.shapes import Direction, Float, Tensor

PENALTIES = tuple(10.0**power for power in range(-6, 2))
"""Ridge penalties that are tried, as multiples of the number of texts times the mean variance of an input dimension."""
HELD = 5
"""Every fifth text is held out to measure the fit."""


@dataclass(frozen=True, slots=True, eq=False)
class AffineMap:
    """y = x @ weight + bias. penalty: one of PENALTIES. explained: share of the variance of held-out residuals."""

    weight: Float[Tensor, "d_from d_to"]
    bias: Float[Tensor, "d_to"]
    penalty: float
    explained: float

    def carry(self, direction: Direction) -> Direction:
        """Returns the change of y by a change of x along a direction, in the units of y per unit of x; not of unit length."""
        carried: Direction = (direction.double() @ self.weight).float()
        return carried


def fit_map(source: Float[Tensor, "row d_from"], target: Float[Tensor, "row d_to"], rows: int = 1) -> AffineMap:
    """Fits by least squares with a ridge penalty, which the errors at texts left out one at a time choose; measured on held-out
    texts, then fitted on all of them. rows: neighbouring rows that are of one text."""
    x, y = source.double().numpy(), target.double().numpy()
    held = np.arange(len(x)) // rows % HELD == HELD - 1
    weight, bias, _ = _ridge(x[~held], y[~held], rows)
    errors = ((y[held] - x[held] @ weight - bias) ** 2).sum()
    spread = ((y[held] - y[~held].mean(0)) ** 2).sum()
    weight, bias, penalty = _ridge(x, y, rows)
    explained = float(1.0 - errors / spread) if spread > 0.0 else 0.0
    return AffineMap(torch.from_numpy(weight), torch.from_numpy(bias), penalty, explained)


def _ridge(x: Numbers, y: Numbers, rows: int) -> tuple[Numbers, Numbers, float]:
    """Returns weight, bias and the one of PENALTIES with the smallest error at texts that are left out one at a time.

    A text is left out with all its rows: with a row of the text itself among those that are fitted, its other row looks
    as if it were predicted. H = U S U^T + 1/n is the hat matrix of the regression, and with the rows g of a text left
    out its errors are (I - H_gg)^-1 (y - H y)_g.
    """
    unit = max(float(x.var(0).mean()) * len(x), 1e-12)
    left, sizes, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    centred, texts = y - y.mean(0), left.reshape(-1, rows, len(sizes))
    inside = left.T @ centred

    def error(penalty: float) -> float:
        shares = sizes**2 / (sizes**2 + penalty * unit)
        missed = (centred - left @ (shares[:, None] * inside)).reshape(-1, rows, y.shape[1])
        hat = (texts * shares) @ texts.transpose(0, 2, 1) + 1.0 / len(x)
        return float((np.linalg.solve(np.eye(rows) - hat, missed) ** 2).sum())

    best = min(PENALTIES, key=error)
    weight = right.T @ ((sizes / (sizes**2 + best * unit))[:, None] * inside)
    return weight, y.mean(0) - x.mean(0) @ weight, best
