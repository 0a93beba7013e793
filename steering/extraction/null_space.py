"""A map that acts where the positives are and leaves the negatives as they are, by the null space of the negatives."""

from typing import ClassVar

import torch
from scipy.special import stdtrit

from steering.errors import InvalidRequest
from steering.extraction.base import NOISE_FLOOR, Groups, MeanDifference, Negatives, Positives
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
        positive: Positives, negative: Negatives, paired: bool, found: LayerDirection, groups: Groups
    ) -> tuple[LowRankMap, float]:
        """See the class. The map is of rank 1 as it is, so the share kept is 1. Raises InvalidRequest for fewer than `min_examples`
        groups of a class, and where the map would not spare the negatives: fitted on one half of the groups, the mean response of the
        positives of the other half is no higher above that of its negatives than these are spread, or than a one-sided t-test at
        CHANCE demands, for which each group is one observation, its mean. The responses of both halves are as uncertain as those of
        one, because each half has a part in both fits."""
        upper, lower = positive.double(), negative.double()
        above_names, below_names = map(torch.from_numpy, groups)
        first = _first_half(above_names, below_names)
        noise = NOISE_FLOOR * float(upper.norm(dim=1).median())
        weights, middle = _fitted(upper, lower, above_names, noise)
        gap = variance = error = freedom = 0.0
        for one, other in (first, [~rows for rows in first]):
            half, centre = _fitted(upper[one], lower[other], above_names[one], noise)
            responses = (lower[~other] - centre) @ half
            above = _means((upper[~one] - centre) @ half, above_names[~one])
            below = _means(responses, below_names[~other])
            gap += float(above.mean() - below.mean()) / 2
            variance += float(_means((responses - below.mean()).square(), below_names[~other]).mean()) / 2
            free = len(above) + len(below) - 2
            squares = sum(float((rows - rows.mean()).square().sum()) for rows in (above, below))
            error += squares / free * (1 / len(above) + 1 / len(below)) / 2
            freedom += free / 2
        if not gap > variance**0.5:
            raise InvalidRequest(REFUSED, param="pairs")
        if not gap > float(stdtrit(freedom, 1 - CHANCE)) * error**0.5:
            given = f"{len(upper)} positive and {len(lower)} negative examples"
            reason = (
                "do not show that the two differ where the negatives do not vary; more of them, about more topics, may"
            )
            raise InvalidRequest(f"{given} {reason}", param="pairs")
        write = found.scale * found.direction[None]
        return LowRankMap.of(weights[None], write, -(weights @ middle)[None]), 1.0


def _first_half(*groups: Tensor) -> list[Tensor]:
    """Returns which positives and which negatives are fitted first, given their groups: those of every second group, counted among
    the groups that both classes have and then among the others of each class. Raises InvalidRequest for too few groups."""
    orders = [dict.fromkeys(side.tolist()) for side in groups]
    if min(map(len, orders)) < NullSpace.min_examples:
        raise InvalidRequest(
            f"method {NullSpace.name!r} needs texts about at least {NullSpace.min_examples} topics in each class, and equal texts are "
            f"about one; got {len(orders[0])} topics of positives and {len(orders[1])} of negatives",
            param="pairs",
        )
    both = dict.fromkeys(name for name in orders[0] if name in orders[1])
    chosen = {name for order in orders for name in [*both, *(one for one in order if one not in both)][::2]}
    return [torch.tensor([name in chosen for name in side.tolist()]) for side in groups]


def _means(responses: Float[Tensor, "row"], names: Tensor) -> Float[Tensor, "group"]:
    """Returns the mean response of each group; names (row,): the group of each row."""
    rows, counts = torch.unique(names, return_inverse=True, return_counts=True)[1:]
    means: Tensor = torch.zeros(len(counts), dtype=responses.dtype).index_add_(0, rows, responses) / counts
    return means


def _fitted(
    upper: Float[Tensor, "pos d"], lower: Float[Tensor, "neg d"], names: Tensor, noise: float
) -> tuple[Tensor, Tensor]:
    """Returns w (d,) and m- (d,). The mean response of the positives is 1, where each group (names (pos,)) is read by a regression
    without it: the response inside of the fit is near 1 whatever the examples are. noise: distance of activations that is rounding."""
    middle = lower.mean(0)
    _, sizes, basis = torch.linalg.svd(lower - middle, full_matrices=False)
    energy = sizes.square().cumsum(0)
    spared = basis[: int((energy < SPARED * energy[-1]).sum()) + 1]
    spared = spared[sizes[: len(spared)] > noise * len(lower) ** 0.5]  # equal negatives vary in no direction
    rows = upper - middle
    rows = rows - rows @ spared.T @ spared
    length = float(rows.square().sum(1).mean())
    if not length > noise**2:
        raise InvalidRequest(REFUSED, param="pairs")
    left, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    shares = sizes.square() / (sizes.square() + RIDGE * length)
    inside = left @ (shares * left.sum(0))
    steps = []
    for name in sorted(set(names.tolist())):
        group = names == name
        own = left[group] * shares @ left[group].T
        without = torch.linalg.solve(torch.eye(len(own), dtype=own.dtype) - own, inside[group] - own.sum(1))
        steps.append(float(without.mean()))
    step = sum(steps) / len(steps)
    if not step > 0.0:
        raise InvalidRequest(REFUSED, param="pairs")
    return right.T @ (sizes / (sizes.square() + RIDGE * length) * left.sum(0)) / step, middle
