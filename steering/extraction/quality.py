"""The statistics of the quality card at one layer: how well held-out activations agree with a direction."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from steering.errors import InvalidRequest
from steering.extraction.base import Negatives, Positives
from steering.quality import LayerQuality
from steering.shapes import Direction as DirectionVector
from steering.shapes import Float, Tensor

RESAMPLES = 1000
RANDOM_DIRECTIONS = 32
LEAST_HELD = 2
"""Held-out examples of each class below which nothing is measured."""
LEAST_TOPICS = 3
"""Held-out topics below which no interval is given: resampling two topics says nothing."""

Numbers = NDArray[np.float64]


def measure_layer(
    direction: DirectionVector,
    held_positive: Positives,
    held_negative: Negatives,
    *,
    differences: Float[Tensor, "pair d_model"] | None = None,
    fit_shift: DirectionVector | None = None,
    topics: Sequence[str] | None = None,
    seed: int = 0,
) -> LayerQuality:
    """What held-out activations say about a direction at one layer. What cannot be told is None.

    direction (d_model,) unit, fitted without the held-out examples held_positive (pos, d_model) and held_negative
    (neg, d_model). differences (pair, d_model): positive minus negative of all pairs, for the agreement, which leaves
    each pair out itself; None when unpaired. fit_shift (d_model,): mean difference of the fitted examples, which gives
    the random directions their sign; without it there is no random control. topics: the topic of each held-out pair,
    resampled whole; None when unpaired, where every example stands for itself.
    """
    if topics is not None and not len(topics) == len(held_positive) == len(held_negative):
        raise InvalidRequest(
            f"one topic for each held-out pair: got {len(topics)} topics, {len(held_positive)} positives and "
            f"{len(held_negative)} negatives",
            param="topics",
        )
    agreement = None if differences is None else pair_agreement(differences)
    if min(len(held_positive), len(held_negative)) < LEAST_HELD:
        return LayerQuality(pair_agreement=agreement)
    positive, negative = (_project(heap, direction[None])[0] for heap in (held_positive, held_negative))
    control = None if fit_shift is None else _random_auroc(fit_shift, held_positive, held_negative, seed)
    return LayerQuality(
        auroc=auroc(positive, negative),
        auroc_interval=auroc_interval(positive, negative, topics, seed),
        separation=separation(positive, negative),
        pair_agreement=agreement,
        random_auroc=control,
    )


def auroc(positive: Numbers, negative: Numbers) -> float:
    """Share of all (positive, negative) couples that are in the right order, ties counting half (Mann-Whitney U)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.sum() / (2.0 * len(positive) * len(negative)))


def auroc_interval(
    positive: Numbers, negative: Numbers, topics: Sequence[str] | None, seed: int
) -> tuple[float, float] | None:
    """95 % percentile bootstrap of `auroc`, (low, high). Whole topics are drawn; without topics, examples of each class.

    The AUROC of a resample is a ratio of two forms in how often each topic was drawn, so all resamples are a matrix
    product: wins[g, h] counts the ordered couples of positives of topic g with negatives of topic h. None where there
    are fewer than LEAST_TOPICS topics (or examples of a class). Where no couple is out of order the interval is [1, 1],
    however few the topics: read it together with their number.
    """
    rng = np.random.default_rng(seed)
    order = (positive[:, None] > negative[None, :]) + 0.5 * (positive[:, None] == negative[None, :])
    if topics is None:
        if min(order.shape) < LEAST_TOPICS:
            return None
        upper, lower = (_draws(rng, size) for size in order.shape)
        values = ((upper @ order) * lower).sum(1) / (upper.sum(1) * lower.sum(1))
    else:
        names, member = np.unique(np.asarray(topics, dtype=str), return_inverse=True)
        if len(names) < LEAST_TOPICS:
            return None
        belongs = np.eye(len(names))[member]
        wins, drawn, sizes = belongs.T @ order @ belongs, _draws(rng, len(names)), belongs.sum(0)
        values = ((drawn @ wins) * drawn).sum(1) / (drawn @ sizes) ** 2
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def separation(positive: Numbers, negative: Numbers) -> float | None:
    """(mean p+ - mean p-) / sqrt((var+ + var-) / 2): the distance of the classes in spreads. None without any spread."""
    spread = float(np.sqrt((positive.var(ddof=1) + negative.var(ddof=1)) / 2.0))
    return float(positive.mean() - negative.mean()) / spread if spread > 0.0 else None


def pair_agreement(differences: Float[Tensor, "pair d_model"]) -> float | None:
    """Mean cosine of each pair's difference with the mean of the others'. None for one pair, or where all are zero."""
    if len(differences) < 2:
        return None
    rows = differences.double()
    others = rows.sum(0) - rows
    lengths = rows.norm(dim=1) * others.norm(dim=1)
    usable = lengths > 0.0
    if not bool(usable.any()):
        return None
    return float(((rows * others).sum(1)[usable] / lengths[usable]).mean())


def _draws(rng: np.random.Generator, size: int) -> Numbers:
    """How often each of `size` things is drawn in each resample: (RESAMPLES, size)."""
    return rng.multinomial(size, np.full(size, 1.0 / size), size=RESAMPLES).astype(np.float64)


def _project(heap: Float[Tensor, "example d_model"], directions: Float[Tensor, "k d_model"]) -> Numbers:
    """(k, example) projections in float64."""
    projections: Numbers = (directions.double() @ heap.double().T).numpy(force=True)
    return projections


def _random_auroc(fit_shift: DirectionVector, positive: Positives, negative: Negatives, seed: int) -> float:
    """Mean held-out AUROC of random directions, each turned so that the *fitted* classes lie the right way round.

    That is all the fit there is in them: 0.5 where the classes are alike, and above it where they differ so broadly that
    any direction tells them apart. Choosing the sign on the held-out part would report chance as more than 0.5.
    """
    noise = np.random.default_rng(seed).standard_normal((RANDOM_DIRECTIONS, len(fit_shift)))
    directions = torch.from_numpy(noise)
    directions = directions * torch.where(directions @ fit_shift.double() < 0.0, -1.0, 1.0).double()[:, None]
    couples = zip(_project(positive, directions), _project(negative, directions), strict=True)
    return float(np.mean([auroc(upper, lower) for upper, lower in couples]))
