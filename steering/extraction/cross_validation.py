"""Cross-validates an extraction over topics, and measures each layer for its quality card. Nested: for each fold the
layer is chosen from the training part alone, so that the best of many layers is not reported on the examples it was
chosen on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import TypeAlias

import numpy as np
import torch
from scipy.special import expit, logit, ndtr, ndtri

from steering.auroc import HeldOut, Indices, Numbers, auroc, estimate_auroc
from steering.cards import Estimate, LayerQuality
from steering.errors import InvalidRequest
from steering.extraction.base import Negatives, Positives, mean_shift
from steering.extraction.card import best_layer
from steering.pairs import PairSet, Split, folds, groups_of, indices_without
from steering.shapes import Direction, Float, Tensor
from steering.vectors import LayerDirection, mix, random_directions

Fit: TypeAlias = Callable[[Positives, Negatives, bool], LayerDirection]
"""`ExtractionMethod.fit`."""
REPEATS = 3
"""Random splits into folds: the spread between them is part of the interval."""
RANDOM_DIRECTIONS = 32
HIGHEST = 0.999
"""AUROC beyond which nothing is extrapolated."""


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """The splits that measure one extraction, and the group of each text, see `groups_of`."""

    splits: tuple[tuple[Split, ...], ...]
    positive_groups: Indices
    negative_groups: Indices

    @property
    def folds(self) -> int:
        """Returns how many folds a split has; 0 where nothing is held out."""
        return len(self.splits[0]) if self.splits else 0

    @property
    def holdout(self) -> int:
        """Returns how many examples of the smaller class the largest fold holds out."""
        first = self.splits[0] if self.splits else ()
        return max((min(len(one.held_positive), len(one.held_negative)) for one in first), default=0)

    @property
    def groups(self) -> tuple[Indices, Indices]:
        """Returns the groups of all positives and negatives."""
        return self.positive_groups, self.negative_groups

    def groups_in(self, held: Split) -> tuple[Indices, Indices]:
        """Returns the groups of the held-out positives and negatives of a fold."""
        return self.positive_groups[list(held.held_positive)], self.negative_groups[list(held.held_negative)]

    def read(self, direction: Direction, positive: Positives, negative: Negatives, held: Split) -> HeldOut:
        """Projects what a fold holds out on a direction (d_model,)."""
        above, below = (_project(rows, direction[None])[0] for rows in held_rows(positive, negative, held))
        return HeldOut(above, below, *self.groups_in(held))


def folding(pairs: PairSet, holdout: float, seed: int) -> Folding:
    """Draws REPEATS splits into folds of the share `holdout`. Raises InvalidRequest for a share outside [0, 1)."""
    splits = tuple(folds(pairs, holdout, mix(seed, repeat)) for repeat in range(REPEATS))
    return folding_of(pairs, splits if splits[0] else ())


def folding_of(pairs: PairSet, splits: tuple[tuple[Split, ...], ...]) -> Folding:
    """Adds the groups of the texts to splits into folds."""
    positive, negative = groups_of(pairs)
    numbers = np.unique([*positive, *negative], return_inverse=True)[1]
    return Folding(splits, numbers[: len(positive)], numbers[len(positive) :])


@dataclass(frozen=True, slots=True, eq=False)
class LayerFit:
    """One layer. direction: fitted on all examples. quality: its cross-validated statistics.

    directions: by split and fold, the direction fitted without the fold; None where that failed.
    splits: by split and fold, the held-out examples on that direction.
    inner: by split and fold, how well directions fitted without the fold and another read that other fold.
    """

    direction: LayerDirection
    quality: LayerQuality
    directions: tuple[tuple[Direction | None, ...], ...] = ()
    splits: tuple[tuple[HeldOut | None, ...], ...] = ()
    inner: tuple[tuple[LayerQuality, ...], ...] = ()


def fit_layer(
    fit: Fit, positive: Positives, negative: Negatives, paired: bool, division: Folding, seed: int
) -> LayerFit:
    """Fits one layer on all examples and cross-validates it. Raises InvalidRequest where there is no direction."""

    def fit_without(*held: Split) -> Direction | None:
        keep_positive = indices_without(len(positive), *(one.held_positive for one in held))
        keep_negative = indices_without(len(negative), *(one.held_negative for one in held))
        try:
            return fit(positive[list(keep_positive)], negative[list(keep_negative)], paired).direction
        except InvalidRequest:  # too few examples are left, or none of them differ
            return None

    def read(held: Split, found: Direction | None) -> HeldOut | None:
        if found is None:
            return None
        return division.read(found, positive, negative, held)

    def read_inside(
        left: int, split: Sequence[Split], fitted: Mapping[tuple[int, int], Direction | None]
    ) -> LayerQuality:
        """Measures the training part of a fold, by its other folds, for the choice of a layer there. fitted: see `inside`."""
        others = [(one, fitted[both]) for both in fitted if left in both for one in both if one != left]
        parts = [found for one, direction in others if (found := read(split[one], direction)) is not None]
        usable = [part for part in parts if len(part.positive) and len(part.negative)]
        if not usable:
            return LayerQuality()
        mean = float(np.mean([auroc(part.positive, part.negative) for part in usable]))
        return LayerQuality(auroc=mean, separation=mean_separation(usable))

    def inside(split: Sequence[Split]) -> tuple[LayerQuality, ...]:
        """Fits without every two folds of a split, and reads each of the two where the other is left out."""
        numbers = range(len(split))
        both = combinations(numbers, 2) if len(split) > 2 else ()
        fitted = {(one, other): fit_without(split[one], split[other]) for one, other in both}
        return tuple(read_inside(left, split, fitted) for left in numbers)

    direction = fit(positive, negative, paired)
    directions = tuple(tuple(map(fit_without, split)) for split in division.splits)
    outer = tuple(tuple(map(read, split, row)) for split, row in zip(division.splits, directions, strict=True))
    inner = tuple(map(inside, division.splits))
    controls = []
    for one in chain(*division.splits):
        if one.held_positive and one.held_negative:
            shift = mean_shift(positive[list(one.fit_positive)], negative[list(one.fit_negative)]).float()
            controls.append(random_auroc(shift, *held_rows(positive, negative, one), seed))
    agreement = pair_agreement(positive - negative) if paired else None
    known = [[fold for fold in split if fold is not None] for split in outer]
    return LayerFit(direction, layer_quality(known, agreement, controls), directions, outer, inner)


def held_rows(
    positive: Positives, negative: Negatives, one: Split
) -> tuple[Float[Tensor, "held_pos d_model"], Float[Tensor, "held_neg d_model"]]:
    """Returns what a split holds out."""
    return positive[list(one.held_positive)], negative[list(one.held_negative)]


def nested_auroc(fits: Mapping[int, LayerFit], layer_count: int) -> Estimate | None:
    """Estimates the AUROC of the whole procedure: each fold is read at the layer chosen from its training part.

    A training part has fewer pairs than the vector, so this is a lower estimate, and that at the chosen layer an upper
    one. The interval reaches from the lower end of the first to the higher of the two upper ends, moved up by what the
    pairs that a training part lacks may add (`learning_gain`).
    """
    splits = [
        [fold for n, layer in enumerate(row) if (fold := fits[layer].splits[repeat][n]) is not None]
        for repeat, row in enumerate(chosen_layers(fits, layer_count))
    ]
    found = estimate_auroc(splits)
    chosen = fits[best_layer({layer: one.quality for layer, one in fits.items()}, layer_count)]
    if found is None or found.interval is None or chosen.quality.auroc_interval is None:
        return found
    upper = max(found.interval[1], chosen.quality.auroc_interval[1])
    return Estimate(found.mean, (found.interval[0], float(expit(logit(upper) + learning_gain(chosen)))))


def learning_gain(found: LayerFit) -> float:
    """Returns by how much the AUROC of the direction fitted on all examples may exceed that of its folds, on the logit scale; 0 where
    it is not shown to grow with the number of examples.

    With more examples a mean difference turns towards its limit: with AUROC = Phi(z), 1 / z^2 falls linearly in 1 / n. The two
    known points are the folds, which leave 1 / k of the examples out, and their inner folds, which leave 2 / k out.
    """
    inner = [one.auroc for split in found.inner for one in split if one.auroc is not None]
    outer = found.quality.auroc
    if not inner or outer is None:
        return 0.0
    count = len(found.inner[0])
    few, more = 1.0 - 2.0 / count, 1.0 - 1.0 / count
    least, known = ndtri(np.clip([np.mean(inner), outer], 0.5, HIGHEST))
    if not 0.0 < least < known:
        return 0.0
    limit = known**-2 - (least**-2 - known**-2) * (1.0 / more - 1.0) / (1.0 / few - 1.0 / more)
    reached = ndtr(limit**-0.5) if limit > 0.0 else HIGHEST
    return max(float(logit(min(reached, HIGHEST)) - logit(ndtr(known))), 0.0)


def chosen_layers(fits: Mapping[int, LayerFit], layer_count: int) -> list[list[int]]:
    """Returns, by split and fold, the layer that reads best in the training part of the fold."""
    return [
        [
            best_layer({at: one.inner[repeat][fold] for at, one in fits.items()}, layer_count)
            for fold in range(len(split))
        ]
        for repeat, split in enumerate(next(iter(fits.values())).splits)
    ]


def separation(positive: Numbers, negative: Numbers) -> float | None:
    """Returns (mean p+ - mean p-) / sqrt((var+ + var-) / 2); None without any spread or with one example of a class."""
    if min(len(positive), len(negative)) < 2:
        return None
    spread = float(np.sqrt((positive.var(ddof=1) + negative.var(ddof=1)) / 2.0))
    return float(positive.mean() - negative.mean()) / spread if spread > 0.0 else None


def mean_separation(folds: Sequence[HeldOut]) -> float | None:
    """Returns the mean separation of the folds that have one; None where none has."""
    distances = [value for fold in folds if (value := separation(fold.positive, fold.negative)) is not None]
    return float(np.mean(distances)) if distances else None


def pair_agreement(differences: Float[Tensor, "pair d_model"]) -> float | None:
    """Returns the mean cosine of each pair's difference with the mean of the others'; None for one pair or zeros."""
    if len(differences) < 2:
        return None
    rows = differences.double()
    others = rows.sum(0) - rows
    norms = rows.norm(dim=1) * others.norm(dim=1)
    usable = norms > 0.0
    if not bool(usable.any()):
        return None
    return float(((rows * others).sum(1)[usable] / norms[usable]).mean())


def random_auroc(fit_shift: Direction, positive: Positives, negative: Negatives, seed: int) -> float:
    """Returns the mean held-out AUROC of random directions, each signed by the mean shift of the *fitted* examples: 0.5
    where the classes do not differ, above it where they differ so broadly that any direction separates them."""
    directions = random_directions(RANDOM_DIRECTIONS, len(fit_shift), seed)
    directions = directions * torch.where(directions @ fit_shift.double() < 0.0, -1.0, 1.0).double()[:, None]
    return float(auroc(_project(positive, directions), _project(negative, directions)).mean())


def layer_quality(
    splits: Sequence[Sequence[HeldOut]], agreement: float | None = None, controls: Sequence[float] = ()
) -> LayerQuality:
    """Summarizes the folds of one layer. controls: `random_auroc` of each fold."""
    found = estimate_auroc(splits)
    if found is None:
        return LayerQuality(pair_agreement=agreement)
    return LayerQuality(
        auroc=found.mean,
        auroc_interval=found.interval,
        separation=mean_separation([fold for folds in splits for fold in folds]),
        pair_agreement=agreement,
        random_auroc=float(np.mean(controls)) if controls else None,
    )


def _project(rows: Float[Tensor, "example d_model"], directions: Float[Tensor, "k d_model"]) -> Numbers:
    """Returns projections (k, example) in float64."""
    projections: Numbers = (directions.double() @ rows.double().T).numpy(force=True)
    return projections
