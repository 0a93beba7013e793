"""A map that acts where the positives are and leaves the negatives as they are, by the null space of the negatives."""

from typing import ClassVar

import torch
from scipy.special import stdtrit

from steering.errors import InvalidRequest
from steering.extraction.base import NOISE_FLOOR, MeanDifference, Negatives, Positives
from steering.maps import LowRankMap
from steering.shapes import Float, Tensor
from steering.vectors import LayerDirection

SPARED = 0.95
"""Share of the variance of the negatives in whose directions the map reads nothing."""
RIDGE = 0.1
"""Penalty of the regression, as a share of the mean squared length of its rows."""
CHANCE = 0.05
"""Probability, at most, of a map at a layer where the positives and negatives do not differ."""
REFUSED = "the positives differ from the negatives only where the negatives vary themselves, so no map spares them"


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
        """See the class. The map is of rank 1 as it is, so the share kept is 1. Raises InvalidRequest where it would not spare
        the negatives: fitted on one half of the examples, the mean response of the positives of the other half is no higher above
        that of its negatives than these are spread, or than a one-sided t-test at CHANCE demands. The responses of both halves are
        as uncertain as those of one, because each half has a part in both fits."""
        upper, lower = positive.double(), negative.double()
        noise = NOISE_FLOOR * float(upper.norm(dim=1).median())
        weights, middle = _fitted(upper, lower, noise)
        gap = variance = error = freedom = 0.0
        for start in range(2):
            half, centre = _fitted(upper[start::2], lower[start::2], noise)
            above, below = ((rows[1 - start :: 2] - centre) @ half for rows in (upper, lower))
            gap += float(above.mean() - below.mean()) / 2
            variance += float(below.var(correction=0)) / 2
            free = len(above) + len(below) - 2
            squares = sum(float((rows - rows.mean()).square().sum()) for rows in (above, below))
            error += squares / free * (1 / len(above) + 1 / len(below)) / 2
            freedom += free / 2
        if not gap > variance**0.5:
            raise InvalidRequest(REFUSED, param="pairs")
        if not gap > float(stdtrit(freedom, 1 - CHANCE)) * error**0.5:
            given = f"{len(upper)} positive and {len(lower)} negative examples"
            reason = "do not show that the two differ where the negatives do not vary; more of them may"
            raise InvalidRequest(f"{given} {reason}", param="pairs")
        write = found.scale * found.direction[None]
        return LowRankMap.of(weights[None], write, -(weights @ middle)[None]), 1.0


def _fitted(upper: Float[Tensor, "pos d"], lower: Float[Tensor, "neg d"], noise: float) -> tuple[Tensor, Tensor]:
    """Returns w (d,) and m- (d,). The mean response of the positives is 1, each read by a regression without it: the response
    inside of the fit is near 1 whatever the examples are. noise: distance of activations that is rounding."""
    middle = lower.mean(0)
    _, sizes, basis = torch.linalg.svd(lower - middle, full_matrices=False)
    energy = sizes.square().cumsum(0)
    spared = basis[: int((energy < SPARED * energy[-1]).sum()) + 1]
    spared = spared[sizes[: len(spared)] > noise * len(lower) ** 0.5]  # equal negatives vary in no direction
    rows = upper - middle
    rows = rows - rows @ spared.T @ spared
    length = float(rows.square().sum(1).mean())
    left, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    shares = sizes.square() / (sizes.square() + RIDGE * length)
    inside, own = left @ (shares * left.sum(0)), left.square() @ shares
    step = float(((inside - own) / (1.0 - own)).mean())
    if not (length > noise**2 and step > 0.0):
        raise InvalidRequest(REFUSED, param="pairs")
    return right.T @ (sizes / (sizes.square() + RIDGE * length) * left.sum(0)) / step, middle
