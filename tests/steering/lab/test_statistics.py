"""The statistics of a sweep, on trials written by hand."""

import random
from dataclasses import asdict
from math import log

import pytest
import torch
from pydantic import TypeAdapter

from steering.cards import DosePoint, Estimate, verdict_without_proof
from steering.errors import NonfiniteActivations
from steering.lab.trials import (
    SCORERS,
    AnswerMeasures,
    Trial,
    advantage,
    anti_steered,
    chance,
    dose_point,
    mean_shifts,
    measured_ranges,
    perplexity_ratio,
    range_that_holds,
    shifts,
)
from steering.vectors import LayerDirection
from tests.narrowing import present


def trial(*scores: float, surprise: float | None = 1.0) -> Trial:
    return Trial(tuple(AnswerMeasures(score, surprise, 0.1, 0.2) for score in scores))


def test_shifts_are_prompt_by_prompt() -> None:
    assert shifts(trial(1.0, 5.0), trial(0.0, 6.0)) == (1.0, -1.0)


def test_perplexity_ratio_is_geometric_over_prompts() -> None:
    assert perplexity_ratio(trial(0, 0, surprise=1.0 + log(2.0)), trial(0, 0)).mean == pytest.approx(2.0)


def test_answers_without_tokens_say_nothing_of_perplexity() -> None:
    assert perplexity_ratio(trial(0, 0, surprise=None), trial(0, 0)) == Estimate(1.0, None)


@pytest.mark.parametrize(("silent", "shown"), [(3, False), (2, False), (1, True)])
def test_text_of_which_most_is_missing_is_not_shown_to_be_coherent(silent: int, shown: bool) -> None:
    """Of four answers under steering some end before they begin, and the others are as fluent as without."""
    speaking = trial(*[2.0, 2.1, 1.9, 2.0][silent:]).measures
    steered = Trial((*trial(*[2.0] * silent, surprise=None).measures, *speaking))
    point = dose_point(1.0, steered, trial(0.0, 0.0, 0.0, 0.0), 0.1)
    assert (point.perplexity_ratio, point.perplexity_interval is not None) == (1.0, shown)
    assert (point.margin is not None) == shown


def test_a_dose_point_gathers_its_trial() -> None:
    controls = trial(0.1, 0.3), trial(0.4, 0.4)
    found = dose_point(0.5, trial(1.0, 2.0), trial(0.0, 0.0), 0.7, controls, 0.9)
    assert (found.strength, found.concept_score, found.kl_neutral) == (0.5, 1.5, 0.7)
    assert found.random_score == pytest.approx(0.3)
    assert [found.repetition, found.relative_dose] == pytest.approx([0.1, 0.2])
    low, high = present(found.concept_interval)
    assert low <= 1.5 <= high
    assert found.perplexity_interval == (1.0, 1.0)
    assert (found.chance, found.controls) == (0.9, 2)
    assert present(found.advantage).mean == pytest.approx(0.6)
    assert found.moves_on_average


def test_one_prompt_has_no_interval() -> None:
    found = dose_point(0.5, trial(1.0), trial(0.0), 0.7, bound=0.0)
    assert (found.concept_score, found.concept_interval, found.margin) == (1.0, None, None)
    assert found.moves_on_average


def test_advantage_is_beyond_what_random_directions_reach() -> None:
    ours, plain, controls = trial(-1.0, -1.2), trial(0.0, 0.0), [trial(-0.3, -0.3), trial(0.1, 0.1)]
    reach = 2.920 * (0.05) ** 0.5
    bound = chance({0.5: mean_shifts(plain, controls)})[0.5]
    assert bound == pytest.approx(reach, rel=1e-4)
    assert advantage(-0.5, ours, plain, bound).mean == pytest.approx(1.1 - reach, rel=1e-3)
    assert advantage(0.5, ours, plain, bound).mean == pytest.approx(-1.1 - reach, rel=1e-3)
    assert advantage(0.5, trial(1.0, 1.0), plain, 0.0).mean == pytest.approx(1.0)


@pytest.mark.parametrize("controls", [1, 3, 10])
def test_one_random_direction_in_twenty_reaches_further(controls: int) -> None:
    """Effects of random directions drawn from a bell: the next one beats the reach of the others in 5 % of cases."""
    rng, plain, cases = random.Random(controls), trial(0.0), 4000
    beaten = 0
    for _ in range(cases):
        drawn = [trial(rng.gauss(0.0, 0.7)) for _ in range(controls)]
        beaten += rng.gauss(0.0, 0.7) > chance({1.0: mean_shifts(plain, drawn)})[1.0]
    assert beaten / cases == pytest.approx(0.05, abs=0.012)


def test_anti_steered_counts_prompts_that_fall_with_strength() -> None:
    moved = {-1.0: (-1.0, 1.0, -0.5, 0.0), 0.0: (0.0,) * 4, 1.0: (1.0, -1.0, 0.5, 0.0)}
    assert anti_steered(moved) == 0.25
    assert anti_steered({0.0: (0.0,)}) is None


def test_with_one_strength_anti_steered_prompts_are_those_that_move_against_it() -> None:
    assert anti_steered({0.0: (0.0,) * 3, 2.0: (-1.0, 1.0, 0.0)}) == pytest.approx(1 / 3)
    assert anti_steered({-2.0: (-1.0, 1.0, 2.0), 0.0: (0.0,) * 3}) == pytest.approx(2 / 3)


def test_the_widest_run_that_holds_is_taken() -> None:
    sound = dict.fromkeys((0.1, 0.2, 0.5, 1.0, 1.2, -0.5, -2.0), True) | {0.3: False, -1.0: False}
    assert range_that_holds(sound, 1) == (0.5, 1.2)
    assert range_that_holds(sound, -1) == (-0.5, -0.5)
    assert range_that_holds({0.5: False, -1.0: True}, 1) is None


@pytest.mark.parametrize(
    ("strength", "interval", "chance", "perplexity", "expected"),
    [
        (1.0, (0.7, 1.5), 0.2, (1.0, 1.5), 0.5),
        (-1.0, (-1.5, -0.7), 0.2, (1.0, 1.5), 0.5),
        (1.0, (0.7, 1.5), None, (1.0, 1.5), 0.7),
        (1.0, (0.1, 0.7), 0.2, (0.9, 1.1), None),
        (-1.0, (0.7, 1.5), 0.2, (0.9, 1.1), None),
        (1.0, (0.7, 1.5), 0.2, (1.1, 1.6), None),
        (1.0, (0.7, 1.5), 0.2, None, None),
        (0.0, (0.7, 1.5), 0.2, (1.0, 1.0), None),
    ],
)
def test_a_strength_holds_with_the_whole_of_both_intervals(
    strength: float,
    interval: tuple[float, float],
    chance: float | None,
    perplexity: tuple[float, float] | None,
    expected: float | None,
) -> None:
    point = DosePoint(
        strength, sum(interval) / 2, interval, 1.2, 0.0, 0.0, 0.1, perplexity_interval=perplexity, chance=chance
    )
    assert point.margin == (None if expected is None else pytest.approx(expected))


def test_a_strength_whose_random_directions_all_broke_is_not_compared() -> None:
    """Without random directions it is compared with 0; a stored point that does not say how many there were has none."""
    ours, plain, broken = trial(1.0, 1.1), trial(0.0, 0.0), Trial(broken=NonfiniteActivations("no"))
    found = dose_point(0.5, ours, plain, 0.7, (broken, broken))
    assert (found.controls, found.chance, found.threshold) == (2, None, None)
    assert (found.margin, found.advantage, found.moves_on_average) == (None, None, None)
    alone = dose_point(0.5, ours, plain, 0.7)
    assert alone.margin == pytest.approx(present(present(alone.advantage).interval)[0])
    stored = {name: value for name, value in asdict(alone).items() if name not in ("controls", "advantage")}
    assert TypeAdapter(DosePoint).validate_python(stored).margin == alone.margin


def test_strengths_that_are_not_known_to_move_on_average_are_not_said_not_to_steer() -> None:
    said = [verdict_without_proof(found) for found in ([False, None], [False, True], [False, False])]
    assert said == ["not shown to steer", "not shown to steer", "does not steer"]


def test_the_margin_of_a_recommendation_is_that_of_its_closest_strength() -> None:
    margins = {0.2: 0.001, 0.3: None, 0.5: 0.2, 1.0: 0.1, 1.5: None, -1.0: 0.3}
    found = measured_ranges((2,), margins)
    assert (found.strength, found.negative, found.margin) == ((0.5, 1.0), (-1.0, -1.0), 0.1)
    assert measured_ranges((2,), {1.0: None}).margin is None


def test_projection_score_is_in_natural_scales_and_centred_on_the_poles() -> None:
    centred = LayerDirection(torch.tensor([0.0, 1.0]), scale=4.0, positive_mean=6.0, negative_mean=2.0)
    assert SCORERS["projection"].score(torch.tensor([[9.0, 6.0]]), centred) == pytest.approx(0.5)
    entry = LayerDirection(torch.tensor([0.0, 1.0]), scale=4.0)
    assert SCORERS["projection"].score(torch.tensor([[9.0, 2.0], [9.0, 6.0]]), entry) == pytest.approx(1.0)


def test_probe_score_is_a_mean_probability() -> None:
    entry = LayerDirection(torch.tensor([0.0, 1.0]), scale=1.0, weight=log(3.0), bias=0.0)
    assert SCORERS["probe"].score(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), entry) == pytest.approx(0.5)
    assert SCORERS["probe"].score(torch.tensor([[0.0, 1.0]]), entry) == pytest.approx(0.75)
