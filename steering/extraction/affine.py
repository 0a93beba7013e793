"""Affine transport: carries the mean and the spread of the negatives to those of the positives, direction by direction."""

from typing import ClassVar

import torch

from steering.extraction.base import NOISE_FLOOR, Groups, MeanDifference, Negatives, Positives
from steering.maps import LowRankMap
from steering.spec import MAX_RANK
from steering.vectors import LayerDirection


class Affine(MeanDifference):
    """p' = m+ + (s+ / s-) (p - m-) along each of up to 16 directions: optimal transport of one Gaussian to another in one
    dimension, as Linear-AcT does for every neuron (Rodriguez et al., arXiv 2410.23054).

    The first direction is the mean difference, along which the means differ; the others are across it, where the means are
    equal: those along which the variances differ most, the eigenvectors of the difference of the covariances. The spreads s
    are shrunk together by the mean variance of both, because few examples leave directions in which one class hardly varies.
    Along a direction in which the negatives do not vary, the map shifts them and stretches nothing.
    """

    name: ClassVar[str] = "affine"
    min_examples: ClassVar[int] = 4

    @staticmethod
    def fit_map(
        positive: Positives, negative: Negatives, paired: bool, found: LayerDirection, groups: Groups
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
        variances = [(rows @ directions.T).square().sum(0) / (len(rows) - 1) for rows in centred]
        ratio = ((variances[0] + floor) / (variances[1] + floor)).sqrt()
        stretch = torch.where(variances[1] > noise**2, ratio - 1.0, 0.0)
        offset = directions @ middles[0] - (stretch + 1.0) * (directions @ middles[1])
        changes = ((lower @ directions.T) * stretch + offset).square().sum(0)
        kept = torch.cat(
            [torch.zeros(1, dtype=torch.int64), 1 + changes[1:].topk(min(MAX_RANK - 1, len(turned))).indices]
        )
        chosen = LowRankMap.of(stretch[kept, None] * directions[kept], directions[kept], offset[kept])
        return chosen, float(changes[kept].sum() / changes.sum())
