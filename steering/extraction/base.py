"""ExtractionMethod: two heaps of activations at one layer in, one direction out. It has never met a model."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from steering.shapes import Activations
from steering.shapes import Direction as DirectionVector


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
    """One way to find a direction. `needs_pairs`: whether the heaps must be paired row by row."""

    name: ClassVar[str]
    needs_pairs: ClassVar[bool]

    @staticmethod
    def fit(positive: Activations, negative: Activations, paired: bool) -> Direction:
        """positive (pos, d_model), negative (neg, d_model), float32. Raises InvalidRequest where no direction stands out."""
        ...
