"""The small numbers, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from steering.cards import Estimate
from steering.workflows.measures import (
    difference_of_shares,
    distinct,
    divergences,
    estimate,
    first_divergence,
    rank_correlation,
    ratio,
    repetition,
    share,
    surprises,
    word_diff,
)
from tests.narrowing import present


def test_distinct_counts_different_runs() -> None:
    assert distinct([1, 2, 1, 2, 1], 2) == 2 / 4
    assert distinct([1, 2, 3], 2) == 1.0
    assert distinct([1], 2) == 1.0


def test_repetition_of_a_broken_and_a_sound_text() -> None:
    assert repetition([7] * 40) == pytest.approx(1 - 1 / 37)
    assert repetition(list(range(40))) == 0.0
    assert repetition([]) == 0.0


@pytest.mark.parametrize(
    ("one", "other", "index"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2], [1, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [], None), ([5], [], 0)],
)
def test_first_divergence(one: list[int], other: list[int], index: int | None) -> None:
    assert first_divergence(one, other) == index


def test_word_diff_rebuilds_both_texts() -> None:
    baseline, other = "The trip was long and dull.", "The trip was lovely and not dull."
    spans = word_diff(baseline, other)
    assert "".join(span.baseline for span in spans) == baseline
    assert "".join(span.other for span in spans) == other
    assert [span.kind for span in spans] == ["equal", "replace", "equal", "insert", "equal"]
    assert spans[1].other.strip() == "lovely"


def test_word_diff_of_a_text_that_broke_ends_soon() -> None:
    spans = word_diff("the " * 4000, "the " * 3000 + "end")
    assert "".join(span.baseline for span in spans).split() == ["the"] * 4000


def test_word_diff_does_not_mind_where_a_text_begins() -> None:
    assert [span.kind for span in word_diff(" hello there", "hello there")] == ["equal"]


def test_estimate_holds_the_mean_and_replays() -> None:
    found = estimate([0.0, 1.0] * 50)
    assert found.mean == 0.5
    assert found.interval is not None
    low, high = found.interval
    assert 0.35 < low < 0.5 < high < 0.65
    assert estimate([0.0, 1.0] * 50) == found


def test_one_value_has_no_interval() -> None:
    assert estimate([2.0]).interval is None
    assert estimate([2.0]).mean == 2.0


def test_surprise_is_minus_log_probability() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    assert surprises(logits, [1, 0]) == pytest.approx((math.log(4 / 3), math.log(2)))


def test_divergence_against_the_formula() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]]).repeat(70, 1)
    reference = torch.zeros(70, 2)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergences(logits, reference) == pytest.approx((expected,) * 70)


def test_a_model_does_not_diverge_from_itself() -> None:
    logits = torch.randn(50, 100)
    assert divergences(logits, logits) == (0.0,) * 50


@pytest.mark.parametrize(("count", "of"), [(0, 5), (5, 5), (3, 11), (1, 1)])
def test_the_interval_of_a_share_is_that_of_wilson(count: int, of: int) -> None:
    known, found = binomtest(count, of).proportion_ci(method="wilson"), share(count, of)
    assert found.mean == count / of
    assert present(found.interval) == pytest.approx((known.low, known.high))


def test_the_interval_of_paired_shares_has_a_width_where_none_differ() -> None:
    """By hand: with half an observation more in each cell of 32 pairs, 33 agree and half a one differs either way."""
    same = difference_of_shares([0.0] * 32)
    assert present(same.interval) == pytest.approx((-1.96 / 34, 1.96 / 34), rel=1e-4)
    lost = difference_of_shares([1.0, *[0.0] * 31])
    assert lost.mean == 1 / 32
    assert present(lost.interval)[1] == pytest.approx(1 / 34 + 1.96 * math.sqrt((2 / 34 - 1 / 34**2) / 34), rel=1e-4)
    assert present(difference_of_shares([1.0]).interval)[1] == 1.0


def test_the_interval_of_paired_shares_holds_the_true_difference() -> None:
    """Of 32 questions one in twenty is lost and one in fifty is won; by Student's t the interval holds it in 88 %."""
    drawn = np.random.default_rng(1).choice([1.0, -1.0, 0.0], p=[0.05, 0.02, 0.93], size=(2000, 32))
    found = np.array([present(difference_of_shares(row.tolist()).interval) for row in drawn])
    assert float(((found[:, 0] <= 0.03) & (found[:, 1] >= 0.03)).mean()) > 0.94


def test_the_interval_of_a_ratio_covers_the_noise_of_both_means() -> None:
    """Paired values whose ratio is 0.5, with a share of their noise in common; the mean of the reference is 5 of its errors."""
    numbers, cases = np.random.default_rng(4), 1000
    shared = numbers.normal(0.0, 0.5, (cases, 12))
    reference = 1.0 + shared + numbers.normal(0.0, 0.5, shared.shape)
    values = 0.5 + 0.5 * shared + numbers.normal(0.0, 0.5, shared.shape)
    found = [ratio(*case).interval for case in zip(values.tolist(), reference.tolist(), strict=True)]
    held = [one is not None and one[0] <= 0.5 <= one[1] for one in found]
    assert sum(held) / cases == pytest.approx(0.95, abs=0.025)


def test_a_ratio_to_what_may_be_zero_has_no_interval() -> None:
    assert ratio([1.0, 1.0], [2.0, -1.9]).interval is None
    assert ratio([1.0], [2.0]) == Estimate(0.5, None)
    exact = ratio([5.0, 6.0, 7.0], [10.0, 12.0, 14.0])
    assert (exact.mean, *present(exact.interval)) == pytest.approx((0.5, 0.5, 0.5))


def test_a_rank_correlation_has_an_interval_over_prompts() -> None:
    """Ten prompts with four texts each, which are alike: the interval is wider than that of forty texts of their own."""
    numbers = np.random.default_rng(6)
    levels = numbers.normal(0.0, 1.0, 10)
    one = levels[:, None] + numbers.normal(0.0, 0.05, (10, 4))
    other = levels[:, None] + numbers.normal(0.0, 0.7, (10, 1)) + numbers.normal(0.0, 0.05, (10, 4))
    found = present(rank_correlation(one.tolist(), other.tolist()))
    low, high = present(found.interval)
    assert low < found.mean < high
    alone = present(rank_correlation(one.reshape(40, 1).tolist(), other.reshape(40, 1).tolist()))
    assert high - low > 1.5 * (present(alone.interval)[1] - present(alone.interval)[0])
    same = present(rank_correlation(one.tolist(), (3.0 * one).tolist()))
    assert (same.mean, *present(same.interval)) == pytest.approx((1.0, 1.0, 1.0))
    assert rank_correlation(one.tolist(), np.zeros((10, 4)).tolist()) is None
    assert present(rank_correlation([[1.0, 2.0]], [[1.0, 3.0]])).interval is None


def test_the_interval_of_a_rank_correlation_holds_the_true_one() -> None:
    """Eight prompts with four texts each, which share half of their variance. Scores of the same text correlate with r = 0.6, of
    which Spearman's is 6 / pi asin(r / 2)."""
    numbers, cases = np.random.default_rng(11), 400
    one, own = (
        numbers.normal(0.0, 0.5**0.5, (cases, 8, 1)) + numbers.normal(0.0, 0.5**0.5, (cases, 8, 4)) for _ in range(2)
    )
    other = 0.6 * one + 0.8 * own
    true = 6.0 / math.pi * math.asin(0.6 / 2.0)
    found = [
        present(present(rank_correlation(*case)).interval) for case in zip(one.tolist(), other.tolist(), strict=True)
    ]
    assert sum(low <= true <= high for low, high in found) / cases == pytest.approx(0.95, abs=0.025)
