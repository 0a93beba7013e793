"""Fits a line along the difference of positives and negatives: the mean difference, or its first principal direction."""

from typing import ClassVar

import torch

from steering.extraction.base import Negatives, Positives, check_activations_shape, mean_shift, orient
from steering.shapes import Direction
from steering.vectors import LayerDirection


class MeanDifference:
    """Computes d = delta / |delta|, hence kappa = |delta| (Panickssery et al., arXiv 2312.06681)."""

    name: ClassVar[str] = "mean_difference"
    min_examples: ClassVar[int] = 1

    @staticmethod
    def fit(positive: Positives, negative: Negatives, paired: bool) -> LayerDirection:
        """positive (pos, d_model), negative (neg, d_model) -> LayerDirection. Pairing changes nothing."""
        check_activations_shape(MeanDifference.name, positive, negative, paired, MeanDifference.min_examples)
        return orient(mean_shift(positive, negative), positive, negative)


class Pca:
    """Computes the first principal direction of the pairs, each centred on its midpoint (Zou et al., arXiv 2310.01405).

    Paired: Z = [(X+ - X-)/2 ; -(X+ - X-)/2], mean zero by construction, d its first right singular vector. Unpaired: Z is
    every row minus the middle of the class means. The sign is free in both cases; delta . d > 0 fixes it.
    """

    name: ClassVar[str] = "pca"
    min_examples: ClassVar[int] = 1

    @staticmethod
    def fit(positive: Positives, negative: Negatives, paired: bool) -> LayerDirection:
        """positive (pos, d_model), negative (neg, d_model) -> LayerDirection."""
        check_activations_shape(Pca.name, positive, negative, paired, Pca.min_examples)
        upper, lower = positive.double(), negative.double()
        centred = torch.cat([upper, lower]) - (upper.mean(0) + lower.mean(0)) / 2
        rows = (upper - lower) / 2 if paired else centred  # the mirrored half of Z has the same right singular vectors
        direction: Direction = torch.linalg.svd(rows, full_matrices=False).Vh[0]
        return orient(direction, positive, negative)
