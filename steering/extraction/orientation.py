"""What every method shares: checked heaps in, a signed unit Direction with its natural scale out."""

import torch

from steering.errors import InvalidRequest, NonfiniteActivations
from steering.extraction.base import Direction, Negatives, Positives
from steering.shapes import Direction as DirectionVector

NOISE_FLOOR = 1e-5
"""Share of the typical activation length below which a natural scale is rounding. A float32 forward pass gives equal
texts activations that agree to about 1e-6 of their length, whatever the batch around them."""


def check_activations_shape(method: str, positive: Positives, negative: Negatives, paired: bool, least: int) -> None:
    """Raises InvalidRequest for heaps of the wrong shape or too few examples, NonfiniteActivations for NaN and infinity."""
    if positive.ndim != 2 or negative.ndim != 2 or positive.shape[1] != negative.shape[1]:
        raise InvalidRequest(
            f"activations must be (example, d_model) of one d_model, got {tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    fewest = min(len(positive), len(negative))
    if fewest < least:
        raise InvalidRequest(
            f"method {method!r} needs at least {least} examples of each class to fit on, got {len(positive)} positive and "
            f"{len(negative)} negative; mean_difference takes one of each",
            param="method",
        )
    if paired and len(positive) != len(negative):
        raise InvalidRequest(
            f"paired heaps must have equal sizes, got {len(positive)} and {len(negative)}", param="pairs"
        )
    if not bool(torch.isfinite(positive).all() and torch.isfinite(negative).all()):
        raise NonfiniteActivations("the activations hold NaN or infinity, so no direction can be fitted")


def mean_shift(positive: Positives, negative: Negatives) -> DirectionVector:
    """delta = mean(X+) - mean(X-), (d_model,), in float64 so that the order of the examples leaves no trace."""
    return positive.double().mean(0) - negative.double().mean(0)


def orient(
    values: DirectionVector,
    positive: Positives,
    negative: Negatives,
    weight: float | None = None,
    bias: float | None = None,
) -> Direction:
    """values (d_model,), of any length and sign -> Direction with delta . d > 0 and kappa = delta . d.

    weight, bias belong to `values` at unit length; the weight turns with the sign. Raises InvalidRequest when kappa is
    not above NOISE_FLOOR times the median activation length: the heaps agree, up to rounding, along the direction.
    This is a test of arithmetic and no test of significance, which would refuse small honest data and, in a space of
    more dimensions than examples, pass anything: along its own mean difference any two heaps stand apart. Whether the
    direction means something is asked of held-out examples, by the quality card.
    """
    length = float(values.double().norm())
    vector = (values.double() / length if length > 0 else values.double()).float()
    along = vector.double()
    positive_mean, negative_mean = (float(heap.double().mean(0) @ along) for heap in (positive, negative))
    scale = positive_mean - negative_mean
    typical = float(torch.cat([positive, negative]).double().norm(dim=1).median())
    if not abs(scale) > NOISE_FLOOR * typical:
        raise InvalidRequest(
            f"no direction stands out: the class means differ by {abs(scale):.2g} along it where activations are "
            f"{typical:.3g} long; do the positive and negative texts differ at the position that is read?",
            param="pairs",
        )
    if scale < 0:
        vector, positive_mean, negative_mean = -vector, -positive_mean, -negative_mean
        weight = None if weight is None else -weight
    return Direction(vector, abs(scale), positive_mean, negative_mean, weight, bias)
