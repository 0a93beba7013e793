"""Conceptors: soft projections on where activations vary, with `not` and `and` (Jaeger, arXiv 1403.3369; Postmus & Abreu,
arXiv 2410.16314)."""

from typing import ClassVar, TypeAlias

import torch

from steering.errors import InvalidRequest
from steering.extraction.base import MeanDifference, Negatives, Positives
from steering.maps import LowRankMap
from steering.shapes import Float, Tensor
from steering.spec import MAX_RANK
from steering.vectors import LayerDirection

Square: TypeAlias = Float[Tensor, "n n"]
CLEAR = 0.5
"""Eigenvalue of what is removed from which on a direction is taken; softer ones would shrink what both classes have."""
EDGE = 1e-9
"""Distance of eigenvalues from 0 and 1 at which they are inverted."""


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
