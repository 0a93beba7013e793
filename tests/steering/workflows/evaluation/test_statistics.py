"""The statistics of a sweep, on trials written by hand."""

import random
from math import log

import pytest
import torch

from steering.errors import InvalidRequest
from steering.quality import DosePoint
from steering.vectors import LayerDirection
from steering.workflows.comparison.text_metrics import Estimate
from steering.workflows.evaluation.scorers import SCORERS
from steering.workflows.evaluation.statistics import (
    advantage,
    advised_range,
    anti_steered,
    dose_point,
    perplexity_ratio,
    random_reach,
    shifts,
)
from steering.workflows.evaluation.trials import AnswerMeasures, Trial


def trial(*scores: float, surprise: float | None = 1.0) -> Trial:
    return Trial(tuple(AnswerMeasures(score, surprise, 0.1, 0.2) for score in scores))


def point(strength: float, ratio: float = 1.0) -> DosePoint:
    return DosePoint(strength, 0.0, (0.0, 0.0), ratio, 0.0, 0.0, 0.0)


WINS, LOSES, UNKNOWN = Estimate(1.0, (0.5, 1.5)), Estimate(0.1, (-0.2, 0.4)), Estimate(1.0, None)


def test_shifts_are_prompt_by_prompt():
    assert shifts(trial(1.0, 5.0), trial(0.0, 6.0)) == (1.0, -1.0)


def test_perplexity_ratio_is_geometric_over_prompts():
    assert perplexity_ratio(trial(0, 0, surprise=1.0 + log(2.0)), trial(0, 0)) == pytest.approx(2.0)


def test_answers_without_tokens_say_nothing_of_perplexity():
    assert perplexity_ratio(trial(0, 0, surprise=None), trial(0, 0)) == 1.0


def test_a_dose_point_gathers_its_trial():
    found = dose_point(0.5, trial(1.0, 2.0), trial(0.0, 0.0), [trial(0.2, 0.2), trial(0.4, 0.4)], 0.7, seed=0)
    assert (found.strength, found.concept_score, found.kl_neutral) == (0.5, 1.5, 0.7)
    assert found.random_score == pytest.approx(0.3)
    assert (found.repetition, found.relative_dose) == (pytest.approx(0.1), pytest.approx(0.2))
    assert found.concept_interval[0] <= 1.5 <= found.concept_interval[1]


def test_advantage_is_beyond_what_random_directions_reach():
    ours, plain, controls = trial(-1.0, -1.2), trial(0.0, 0.0), [trial(-0.3, -0.3), trial(0.1, 0.1)]
    reach = 2.92 * (0.05) ** 0.5
    assert random_reach(plain, controls) == pytest.approx(reach)
    assert advantage(-0.5, ours, plain, controls, 0).mean == pytest.approx(1.1 - reach)
    assert advantage(0.5, ours, plain, controls, 0).mean == pytest.approx(-1.1 - reach)
    assert advantage(0.5, trial(1.0, 1.0), plain, [], 0).mean == pytest.approx(1.0)


@pytest.mark.parametrize("controls", [1, 3, 10])
def test_one_random_direction_in_twenty_reaches_further(controls):
    """Effects of random directions drawn from a bell: the next one beats the reach of the others in 5 % of cases."""
    rng, plain, cases = random.Random(controls), trial(0.0), 4000
    beaten = 0
    for _ in range(cases):
        drawn = [trial(rng.gauss(0.0, 0.7)) for _ in range(controls)]
        beaten += rng.gauss(0.0, 0.7) > random_reach(plain, drawn)
    assert beaten / cases == pytest.approx(0.05, abs=0.012)


def test_anti_steered_counts_prompts_that_fall_with_strength():
    moved = {-1.0: (-1.0, 1.0, -0.5, 0.0), 0.0: (0.0,) * 4, 1.0: (1.0, -1.0, 0.5, 0.0)}
    assert anti_steered(moved) == 0.25
    assert anti_steered({0.0: (0.0,)}) is None


def test_the_widest_run_is_advised():
    points = [point(s) for s in (0.1, 0.2, 0.3, 0.5, 1.0, 1.2, -0.5)]
    wins = dict.fromkeys((0.1, 0.2, 0.5, 1.0, 1.2, -0.5), WINS) | {0.3: LOSES}
    assert advised_range(points, wins, 1) == (0.5, 1.2)
    assert advised_range(points, wins, -1) == (-0.5, -0.5)


def test_strengths_that_break_the_text_are_not_advised():
    points = [point(0.25), point(0.5, 1.5), point(1.0, 1.51)]
    assert advised_range(points, dict.fromkeys((0.25, 0.5, 1.0), WINS), 1) == (0.25, 0.5)


@pytest.mark.parametrize("poor", [LOSES, UNKNOWN])
def test_nothing_is_advised_where_nothing_is_sure(poor):
    assert advised_range([point(0.5)], {0.5: poor}, 1) is None


def test_projection_score_is_in_natural_scales():
    entry = LayerDirection(torch.tensor([0.0, 1.0]), scale=4.0)
    assert SCORERS["projection"].score(torch.tensor([[9.0, 2.0], [9.0, 6.0]]), entry) == pytest.approx(1.0)


def test_probe_score_is_a_mean_probability():
    entry = LayerDirection(torch.tensor([0.0, 1.0]), scale=1.0, weight=log(3.0), bias=0.0)
    assert SCORERS["probe"].score(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), entry) == pytest.approx(0.5)
    assert SCORERS["probe"].score(torch.tensor([[0.0, 1.0]]), entry) == pytest.approx(0.75)


def test_a_probe_that_was_never_fitted_cannot_score():
    with pytest.raises(InvalidRequest, match="calibrated probe"):
        SCORERS["probe"].score(torch.zeros(1, 2), LayerDirection(torch.tensor([0.0, 1.0]), scale=1.0))
