"""Estimates AUROC on held-out examples with an interval over groups. No torch: also used by the projection process."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit

from steering.cards import Estimate

MIN_HELD = 2
"""Held-out examples of each class below which nothing is measured."""
MIN_GROUPS = 3
"""Held-out groups below which no interval is given: two topics say nothing about their spread."""

Numbers = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Projections of held-out examples on a direction. Examples of a group (topic) count as one observation."""

    positive: Numbers
    negative: Numbers
    positive_groups: Indices
    negative_groups: Indices


def auroc(positive: Numbers, negative: Numbers) -> Numbers:
    """Returns the share of ordered (positive, negative) pairs over the last axis, ties counting half (Mann-Whitney U)."""
    from scipy.stats import rankdata  # noqa: PLC0415 - takes half a second to import

    count = positive.shape[-1]
    ranks: Numbers = rankdata(np.concatenate([positive, negative], axis=-1), axis=-1)[..., :count]
    return np.asarray((ranks.sum(-1) - count * (count + 1) / 2) / (count * negative.shape[-1]))


def estimate_auroc(splits: Sequence[Sequence[HeldOut]]) -> Estimate | None:
    """Estimates AUROC and its 95 % interval from the folds of one or more splits; None below MIN_HELD examples of a class.
    Comparisons are formed within a fold, since projections on two directions cannot be compared. The interval is that of
    Student's t on the logit scale; its variance is a jackknife over groups plus the variance between splits. One more group,
    half way to 0.5, is added, so that a perfect score over few groups does not get an interval of no width. There is no interval
    below MIN_GROUPS groups. An interval includes its estimate. Coverage: tests/steering/extraction/test_coverage.py."""
    usable = [folds for folds in splits if _measurable(folds)]
    if not usable:
        return None
    # a fold that could not be fitted is missing, so the groups of two splits may differ
    names = _groups_of([fold for folds in usable for fold in folds])
    found = [leave_one_group_out(folds, names) for folds in usable]
    values = np.array([value for value, _ in found])
    return jackknife_interval(
        float(values.mean()),
        np.mean([without for _, without in found], axis=0),
        float(values.var(ddof=1)) if len(values) > 1 else 0.0,
    )


def _groups_of(folds: Sequence[HeldOut]) -> Indices:
    return np.unique(np.concatenate([part for one in folds for part in (one.positive_groups, one.negative_groups)]))


def _measurable(folds: Sequence[HeldOut]) -> bool:
    """Whether the folds hold out MIN_HELD examples of each class, and one fold both classes."""
    both = [fold for fold in folds if len(fold.positive) and len(fold.negative)]
    return bool(both) and min(sum(len(f.positive) for f in both), sum(len(f.negative) for f in both)) >= MIN_HELD


def jackknife_interval(
    mean: float, without: Numbers, extra_variance: float = 0.0, freedom: int | None = None
) -> Estimate:
    """Returns the interval of an AUROC from its values without each group (group,); see `estimate_auroc`.
    freedom: degrees of freedom of Student's t; absent, the number of groups."""
    groups = len(without)
    if groups < MIN_GROUPS:
        return Estimate(mean, None)
    pseudo_values = np.append(groups * mean - (groups - 1) * without, (mean + 0.5) / 2)
    smoothed = float(np.clip(pseudo_values.mean(), 1e-3, 1.0 - 1e-3))
    variance = pseudo_values.var(ddof=1) / len(pseudo_values) + extra_variance
    reach = stdtrit(groups if freedom is None else freedom, 0.975) * np.sqrt(variance) / (smoothed * (1.0 - smoothed))
    low, high = expit(logit(smoothed) + np.array([-reach, reach]))
    return Estimate(mean, (min(float(low), mean), max(float(high), mean)))


def leave_one_group_out(folds: Sequence[HeldOut], names: Indices | None = None) -> tuple[float, Numbers]:
    """Returns AUROC over the folds of one split, and AUROC without each group in turn (group,).
    names: the groups, in ascending order; None: those of the folds. Leaving out one that is in no fold changes nothing."""
    if names is None:
        names = _groups_of(folds)
    wins = comparisons = 0.0
    group_wins, group_comparisons = np.zeros(len(names)), np.zeros(len(names))
    for fold in folds:
        above, below = (np.searchsorted(names, part) for part in (fold.positive_groups, fold.negative_groups))
        order = (fold.positive[:, None] > fold.negative) + 0.5 * (fold.positive[:, None] == fold.negative)
        same = above[:, None] == below
        wins, comparisons = wins + float(order.sum()), comparisons + order.size
        # comparisons inside a group are counted once, with the negatives
        np.add.at(group_wins, above, (order * ~same).sum(1))
        np.add.at(group_wins, below, order.sum(0))
        np.add.at(group_comparisons, above, (~same).sum(1))
        np.add.at(group_comparisons, below, len(above))
    rest = comparisons - group_comparisons
    without = np.divide(wins - group_wins, rest, out=np.full(len(names), wins / comparisons), where=rest > 0)
    return wins / comparisons, without
