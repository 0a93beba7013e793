"""mean_difference: the line from the mean of the negatives to the mean of the positives."""

from typing import ClassVar

from steering.extraction.base import Direction, Negatives, Positives
from steering.extraction.orientation import check_activations_shape, mean_shift, orient


class MeanDifference:
    """d = delta / |delta|, hence kappa = |delta| (Panickssery et al., arXiv 2312.06681). One example of each will do."""

    name: ClassVar[str] = "mean_difference"
    needs_pairs: ClassVar[bool] = False
    least: ClassVar[int] = 1

    @staticmethod
    def fit(positive: Positives, negative: Negatives, paired: bool) -> Direction:
        """positive (pos, d_model), negative (neg, d_model) -> Direction. Pairing makes no difference to it."""
        check_activations_shape(MeanDifference.name, positive, negative, paired, MeanDifference.least)
        return orient(mean_shift(positive, negative), positive, negative)
