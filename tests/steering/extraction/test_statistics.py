"""The card's statistics: planted answers, values by hand, and the jackknife against a plain loop."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.auroc import HeldOut, auroc, estimate_auroc, leave_one_group_out
from steering.extraction import METHODS
from steering.extraction.cross_validation import (
    REPEATS,
    fit_layer,
    folding,
    layer_quality,
    nested_auroc,
    pair_agreement,
    random_auroc,
    separation,
)
from steering.pairs import PairSet
from steering.vectors import LayerDirection

numbers = st.lists(st.integers(-5, 5), min_size=1, max_size=12).map(lambda values: np.asarray(values, dtype=np.float64))


def fold(positive: list[float], negative: list[float], groups: list[int]) -> HeldOut:
    return HeldOut(np.array(positive), np.array(negative), np.array(groups), np.array(groups))


def test_auroc_by_hand() -> None:
    assert auroc(np.array([3.0, 2.0]), np.array([1.0, 0.0])) == 1.0
    assert auroc(np.array([0.0]), np.array([1.0, 2.0])) == 0.0
    assert auroc(np.array([1.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert auroc(np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])).tolist() == [1.0, 0.0]


@given(numbers, numbers)
def test_auroc_is_the_share_of_ordered_pairs(positive: np.ndarray, negative: np.ndarray) -> None:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(wins))
    assert auroc(positive, negative) + auroc(negative, positive) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.integers(0, 3)), min_size=2, max_size=12))
def test_leaving_a_group_out_equals_removing_its_rows(rows: list[tuple[int, int, int]]) -> None:
    part = fold([float(p) for p, _, _ in rows], [float(n) for _, n, _ in rows], [g for _, _, g in rows])
    whole, without = leave_one_group_out([part])
    assert whole == pytest.approx(float(auroc(part.positive, part.negative)))
    for group, value in zip(np.unique(part.positive_groups), without, strict=True):
        keep = part.positive_groups != group
        expected = auroc(part.positive[keep], part.negative[keep]) if keep.any() else whole
        assert value == pytest.approx(float(expected))


def test_pairs_are_formed_inside_a_fold() -> None:
    """Scores of another direction may have any offset."""
    one, other = fold([1.0, 2.0], [0.0, 0.5], [0, 1]), fold([101.0, 102.0], [100.0, 100.5], [2, 3])
    found = estimate_auroc([[one, other]])
    assert found is not None
    assert found.mean == 1.0


def test_a_perfect_score_over_few_topics_has_a_width() -> None:
    narrow = estimate_auroc([[fold([1.0] * 40, [0.0] * 40, list(range(40)))]])
    wide = estimate_auroc([[fold([1.0] * 6, [0.0] * 6, list(range(6)))]])
    assert narrow is not None
    assert wide is not None
    assert narrow.interval is not None
    assert wide.interval is not None
    assert wide.interval[0] < 0.8 < narrow.interval[0] < 1.0
    assert wide.interval[1] == narrow.interval[1] == 1.0


def test_copies_of_a_topic_are_no_more_evidence() -> None:
    rng = np.random.default_rng(3)
    positive, negative = rng.normal(0.7, 1.0, 5), rng.normal(0.0, 1.0, 5)
    one = estimate_auroc([[fold(positive.tolist(), negative.tolist(), list(range(5)))]])
    many = estimate_auroc([[fold(positive.tolist() * 9, negative.tolist() * 9, list(range(5)) * 9)]])
    assert one is not None
    assert many is not None
    assert one.interval == pytest.approx(many.interval)


def test_splits_that_disagree_widen_the_interval() -> None:
    groups = list(range(8))
    good, poor = fold([1.0] * 8, [0.0] * 8, groups), fold([1.0] * 4 + [0.0] * 4, [0.5] * 8, groups)
    agreeing, differing = estimate_auroc([[good], [good]]), estimate_auroc([[good], [poor]])
    assert agreeing is not None
    assert differing is not None
    assert agreeing.interval is not None
    assert differing.interval is not None
    assert differing.interval[1] - differing.interval[0] > agreeing.interval[1] - agreeing.interval[0] + 0.3


def test_splits_of_which_a_fold_is_missing_are_averaged_by_group() -> None:
    """One split could not fit the fold of group 0, the other that of groups 1 and 2."""
    one, other = fold([1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1, 2, 3]), fold([1.0, 1.0], [0.0, 0.0], [0, 3])
    found = estimate_auroc([[one], [other]])
    assert found is not None
    names = np.arange(4)
    (value, without), (second, second_without) = (leave_one_group_out([part], names) for part in (one, other))
    assert without[0] == value
    assert second_without[[1, 2]].tolist() == [second, second]
    assert found.mean == pytest.approx((6 / 9 + 1.0) / 2)
    assert found.interval is not None
    assert found.interval[0] < found.mean < found.interval[1]


def test_a_direction_is_fitted_once_for_every_two_folds() -> None:
    """And each of the two is read by it where the other is left out."""
    positive, negative = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))
    positive[:, 0] += 1.0
    texts, fitted = tuple(f"{number}" for number in range(30)), list[int]()

    def fit(*rows: Any) -> LayerDirection:
        fitted.append(len(rows[0]))
        return METHODS["mean_difference"].fit(*rows)

    division = folding(PairSet(texts, texts, texts), 0.2, seed=0)
    found = fit_layer(fit, positive, negative, True, division, seed=0)
    assert (fitted.count(24), fitted.count(18)) == (5 * REPEATS, 10 * REPEATS)
    (first, *others), aurocs = division.splits[0], []
    for one in others:
        keep = [row for row in range(30) if row not in (*one.held_positive, *first.held_positive)]
        direction = METHODS["mean_difference"].fit(positive[keep], negative[keep], True).direction
        held = division.read(direction, positive, negative, one)
        aurocs.append(float(auroc(held.positive, held.negative)))
    assert found.inner[0][0].auroc == float(np.mean(aurocs))


def test_extractions_of_other_seeds_share_no_split() -> None:
    texts = tuple(f"{number}" for number in range(30))
    pairs = PairSet(texts, texts, texts)
    splits = [split for seed in range(4) for split in folding(pairs, 0.2, seed).splits]
    assert len(set(splits)) == 4 * REPEATS


def test_few_pairs_in_topics_of_different_size_have_a_card() -> None:
    """Without the fold of the large topic three pairs are left, too few for a probe; which topics share that fold differs by split."""
    topics = ("large", "large", "large", "a", "b", "c", "d")
    pairs = PairSet(topics, topics, topics)
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(7, 8, generator=generator) + 2.0, torch.randn(7, 8, generator=generator)
    division = folding(pairs, 0.3, seed=0)
    found = fit_layer(METHODS["probe"].fit, positive, negative, True, division, seed=0)
    held = [{int(group) for one in split if one for group in one.positive_groups} for split in found.splits]
    assert len(set(map(frozenset, held))) > 1, "the splits differ in the topics that could be measured"
    assert found.quality.auroc_interval is not None
    assert nested_auroc({0: found}, 1) is not None


def test_a_text_that_is_not_paired_is_in_no_group_of_the_other_list() -> None:
    """Or the jackknife would leave out a positive and a negative as one observation."""
    division = folding(PairSet(("a", "b", "a", "c"), ("d", "e", "e"), paired=False), 0.3, seed=0)
    positive, negative = division.positive_groups.tolist(), division.negative_groups.tolist()
    assert (len(set(positive)), len(set(negative))) == (3, 2)
    assert not {*positive} & {*negative}


def test_what_cannot_be_measured_is_none() -> None:
    assert estimate_auroc([]) is None
    assert estimate_auroc([[fold([1.0], [0.0], [0])]]) is None
    two = estimate_auroc([[fold([1.0, 1.0], [0.0, 0.0], [0, 1])]])
    assert two is not None
    assert (two.mean, two.interval) == (1.0, None)
    assert layer_quality([], 0.3) == layer_quality([[]], 0.3)
    assert layer_quality([], 0.3).pair_agreement == 0.3


def test_separation_by_hand() -> None:
    assert separation(np.array([3.0, 5.0]), np.array([-1.0, 1.0])) == pytest.approx(4.0 / 2.0**0.5)
    assert separation(np.array([1.0, 1.0]), np.array([0.0, 0.0])) is None


def test_pair_agreement_by_hand() -> None:
    same, opposite = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    assert pair_agreement(same) == pytest.approx(1.0)
    assert pair_agreement(opposite) == pytest.approx(-1.0)
    assert pair_agreement(torch.eye(2)) == pytest.approx(0.0)
    assert pair_agreement(torch.eye(2)[:1]) is None
    assert pair_agreement(torch.zeros(3, 2)) is None


def test_random_directions_are_at_chance_where_classes_are_alike_and_above_it_where_everything_differs() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 60, 32, generator=generator)
    alike = [random_auroc(torch.randn(32, generator=generator), positive, negative, seed) for seed in range(10)]
    assert np.mean(alike) == pytest.approx(0.5, abs=0.04)
    assert random_auroc(torch.ones(32), positive + 3.0, negative, 0) > 0.8
