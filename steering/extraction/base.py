"""Defines ExtractionMethod: fits a direction from positive and negative activations at one layer, independent of any model."""

from typing import ClassVar, Protocol, TypeAlias

from steering.shapes import Float, Tensor
from steering.vectors import LayerDirection

Positives: TypeAlias = Float[Tensor, "pos d_model"]
Negatives: TypeAlias = Float[Tensor, "neg d_model"]


class ExtractionMethod(Protocol):
    """One way to find a direction. min_examples: the fewest examples of each class it accepts."""

    name: ClassVar[str]
    min_examples: ClassVar[int]

    @staticmethod
    def fit(positive: Positives, negative: Negatives, paired: bool) -> LayerDirection:
        """Fits positive (pos, d_model) against negative (neg, d_model), float32.

        The direction is unit length with `delta . d > 0`, delta = mean(X+) - mean(X-), and its scale is delta . d. Raises
        InvalidRequest where no direction stands out.
        """
        ...
