"""The small numbers, against values worked out by hand."""

import math

import pytest
import torch

from steering.workflows.measures import (
    distinct,
    divergences,
    estimate,
    first_divergence,
    repetition,
    surprises,
    word_diff,
)


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
