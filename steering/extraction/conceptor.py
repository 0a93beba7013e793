"""Conceptors: soft projections on where activations vary, in closed form for one `and` the opposite of another (Jaeger, arXiv 1403.3369;
Postmus & Abreu, arXiv 2410.16314)."""

from typing import ClassVar

import torch

from steering.errors import InvalidRequest
from steering.extraction.base import Groups, MeanDifference, Negatives, Positives
from steering.maps import LowRankMap
from steering.spec import MAX_RANK
from steering.vectors import LayerDirection

CLEAR = 0.5
"""Eigenvalue of what is removed from which on a direction is taken; softer ones would shrink what both classes have."""


class Conceptor(MeanDifference):
    """r' = m+ + C (r - m+), C = C+ or not C-: projects softly on what the positives have or the negatives lack, around the mean of
    the positives. So r' - r = -D (r - m+) with D = C- and not C+, which is 0 where the negatives do not vary.

    C+ and C- are conceptors of the examples around m+; their aperture is one over the mean standard deviation of both in the space
    of the examples. With R the mean squares of these and v their mean variance, D = (v I + R- (I + R+ / v))^-1 R-. Of D the map has the up to 16 eigenvectors with eigenvalues of CLEAR or more that change the negatives most.
    """

    name: ClassVar[str] = "conceptor"
    min_examples: ClassVar[int] = 4

    @staticmethod
    def fit_map(
        positive: Positives, negative: Negatives, paired: bool, found: LayerDirection, groups: Groups
    ) -> tuple[LowRankMap, float]:
        """See the class. Raises InvalidRequest where no direction is clearly the negatives' alone."""
        middle = positive.double().mean(0)
        rows = [side.double() - middle for side in (positive, negative)]
        basis = torch.linalg.svd(torch.cat(rows), full_matrices=False).Vh
        inside = [side @ basis.T for side in rows]
        variance = sum(float(side.square().mean()) for side in inside) / 2
        upper, lower = (side.T @ side / len(side) for side in inside)
        eye = torch.eye(len(basis), dtype=basis.dtype)
        values, vectors = torch.linalg.eigh(
            torch.linalg.solve(variance * eye + lower @ (eye + upper / variance), lower)
        )
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
