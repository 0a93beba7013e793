"""AffineMap: a ridge regression from one model's residuals to another's, fitted on texts that both have read.

Directions are carried by its linear part. Linear maps between residual streams, and vectors carried by them: Oozeer et al.,
arXiv 2503.04429.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import RidgeCV

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
    """Fits by least squares with a ridge penalty, which leave-one-out errors choose; measured on held-out texts, then fitted on
    all of them. rows: neighbouring rows that are of one text."""
    x, y = source.double().numpy(), target.double().numpy()
    held = np.arange(len(x)) // rows % HELD == HELD - 1
    fitted, _ = _ridge(x[~held], y[~held])
    errors = ((y[held] - fitted.predict(x[held])) ** 2).sum()
    spread = ((y[held] - y[~held].mean(0)) ** 2).sum()
    whole, penalty = _ridge(x, y)
    return AffineMap(
        torch.from_numpy(np.ascontiguousarray(whole.coef_.T)),
        torch.from_numpy(np.asarray(whole.intercept_)),
        penalty,
        float(1.0 - errors / spread) if spread > 0.0 else 0.0,
    )


def _ridge(x: Numbers, y: Numbers) -> tuple[RidgeCV, float]:
    """Returns the regression and which of PENALTIES it has chosen."""
    unit = max(float(x.var(0).mean()) * len(x), 1e-12)
    found = RidgeCV(alphas=[penalty * unit for penalty in PENALTIES])
    found.fit(x, y)
    return found, float(found.alpha_) / unit
