"""Recursive feature machine: a kernel classifier that learns which directions it depends on."""

from typing import ClassVar

import torch

from steering.errors import InvalidRequest
from steering.extraction.base import ExtractionMethod, Negatives, Positives, check_activations, orient
from steering.shapes import Direction, Float, Tensor
from steering.vectors import LayerDirection

ROUNDS = 4
"""Fits of the classifier; each takes its metric from the gradients of the one before. Published uses have 3 to 10."""
RIDGE = 1.0
"""Added to the kernel, which is 1 on its diagonal. With less the classifier follows single examples, and so do its gradients."""
WIDTH = 5.0
"""L, as a multiple of the median distance."""
APART = 1e-9
"""Share of the largest distance up to which two rows are equal: what rounding leaves between them points nowhere."""
MOST = 384
"""Examples of a class that are used, evenly spaced: the work grows with the cube of their number."""


class Rfm(ExtractionMethod):
    """d is the first eigenvector of the average gradient outer product of a kernel classifier (Radhakrishnan et al., Science 2024;
    for language models Beaglehole et al., arXiv 2502.03708).

    Kernel ridge regression of the labels with K(x, z) = exp(-|x - z|_M / L), M = I at first; then M = mean of grad f grad f^T over
    the examples, and again. L is WIDTH median distances of rows that differ. Everything is computed in the span of the gradients, so that no (d_model,
    d_model) matrix is formed.
    """

    name: ClassVar[str] = "rfm"
    min_examples: ClassVar[int] = 2

    @staticmethod
    def fit(positive: Positives, negative: Negatives, paired: bool) -> LayerDirection:
        """positive (pos, d_model), negative (neg, d_model) -> LayerDirection. Pairing changes nothing."""
        check_activations(Rfm.name, Rfm.min_examples, positive, negative, paired)
        sides = [_spaced(side.double()) for side in (positive, negative)]
        rows, labels = (
            torch.cat(sides),
            torch.cat([torch.full((len(side),), 1.0 / len(side)) for side in sides]).double(),
        )
        labels[len(sides[0]) :] *= -1.0
        rows = rows - rows.mean(0)
        gradients = None
        for _ in range(ROUNDS):
            gradients = _gradients(rows, labels * len(rows) / 2, gradients)
        assert gradients is not None, "there is a round"
        direction: Direction = torch.linalg.svd(gradients, full_matrices=False).Vh[0]
        return orient(direction, positive, negative)


def _spaced(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "chosen d_model"]:
    if len(rows) <= MOST:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, MOST).round().long()]


def _gradients(
    rows: Float[Tensor, "row d_model"], labels: Float[Tensor, "row"], before: Float[Tensor, "row d_model"] | None
) -> Float[Tensor, "row d_model"]:
    """Returns grad f at each row, up to a common factor. before: gradients G of the round before, for M = G^T G; None: M = I."""
    seen = rows if before is None else rows @ before.T  # |x - z|_M is the distance of what M sees
    # the other way to compute them, by products, leaves noise between equal rows
    distances = torch.cdist(seen, seen, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances > APART * distances.max()
    if not bool(apart.any()):
        raise InvalidRequest("no direction stands out: all examples of both classes are equal", param="pairs")
    width = WIDTH * distances[apart].median()
    kernel = torch.exp(-distances / width)
    weights = torch.linalg.solve(kernel + RIDGE * torch.eye(len(rows), dtype=rows.dtype), labels)
    pulls = torch.where(apart, kernel * weights / distances.clamp_min(1e-300), 0.0)
    found = pulls @ rows - pulls.sum(1, keepdim=True) * rows  # sum_i a_i K_ji (x_i - x_j) / |x_i - x_j|_M
    found = found if before is None else found @ before.T @ before
    scaled: Tensor = found / found.norm().clamp_min(1e-300)
    return scaled
