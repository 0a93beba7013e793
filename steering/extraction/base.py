"""ExtractionMethod: two heaps of activations at one layer in, one direction out. It has never met a model."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

from steering.shapes import Direction as DirectionVector
from steering.shapes import Float, Tensor

Positives: TypeAlias = Float[Tensor, "pos d_model"]
Negatives: TypeAlias = Float[Tensor, "neg d_model"]


@dataclass(frozen=True, slots=True)
class Direction:
    """vector (d_model,) unit, float32, `delta . vector > 0`; scale = delta . vector where delta = mean(X+) - mean(X-).

    positive_mean, negative_mean: class means along the vector. weight, bias: a probe's calibrated slope and offset
    on the projection, sigmoid(weight * p + bias), where the method fitted one.
    """

    vector: DirectionVector
    scale: float
    positive_mean: float
    negative_mean: float
    weight: float | None = None
    bias: float | None = None


class ExtractionMethod(Protocol):
    """One way to find a direction.

    needs_pairs: whether the heaps must be paired row by row. least: the fewest examples of each class it takes.
    """

    name: ClassVar[str]
    needs_pairs: ClassVar[bool]
    least: ClassVar[int]

    @staticmethod
    def fit(positive: Positives, negative: Negatives, paired: bool) -> Direction:
        """positive (pos, d_model), negative (neg, d_model), float32. Raises InvalidRequest where no direction stands out."""
        ...
