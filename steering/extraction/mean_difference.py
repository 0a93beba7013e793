"""Fits the line from the mean of the negatives to the mean of the positives."""

from typing import ClassVar

from steering.extraction.base import Negatives, Positives
from steering.extraction.orientation import check_activations_shape, mean_shift, orient
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
