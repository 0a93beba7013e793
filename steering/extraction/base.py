"""Extraction methods: each fits a direction from positive and negative activations at one layer, and some a map beside it,
independent of any model. Here are the two that take differences, and what all share: checks of the activations, and the
orientation of what is found."""

from typing import ClassVar, Protocol, TypeAlias

import torch

from steering.auroc import Indices
from steering.errors import InvalidRequest, NonfiniteActivations
from steering.maps import LowRankMap
from steering.shapes import Direction, Float, Tensor
from steering.vectors import LayerDirection

Positives: TypeAlias = Float[Tensor, "pos d_model"]
Negatives: TypeAlias = Float[Tensor, "neg d_model"]
Groups: TypeAlias = tuple[Indices, Indices]
"""The group of each positive (pos,) and of each negative (neg,): texts about one topic are one observation, see `groups_of`."""
NOISE_FLOOR = 1e-5
"""Share of the typical activation norm below which a natural scale is rounding error. A float32 forward pass gives equal
texts activations that agree to about 1e-6 of their norm, whatever the batch around them."""


class ExtractionMethod(Protocol):
    """One way to find a direction. min_examples: the fewest examples of each class it accepts."""

    name: ClassVar[str]
    min_examples: ClassVar[int]

    @staticmethod
    def fit(positive: Positives, negative: Negatives, paired: bool) -> LayerDirection:
        """Fits positive (pos, d_model) against negative (neg, d_model), float32: a unit direction with `delta . d > 0`,
        delta = mean(X+) - mean(X-), and the scale delta . d. Raises InvalidRequest where no direction stands out."""

    @staticmethod
    def fit_map(
        positive: Positives, negative: Negatives, paired: bool, found: LayerDirection, groups: Groups
    ) -> tuple[LowRankMap, float] | None:
        """Fits the map beside the direction that `fit` found on the same activations; None for a method without maps.

        Also returns the share of the squared change of the negatives that its rank keeps of the method's full map. Raises
        InvalidRequest where there is no map."""
        return None


def check_activations(method: str, min_examples: int, positive: Positives, negative: Negatives, paired: bool) -> None:
    """Raises InvalidRequest for wrong shapes or too few examples, NonfiniteActivations for NaN and infinity."""
    if positive.ndim != 2 or negative.ndim != 2 or positive.shape[1] != negative.shape[1]:
        raise InvalidRequest(
            "activations must be (example, d_model) with the same d_model, "
            f"got {tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    if min(len(positive), len(negative)) < min_examples:
        raise InvalidRequest(
            f"method {method!r} needs at least {min_examples} examples of each class to fit, got {len(positive)} "
            f"positive and {len(negative)} negative; mean_difference accepts one of each",
            param="method",
        )
    if paired and len(positive) != len(negative):
        raise InvalidRequest(
            f"paired activations must have equal sizes, got {len(positive)} and {len(negative)}", param="pairs"
        )
    if not bool(torch.isfinite(positive).all() and torch.isfinite(negative).all()):
        raise NonfiniteActivations("the activations contain NaN or infinity, so no direction can be fitted")


def mean_shift(positive: Positives, negative: Negatives) -> Direction:
    """Returns delta = mean(X+) - mean(X-), (d_model,), in float64 so that the order of the examples does not matter."""
    return positive.double().mean(0) - negative.double().mean(0)


def orient(
    values: Direction, positive: Positives, negative: Negatives, weight: float | None = None, bias: float | None = None
) -> LayerDirection:
    """Normalizes values (d_model,), of any length and sign, and flips them so that delta . d > 0; kappa = delta . d.

    weight and bias belong to `values` at unit length; the weight flips with the sign. Raises InvalidRequest when kappa
    is not above NOISE_FLOOR times the median activation norm, where the classes are equal up to rounding; no
    significance test.
    """
    norm = float(values.double().norm())
    direction = (values.double() / norm if norm > 0 else values.double()).float()
    along = direction.double()
    positive_mean, negative_mean = (float(rows.double().mean(0) @ along) for rows in (positive, negative))
    scale = positive_mean - negative_mean
    typical = float(torch.cat([positive, negative]).double().norm(dim=1).median())
    if not abs(scale) > NOISE_FLOOR * typical:
        raise InvalidRequest(
            f"no direction stands out: the class means differ by {abs(scale):.2g} along it, where the typical activation "
            f"norm is {typical:.3g}; check that the positive and negative texts differ at the position that is read",
            param="pairs",
        )
    if scale < 0:
        direction, positive_mean, negative_mean = -direction, -positive_mean, -negative_mean
        weight = None if weight is None else -weight
    return LayerDirection(
        direction, scale=abs(scale), positive_mean=positive_mean, negative_mean=negative_mean, weight=weight, bias=bias
    )


class MeanDifference(ExtractionMethod):
    """Computes d = delta / |delta|, hence kappa = |delta| (Panickssery et al., arXiv 2312.06681). Methods with a map inherit it."""

    name: ClassVar[str] = "mean_difference"
    min_examples: ClassVar[int] = 1

    @classmethod
    def fit(cls, positive: Positives, negative: Negatives, paired: bool) -> LayerDirection:
        """positive (pos, d_model), negative (neg, d_model) -> LayerDirection. Pairing changes nothing."""
        check_activations(cls.name, cls.min_examples, positive, negative, paired)
        return orient(mean_shift(positive, negative), positive, negative)


class Pca(ExtractionMethod):
    """Computes the first principal direction of the pairs, each centred on its midpoint (Zou et al., arXiv 2310.01405).

    Paired: Z = [(X+ - X-)/2 ; -(X+ - X-)/2], d its first right singular vector. Unpaired: Z is every row minus the
    middle of the class means. The sign is free in both cases; delta . d > 0 fixes it.
    """

    name: ClassVar[str] = "pca"
    min_examples: ClassVar[int] = 1

    @staticmethod
    def fit(positive: Positives, negative: Negatives, paired: bool) -> LayerDirection:
        """positive (pos, d_model), negative (neg, d_model) -> LayerDirection."""
        check_activations(Pca.name, Pca.min_examples, positive, negative, paired)
        upper, lower = positive.double(), negative.double()
        centred = torch.cat([upper, lower]) - (upper.mean(0) + lower.mean(0)) / 2
        rows = (upper - lower) / 2 if paired else centred  # the mirrored half of Z has the same right singular vectors
        direction: Direction = torch.linalg.svd(rows, full_matrices=False).Vh[0]
        return orient(direction, positive, negative)
