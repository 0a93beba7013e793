"""Extraction methods that fit a map beside the mean difference, which they inherit as their direction."""

from typing import ClassVar, TypeAlias

import torch

from steering.errors import InvalidRequest
from steering.extraction.base import NOISE_FLOOR, MeanDifference, Negatives, Positives, ridge
from steering.maps import LowRankMap
from steering.shapes import Float, Tensor
from steering.spec import MAX_RANK
from steering.vectors import LayerDirection

Square: TypeAlias = Float[Tensor, "n n"]
CLEAR = 0.5
"""Eigenvalue of what is removed from which on a direction is taken; softer ones would shrink what both classes have."""
EDGE = 1e-9
"""Distance of eigenvalues from 0 and 1 at which they are inverted."""
RIDGE = 0.1
"""Penalty of the regression, as a share of the mean squared length of its rows."""
SPARED = 0.95
"""Share of the variance of the negatives in whose directions the map reads nothing."""


class Affine(MeanDifference):
    """p' = m+ + (s+ / s-) (p - m-) along each of up to 16 directions: optimal transport of one Gaussian to another in one
    dimension, as Linear-AcT does for every neuron (Rodriguez et al., arXiv 2410.23054).

    The first direction is the mean difference, along which the means differ; the others are across it, where the means are
    equal: those along which the variances differ most, the eigenvectors of the difference of the covariances. The spreads s
    are shrunk together by the mean variance of both, because few examples leave directions in which one class hardly varies.
    Where the negatives do not vary at all, the map shifts them and stretches nothing.
    """

    name: ClassVar[str] = "affine"
    min_examples: ClassVar[int] = 4

    @staticmethod
    def fit_map(
        positive: Positives, negative: Negatives, paired: bool, found: LayerDirection
    ) -> tuple[LowRankMap, float]:
        """See the class. The share kept is that of 16 directions among all in which the examples vary."""
        upper, lower, first = positive.double(), negative.double(), found.direction.double()
        middles = upper.mean(0), lower.mean(0)
        centred = [rows - middle for rows, middle in zip((upper, lower), middles, strict=True)]
        across = [rows - (rows @ first)[:, None] * first for rows in centred]
        _, sizes, basis = torch.linalg.svd(torch.cat(across), full_matrices=False)
        noise = NOISE_FLOOR * float(torch.cat([upper, lower]).norm(dim=1).median())
        # of the space in which the examples vary, which does not have the first direction
        basis = basis[sizes > max(1e-6 * float(sizes[0]), noise)]
        covariances = [(rows @ basis.T).T @ (rows @ basis.T) / (len(rows) - 1) for rows in across]
        floor = float(sum(covariance.trace() for covariance in covariances)) / (2 * max(len(basis), 1))
        turned = torch.linalg.eigh(covariances[0] - covariances[1]).eigenvectors.T @ basis
        directions = torch.cat([first[None], turned])
        spreads = [((rows @ directions.T).square().sum(0) / (len(rows) - 1) + floor).sqrt() for rows in centred]
        stretch = torch.where(spreads[1] > noise, spreads[0] / spreads[1] - 1.0, 0.0)
        offset = directions @ middles[0] - (stretch + 1.0) * (directions @ middles[1])
        changes = ((lower @ directions.T) * stretch + offset).square().sum(0)
        kept = torch.cat(
            [torch.zeros(1, dtype=torch.int64), 1 + changes[1:].topk(min(MAX_RANK - 1, len(turned))).indices]
        )
        chosen = LowRankMap.of(stretch[kept, None] * directions[kept], directions[kept], offset[kept])
        return chosen, float(changes[kept].sum() / changes.sum())


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
        weights = ridge(rows, torch.ones(len(rows), dtype=rows.dtype), RIDGE * length)
        weights = weights / (rows @ weights).mean()  # the mean positive gets the whole step
        write = found.scale * found.direction[None]
        return LowRankMap.of(weights[None], write, -(weights @ middle)[None]), 1.0


def conceptor(rows: Float[Tensor, "row n"], aperture: float) -> Square:
    """Returns C = R (R + aperture^-2 I)^-1, R = rows^T rows / row: eigenvalues near 1 where the rows vary, near 0 where not."""
    correlation = rows.T @ rows / len(rows)
    eye = torch.eye(rows.shape[1], dtype=rows.dtype)
    return _symmetric(torch.linalg.solve(correlation + aperture**-2 * eye, correlation))


def negation(one: Square) -> Square:
    """Returns I - C: what C leaves out."""
    return torch.eye(len(one), dtype=one.dtype) - one


def conjunction(one: Square, other: Square) -> Square:
    """Returns (C^-1 + B^-1 - I)^-1: what both let through."""
    eye = torch.eye(len(one), dtype=one.dtype)
    return _symmetric(torch.linalg.inv(_inverse(one) + _inverse(other) - eye))


class Conceptor(MeanDifference):
    """r' = m+ + C (r - m+), C = C+ or not C-: projects softly on what the positives have or the negatives lack, around the mean of
    the positives. So r' - r = -D (r - m+) with D = C- and not C+, which is 0 where the negatives do not vary.

    C+ and C- are conceptors of the examples around m+; their aperture is one over the mean standard deviation of both in the space
    of the examples. Of D the map has the up to 16 eigenvectors with eigenvalues of CLEAR or more that change the negatives most.
    """

    name: ClassVar[str] = "conceptor"
    min_examples: ClassVar[int] = 4

    @staticmethod
    def fit_map(
        positive: Positives, negative: Negatives, paired: bool, found: LayerDirection
    ) -> tuple[LowRankMap, float]:
        """See the class. Raises InvalidRequest where no direction is clearly the negatives' alone."""
        middle = positive.double().mean(0)
        rows = [side.double() - middle for side in (positive, negative)]
        basis = torch.linalg.svd(torch.cat(rows), full_matrices=False).Vh
        inside = [side @ basis.T for side in rows]
        variance = sum(float(side.square().mean()) for side in inside) / 2
        upper, lower = (conceptor(side, variance**-0.5) for side in inside)
        values, vectors = torch.linalg.eigh(conjunction(lower, negation(upper)))
        changes = values.square() * (inside[1] @ vectors).square().sum(0)
        clear = (values >= CLEAR).nonzero()[:, 0]
        if not len(clear):
            raise InvalidRequest(
                "the negatives vary nowhere that the positives do not, so no conceptor separates them", param="pairs"
            )
        kept = clear[changes[clear].argsort(descending=True)[:MAX_RANK]]
        directions = vectors[:, kept].T @ basis
        removed = values[kept]
        bias = removed * (directions @ middle)
        return LowRankMap.of(-removed[:, None] * directions, directions, bias), float(
            changes[kept].sum() / changes.sum()
        )


def _symmetric(one: Square) -> Square:
    return (one + one.T) / 2


def _inverse(one: Square) -> Square:
    values, vectors = torch.linalg.eigh(one)
    inverse: Tensor = (vectors / values.clamp(EDGE, 1.0)) @ vectors.T
    return inverse


class Clas(MeanDifference):
    """r' = r + s (c . r + b) kappa d, with c and b learned for a given direction: the form of CLAS (arXiv 2604.24693).

    CLAS learns them by gradient through the model. Here they are fitted in closed form to activations: by ridge regression,
    c . x + b is how far x lies from the positive pole along d, in natural scales: (x+ - x-) . d / kappa for the negative text of
    a pair, (m+ - x-) . d / kappa for one without, and 0 for positives. So strength 1 moves a text as far as its pair says.
    """

    name: ClassVar[str] = "clas"
    min_examples: ClassVar[int] = 4

    @staticmethod
    def fit_map(
        positive: Positives, negative: Negatives, paired: bool, found: LayerDirection
    ) -> tuple[LowRankMap, float]:
        """See the class. The map is of rank 1 as it is, so the share kept is 1."""
        upper, lower, direction = positive.double(), negative.double(), found.direction.double()
        poles = upper if paired else upper.mean(0)
        lacking = (poles - lower) @ direction / found.scale
        rows, wanted = torch.cat([upper, lower]), torch.cat([torch.zeros(len(upper), dtype=torch.float64), lacking])
        middle, level = rows.mean(0), wanted.mean()
        centred = rows - middle
        penalty = RIDGE * float(centred.square().sum(1).mean())
        weights = ridge(centred, wanted - level, penalty)
        bias = (level - weights @ middle)[None]
        return LowRankMap.of(weights[None], found.scale * found.direction[None], bias), 1.0
