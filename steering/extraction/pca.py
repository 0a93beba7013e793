"""pca: the line along which the two sides of the pairs spread the most."""

from typing import ClassVar

import torch

from steering.extraction.base import Direction, Negatives, Positives
from steering.extraction.orientation import check_activations_shape, orient
from steering.shapes import Activations, Tensor
from steering.shapes import Direction as DirectionVector


class Pca:
    """First principal direction of the pairs, each centred on its own middle (Zou et al., arXiv 2310.01405).

    Paired: Z = [(X+ - X-)/2 ; -(X+ - X-)/2], mean zero by construction, d its first right singular vector. Unpaired: Z is
    every row minus the middle of the class means. The pairs alone leave the sign open; delta . d > 0 fixes it.
    """

    name: ClassVar[str] = "pca"
    needs_pairs: ClassVar[bool] = False
    least: ClassVar[int] = 1

    @staticmethod
    def fit(positive: Positives, negative: Negatives, paired: bool) -> Direction:
        """positive (pos, d_model), negative (neg, d_model) -> Direction."""
        check_activations_shape(Pca.name, positive, negative, paired, Pca.least)
        upper, lower = positive.double(), negative.double()
        if paired:  # the mirrored half of Z has the same right singular vectors
            return orient(_first_right_singular_vector((upper - lower) / 2), positive, negative)
        centred = torch.cat([upper, lower]) - (upper.mean(0) + lower.mean(0)) / 2
        return orient(_first_right_singular_vector(centred), positive, negative)


def _first_right_singular_vector(rows: Activations) -> DirectionVector:
    """rows (example, d_model) -> (d_model,), through whichever of the two Gram matrices is smaller."""
    examples, d_model = rows.shape
    gram = rows @ rows.T if examples <= d_model else rows.T @ rows
    last: Tensor = torch.linalg.eigh(gram).eigenvectors[:, -1]
    return rows.T @ last if examples <= d_model else last
