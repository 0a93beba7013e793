"""The card's statistics: planted answers, chance for shuffled labels, and the bootstrap against a plain loop."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.errors import InvalidRequest
from steering.extraction.card import build_card
from steering.extraction.mean_difference import MeanDifference
from steering.extraction.quality import auroc, auroc_interval, measure_layer, pair_agreement, separation
from steering.quality import LayerQuality

numbers = st.lists(st.integers(-5, 5), min_size=1, max_size=12).map(lambda values: np.asarray(values, dtype=np.float64))


def measured(signal: float, seed: int = 0, pairs: int = 96, d_model: int = 64, shuffled: bool = False) -> LayerQuality:
    """Pairs over 24 topics, the last eight topics held out, a direction fitted on the rest."""
    generator = torch.Generator().manual_seed(seed)
    topics = [str(i // 4) for i in range(pairs)]
    rows = torch.randn(2, pairs, d_model, generator=generator)
    rows[0, :, 0] += signal
    if shuffled:
        swap = torch.rand(pairs, generator=generator) < 0.5
        rows[:, swap] = rows[:, swap].flip(0)
    fit = pairs * 2 // 3
    direction = MeanDifference.fit(rows[0, :fit], rows[1, :fit], True)
    return measure_layer(
        direction.direction,
        rows[0, fit:],
        rows[1, fit:],
        differences=rows[0] - rows[1],
        fit_shift=rows[0, :fit].mean(0) - rows[1, :fit].mean(0),
        topics=topics[fit:],
        seed=seed,
    )


def value(figure: float | None) -> float:
    assert figure is not None
    return figure


def test_a_clear_concept_reads_well_on_held_out_topics() -> None:
    quality = measured(signal=4.0)
    low, high = quality.auroc_interval or (0.0, 0.0)
    assert 0.95 < value(quality.auroc) <= 1.0
    assert 0.9 < low <= value(quality.auroc) <= high <= 1.0
    assert value(quality.separation) == pytest.approx(4.0, abs=0.8)
    assert value(quality.pair_agreement) > 0.2
    assert 0.5 < value(quality.random_auroc) < 0.8


def test_shuffled_labels_are_at_chance() -> None:
    cards = [measured(signal=4.0, seed=seed, shuffled=True) for seed in range(40)]
    assert np.mean([value(card.auroc) for card in cards]) == pytest.approx(0.5, abs=0.06)
    assert np.mean([value(card.random_auroc) for card in cards]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([value(card.separation) for card in cards]) == pytest.approx(0.0, abs=0.25)


def test_no_signal_is_at_chance_and_the_interval_says_so() -> None:
    cards = [measured(signal=0.0, seed=seed) for seed in range(40)]
    covered = sum(low <= 0.5 <= high for low, high in (card.auroc_interval or (2.0, 2.0) for card in cards))
    assert np.mean([value(card.auroc) for card in cards]) == pytest.approx(0.5, abs=0.03)
    assert abs(float(np.mean([value(card.pair_agreement) for card in cards]))) < 0.03
    assert covered >= 33  # of 40; the bootstrap over eight topics covers a little less than it says


def test_the_card_of_shuffled_labels_warns_and_that_of_a_clear_concept_does_not() -> None:
    def warnings(quality: LayerQuality) -> str:
        made = build_card({5: quality}, layer_count=10, pairs=96, holdout=32, held_topics=8)
        return " ".join(made.warnings)

    shuffled = [warnings(measured(signal=4.0, seed=seed, shuffled=True)) for seed in range(40)]
    assert sum("no better than chance" in text or "the wrong way round" in text for text in shuffled) >= 35
    assert all("pairs disagree" in text for text in shuffled)
    assert not any(warnings(measured(signal=4.0, seed=seed)) for seed in range(10))


def test_auroc_by_hand() -> None:
    assert auroc(np.array([3.0, 2.0]), np.array([1.0, 0.0])) == 1.0
    assert auroc(np.array([0.0]), np.array([1.0, 2.0])) == 0.0
    assert auroc(np.array([1.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx((0.5 + 0 + 1 + 1) / 4)


@given(numbers, numbers)
def test_auroc_is_the_share_of_ordered_couples(positive: np.ndarray, negative: np.ndarray) -> None:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(wins))
    assert auroc(positive, negative) + auroc(negative, positive) == pytest.approx(1.0)


@pytest.mark.parametrize("grouped", [True, False])
def test_the_interval_agrees_with_a_bootstrap_written_as_a_loop(grouped: bool) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 3)
    positive, negative = rng.normal(0.8, 1.0, 30) + 0.5 * (groups % 3), rng.normal(0.0, 1.0, 30)
    values = []
    for _ in range(2000):
        if grouped:
            rows = np.concatenate([np.flatnonzero(groups == group) for group in rng.integers(0, 10, 10)])
            values.append(auroc(positive[rows], negative[rows]))
        else:
            values.append(auroc(positive[rng.integers(0, 30, 30)], negative[rng.integers(0, 30, 30)]))
    found = auroc_interval(positive, negative, [str(group) for group in groups] if grouped else None, seed=1)
    assert found == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.02)


def test_topics_are_drawn_whole() -> None:
    """Forty copies of the same five topics are no more evidence than five."""
    rng = np.random.default_rng(3)
    positive, negative, names = rng.normal(0.7, 1.0, 5), rng.normal(0.0, 1.0, 5), [str(i) for i in range(5)]
    one = auroc_interval(positive, negative, names, seed=0)
    many = auroc_interval(np.tile(positive, 40), np.tile(negative, 40), names * 40, seed=0)
    assert one == pytest.approx(many)


def test_same_seed_same_numbers() -> None:
    assert measured(signal=0.5) == measured(signal=0.5)


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


@pytest.mark.parametrize(
    ("held", "interval", "figure"), [(0, False, False), (1, False, False), (2, False, True), (3, True, True)]
)
def test_what_cannot_be_told_is_none(held: int, interval: bool, figure: bool) -> None:
    rows = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    quality = measure_layer(
        torch.tensor([1.0, 0.0, 0.0, 0.0]),
        rows[0, :held],
        rows[1, :held],
        differences=rows[0] - rows[1],
        topics=[str(i) for i in range(held)],
    )
    assert (quality.auroc is not None) == figure
    assert (quality.separation is not None) == figure
    assert (quality.auroc_interval is not None) == interval
    assert quality.pair_agreement is not None
    assert quality.random_auroc is None


def test_unpaired_heaps_of_different_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(12, 4, generator=generator) + 3.0, torch.randn(30, 4, generator=generator)
    quality = measure_layer(torch.full((4,), 0.5), positive, negative, fit_shift=torch.ones(4))
    assert value(quality.auroc) > 0.95
    assert quality.auroc_interval is not None
    assert quality.pair_agreement is None


def test_topics_must_name_every_held_out_pair() -> None:
    with pytest.raises(InvalidRequest, match="one topic for each held-out pair"):
        measure_layer(torch.ones(2), torch.ones(3, 2), torch.zeros(3, 2), topics=["a", "b"])
