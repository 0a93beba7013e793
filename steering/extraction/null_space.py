"""A map that acts where the positives are and leaves the negatives as they are, by the null space of the negatives."""

from typing import ClassVar

import numpy as np
import torch

from steering.errors import InvalidRequest
from steering.extraction.base import NOISE_FLOOR, MeanDifference, Negatives, Positives
from steering.maps import LowRankMap
from steering.vectors import LayerDirection

SPARED = 0.95
"""Share of the variance of the negatives in whose directions the map reads nothing."""
RIDGE = 0.1
"""Penalty of the regression, as a share of the mean squared length of its rows."""


class NullSpace(MeanDifference):
    """r' = r + s kappa d (w . (r - m-)): w . (x - m-) is about 1 for positives x, and w reads no direction in which the negatives
    vary. AlphaSteer (Sheng et al., arXiv 2506.07022), whose target is one steering vector, so that its map has rank 1.

    Positives are the texts on which to act, such as harmful requests, negatives the ones to leave alone. w is fitted by ridge
    regression in the space across the leading principal directions of the negatives. What is steered is their mean difference;
    `strength_from` scales any other vector by its score.
    """

    name: ClassVar[str] = "null_space"
    min_examples: ClassVar[int] = 4

    @staticmethod
    def fit_map(
        positive: Positives, negative: Negatives, paired: bool, found: LayerDirection
    ) -> tuple[LowRankMap, float]:
        """See the class. The map is of rank 1 as it is, so the share kept is 1."""
        from sklearn.linear_model import Ridge  # noqa: PLC0415 - takes a second to import

        upper, lower = positive.double(), negative.double()
        middle = lower.mean(0)
        noise = NOISE_FLOOR * float(upper.norm(dim=1).median())
        _, sizes, basis = torch.linalg.svd(lower - middle, full_matrices=False)
        energy = sizes.square().cumsum(0)
        spared = basis[: int((energy < SPARED * energy[-1]).sum()) + 1]
        spared = spared[sizes[: len(spared)] > noise * len(lower) ** 0.5]  # equal negatives vary in no direction
        rows = upper - middle
        rows = rows - rows @ spared.T @ spared
        length = float(rows.square().sum(1).mean())
        if not length > noise**2:
            raise InvalidRequest(
                "the positives differ from the negatives only where the negatives vary themselves, so no map spares them",
                param="pairs",
            )
        model = Ridge(RIDGE * length, fit_intercept=False).fit(rows.numpy(), np.ones(len(rows)))
        weights = torch.from_numpy(model.coef_)
        weights = weights / (rows @ weights).mean()  # the mean positive gets the whole step
        write = found.scale * found.direction[None]
        return LowRankMap.of(weights[None], write, -(weights @ middle)[None]), 1.0
