"""Cross-validates an extraction over topics: a direction from all pairs, and how well the same procedure reads new topics.

Nested: for each fold the layer is chosen from the training part alone, so that the best of many layers is not reported on
the examples it was chosen on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np

from steering.auroc import HeldOut, auroc, estimate_auroc
from steering.errors import InvalidRequest
from steering.extraction.base import Negatives, Positives
from steering.extraction.card import best_layer
from steering.extraction.statistics import held_out, layer_quality, pair_agreement, random_auroc, separation
from steering.pairs import PairSet, Split, folds
from steering.quality import Estimate, LayerQuality
from steering.shapes import Direction, Float, Tensor
from steering.vectors import LayerDirection

Fit: TypeAlias = Callable[[Positives, Negatives, bool], LayerDirection]
"""`ExtractionMethod.fit`."""
REPEATS = 3
"""Random splits into folds: the spread between them is part of the interval."""


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """The random splits of one extraction. positive_groups, negative_groups: the group of each text (topic, or itself)."""

    splits: tuple[tuple[Split, ...], ...]
    positive_groups: np.ndarray[tuple[int], np.dtype[np.intp]]
    negative_groups: np.ndarray[tuple[int], np.dtype[np.intp]]

    @property
    def folds(self) -> int:
        """How many folds a split has; 0 where nothing is held out."""
        return len(self.splits[0]) if self.splits else 0

    @property
    def holdout(self) -> int:
        """How many examples of the smaller class the largest fold holds out."""
        return (
            max((min(len(one.held_positive), len(one.held_negative)) for one in self.splits[0]), default=0)
            if self.splits
            else 0
        )


def folding(pairs: PairSet, holdout: float, seed: int) -> Folding:
    """Draws REPEATS splits into folds of about the share `holdout`. Raises InvalidRequest for a share outside [0, 1)."""
    splits = tuple(folds(pairs, holdout, seed + repeat) for repeat in range(REPEATS))
    positive, negative = np.arange(len(pairs.positive)), len(pairs.positive) + np.arange(len(pairs.negative))
    if pairs.paired:
        topics = pairs.topics or tuple(str(index) for index in range(len(pairs)))
        positive = negative = np.unique(np.asarray(topics, dtype=str), return_inverse=True)[1]
    return Folding(splits if splits[0] else (), positive, negative)


@dataclass(frozen=True, slots=True, eq=False)
class LayerFit:
    """One layer. direction: fitted on all examples. quality: its cross-validated statistics.

    splits: by split and fold, the held-out examples on the direction fitted without the fold; None where that failed.
    inner: by split and fold, how well directions fitted without the fold and another read that other fold.
    """

    direction: LayerDirection
    quality: LayerQuality
    splits: tuple[tuple[HeldOut | None, ...], ...]
    inner: tuple[tuple[LayerQuality, ...], ...]


def fit_layer(
    fit: Fit,
    positive: Positives,
    negative: Negatives,
    paired: bool,
    division: Folding,
    seed: int,
) -> LayerFit:
    """Fits one layer on all examples and cross-validates it. Raises InvalidRequest where the method finds no direction."""
    direction = fit(positive, negative, paired)
    fits = [_fit_folds(fit, positive, negative, paired, division, split) for split in division.splits]
    controls = [
        random_auroc(_shift(positive, negative, one), *_held_rows(positive, negative, one), seed)
        for split in division.splits
        for one in split
        if one.held_positive and one.held_negative
    ]
    agreement = pair_agreement(positive - negative) if paired else None
    splits = tuple(outer for outer, _ in fits)
    known = [[fold for fold in outer if fold is not None] for outer in splits]
    return LayerFit(direction, layer_quality(known, agreement, controls), splits, tuple(inner for _, inner in fits))


def _fit_folds(
    fit: Fit,
    positive: Positives,
    negative: Negatives,
    paired: bool,
    division: Folding,
    split: Sequence[Split],
) -> tuple[tuple[HeldOut | None, ...], tuple[LayerQuality, ...]]:
    """Fits without each fold, and without each pair of folds for the choice of a layer inside the training part."""

    def read(without: Sequence[Split], held: Split) -> HeldOut | None:
        keep_positive = _others(len(positive), [one.held_positive for one in without])
        keep_negative = _others(len(negative), [one.held_negative for one in without])
        try:
            found = fit(positive[keep_positive], negative[keep_negative], paired)
        except InvalidRequest:  # too few examples are left, or none of them differ
            return None
        groups = division.positive_groups[list(held.held_positive)], division.negative_groups[list(held.held_negative)]
        return held_out(found.direction, *_held_rows(positive, negative, held), *groups)

    outer = tuple(read([one], one) for one in split)
    inner: list[list[HeldOut]] = [[] for _ in split]
    if len(split) > 2:
        for one, other in combinations(range(len(split)), 2):
            for left, right in ((one, other), (other, one)):
                found = read([split[left], split[right]], split[right])
                if found is not None:
                    inner[left].append(found)
    return outer, tuple(_mean_quality(part) for part in inner)


def _mean_quality(parts: Sequence[HeldOut]) -> LayerQuality:
    """Averages the AUROC of folds, without an interval; unmeasured without folds."""
    usable = [part for part in parts if len(part.positive) and len(part.negative)]
    if not usable:
        return LayerQuality()
    distances = [value for part in usable if (value := separation(part.positive, part.negative)) is not None]
    return LayerQuality(
        auroc=float(np.mean([auroc(part.positive, part.negative) for part in usable])),
        separation=float(np.mean(distances)) if distances else None,
    )


def _others(count: int, held: Sequence[Sequence[int]]) -> list[int]:
    left_out = {index for part in held for index in part}
    return [index for index in range(count) if index not in left_out]


def _held_rows(
    positive: Positives, negative: Negatives, one: Split
) -> tuple[Float[Tensor, "held_pos d_model"], Float[Tensor, "held_neg d_model"]]:
    return positive[list(one.held_positive)], negative[list(one.held_negative)]


def _shift(positive: Positives, negative: Negatives, one: Split) -> Direction:
    """Returns the mean shift of the fitted examples."""
    fitted = positive[list(one.fit_positive)].double().mean(0) - negative[list(one.fit_negative)].double().mean(0)
    return fitted.float()


def nested_auroc(fits: Mapping[int, LayerFit], layer_count: int) -> Estimate | None:
    """Estimates the AUROC of the whole procedure: each fold is read at the layer chosen from its training part.

    The vector itself has more pairs to fit and to choose from than a training part has, so this is a lower estimate; the
    estimate at the chosen layer, which saw the choice, is an upper one. The interval reaches from the lower end of the
    first to the higher of the two upper ends.
    """
    if not fits:
        return None
    found = estimate_auroc([[fold for fold in split if fold is not None] for split in _chosen(fits, layer_count)])
    chosen = fits[best_layer({layer: one.quality for layer, one in fits.items()}, layer_count)].quality
    if found is None or found.interval is None or chosen.auroc_interval is None:
        return found
    return Estimate(found.mean, (found.interval[0], max(found.interval[1], chosen.auroc_interval[1])))


def _chosen(fits: Mapping[int, LayerFit], layer_count: int) -> Iterator[list[HeldOut | None]]:
    """Yields, per split, the held-out examples of each fold at the layer its training part chooses."""
    first = next(iter(fits.values()))
    for repeat, split in enumerate(first.splits):
        yield [
            fits[best_layer({layer: one.inner[repeat][fold] for layer, one in fits.items()}, layer_count)].splits[
                repeat
            ][fold]
            for fold in range(len(split))
        ]
