"""Chance: a random direction passes the whole rule of "steers" in at most 5 % of cases, and a planted effect passes it.

A fake scorer stands for the engine: the shift of a prompt's answer is a function of the strength, drawn for each
direction, plus the noise of the answer.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from steering.auroc import Numbers
from steering.lab.evaluations import Setup, best_point, layer_points
from steering.lab.trials import CONTROLS, AnswerMeasures, ReadBack, Trial, chance, dose_points
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.vectors import planted_vector

PROMPTS, TRIALS = 16, 200
STRENGTHS = (-4.0, -1.0, 0.5, 2.0, 4.0)
Shift = Callable[[float], float]
Draw = Callable[[np.random.Generator], Shift]


def linear(spread: float, rng: np.random.Generator) -> Shift:
    """A shift that is linear in the dose, as of a direction with some share of the concept."""
    slope = rng.normal(0.0, spread)
    return lambda strength: slope * strength


def one_way(spread: float, rng: np.random.Generator) -> Shift:
    """A linear shift, and one that both signs move the same way, as where text of any large dose drifts."""
    slope, drift = rng.normal(0.0, spread, 2)
    return lambda strength: slope * strength + drift * abs(strength)


def saturated(spread: float, rng: np.random.Generator) -> Shift:
    """A shift that grows no further beyond a strength of 1."""
    size = rng.normal(0.0, spread)
    return lambda strength: float(size * np.tanh(2.0 * strength))


def nothing(_: np.random.Generator) -> Shift:
    """No shift at all, so that only noise can pass."""
    return lambda strength: 0.0


class FakeScorer:
    """Scores the answers to PROMPTS prompts; every trial has its own noise."""

    def __init__(self, seed: int, noise: float) -> None:
        self.rng, self.noise = np.random.default_rng(seed), noise

    def trial(self, shift: float = 0.0, samples: int = 1) -> Trial:
        scores: Numbers = shift + self.rng.normal(0.0, self.noise / samples**0.5, PROMPTS)
        return Trial(tuple(AnswerMeasures(float(score), 1.0, 0.0, 0.1) for score in scores))

    def steers(self, shift: Shift, draw: Draw, controls: int = CONTROLS) -> bool:
        """Whether a dose-response recommends a strength of either sign."""
        directions = [shift, *(draw(self.rng) for _ in range(controls))]
        rows = {strength: [self.trial(one(strength)) for one in directions] for strength in STRENGTHS}
        found = dose_points((2,), self.trial(samples=4), rows, [0.0] * len(rows))[1]
        return found.strength is not None or found.negative is not None


DRAWS = [partial(linear, 0.3), partial(linear, 0.05), partial(one_way, 0.3), partial(saturated, 0.5), nothing]


@pytest.mark.parametrize(("draw", "noise"), [*((draw, 0.01) for draw in DRAWS), (DRAWS[0], 0.2), (DRAWS[1], 0.2)])
def test_a_random_direction_steers_in_at_most_five_percent_of_trials(draw: Draw, noise: float) -> None:
    """All strengths and both signs; with little noise only the spread between directions protects from a claim."""
    scorer = FakeScorer(5, noise)
    passed = sum(scorer.steers(draw(scorer.rng), draw) for _ in range(TRIALS))
    assert passed <= 0.05 * TRIALS


@pytest.mark.parametrize("draw", DRAWS)
def test_a_planted_effect_steers(draw: Draw) -> None:
    scorer = FakeScorer(6, 0.2)
    assert sum(scorer.steers(lambda strength: 1.5 * strength, draw) for _ in range(20)) >= 19


def test_the_spread_between_directions_counts_and_not_only_that_over_prompts() -> None:
    """With few directions, whose spread is known worst, and answers that hardly vary."""
    scorer = FakeScorer(7, 0.01)
    draw = partial(linear, 0.3)
    passed = sum(scorer.steers(draw(scorer.rng), draw, controls=4) for _ in range(TRIALS))
    assert passed <= 0.05 * TRIALS


@pytest.mark.parametrize("effect", [0.0, 1.5])
def test_a_random_vector_has_no_layer_in_a_sweep_and_a_planted_one_has_its_own(effect: float) -> None:
    """Eight layers, at each of which a random vector has a direction of its own that could pass."""
    engine = LinearEngine()
    vector, scorer, draw = planted_vector(engine), FakeScorer(8, 0.05), partial(linear, 0.3)
    layers, strengths = tuple(range(8)), [1.0, 2.0]
    places = [((layer,), strength) for layer in layers for strength in strengths]
    reading = ReadBack(2, vector.at(2))
    setup = Setup(reading, layers, ("",) * PROMPTS, (), strengths, [vector, vector], places)

    def arm(shifts: Sequence[Shift]) -> list[Trial]:
        return [scorer.trial(shifts[layer](strength)) for (layer,), strength in places]

    found = []
    for _ in range(TRIALS):
        ours, random = [draw(scorer.rng) for _ in layers], [draw(scorer.rng) for _ in layers]
        if effect:
            ours[3] = lambda strength: effect * strength
        best = best_point(layer_points(vector, setup, scorer.trial(samples=4), arm(ours), arm(random)))
        found.append(None if best is None else best.layer)
    if effect:
        assert found.count(3) >= 0.9 * TRIALS
    else:
        assert found.count(None) >= 0.95 * TRIALS


def test_both_signs_and_all_doses_give_one_bound() -> None:
    """It is the same at s and -s, grows with the dose, and follows from shifts that are linear or constant in it."""
    moved = {-2.0: (0.2, -0.4), -1.0: (0.1, 0.3), 1.0: (-0.1, -0.2), 2.0: (-0.3, 0.5)}
    bounds = chance(moved)
    assert bounds[-2.0] == bounds[2.0] > bounds[-1.0] == bounds[1.0]
    flipped = chance({-strength: [-shift for shift in found] for strength, found in moved.items()})
    assert flipped == pytest.approx(bounds)
    proportional = chance({s: (0.3 * s, -0.3 * s) for s in (-1.0, 0.5, 2.0)})
    assert proportional[2.0] == pytest.approx(4.0 * proportional[0.5], rel=1e-3)
    assert proportional[2.0] == pytest.approx(2.920 * 0.6, rel=1e-3)
    constant = chance(dict.fromkeys((-1.0, 0.5, 2.0), (0.3, -0.3)))
    assert list(constant.values()) == pytest.approx([2.920 * 0.3] * 3, rel=1e-3)


def test_a_strength_whose_controls_all_broke_has_the_bound_of_the_fit() -> None:
    assert chance({1.0: (0.3, -0.3), 2.0: (0.6, -0.6), 3.0: ()})[3.0] == pytest.approx(2.920 * 0.9, rel=1e-3)
    assert chance({1.0: ()}) == {}
    assert chance({1.0: (0.0, 0.0)}) == {1.0: 0.0}


def test_claims_that_could_be_passed_one_by_one_share_the_one_case_in_twenty() -> None:
    moved = {1.0: (0.2, -0.1, 0.3, 0.1)}
    one, two = chance(moved)[1.0], chance(moved, tests=2)[1.0]
    assert two / one == pytest.approx(2.776 / 2.132, rel=1e-3)
