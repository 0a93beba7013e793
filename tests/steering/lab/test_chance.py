"""Chance: a random direction passes the whole rule of "steers" in at most 5 % of cases, and a planted effect passes it.

A fake scorer stands for the engine: the shift of a prompt's answer is a function of the strength, drawn for each
direction, plus the noise of the answer.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from steering.auroc import Numbers
from steering.lab.evaluations import (
    DOSE_STRENGTHS,
    Setup,
    best_point,
    layer_points,
    layer_to_test,
    with_chance,
)
from steering.lab.trials import (
    CONTROLS,
    AnswerMeasures,
    ReadBack,
    Trial,
    chance,
    dose_bounds,
    dose_points,
    mean_shifts,
)
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.vectors import planted_vector

PROMPTS, TRIALS = 16, 400
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


def cubic(spread: float, rng: np.random.Generator) -> Shift:
    """A shift that grows faster than the dose; that of the largest dose is as of a linear one."""
    slope = rng.normal(0.0, spread)
    return lambda strength: slope * strength**3 / 16.0


def quadratic(spread: float, rng: np.random.Generator) -> Shift:
    """The same by the square of the dose, with the sign of the strength."""
    slope = rng.normal(0.0, spread)
    return lambda strength: slope * strength * abs(strength) / 4.0


def threshold(spread: float, rng: np.random.Generator) -> Shift:
    """A shift of the largest strengths alone."""
    size = rng.normal(0.0, spread)
    return lambda strength: float(size * np.sign(strength)) if abs(strength) >= 3.5 else 0.0


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
        rows = {strength: [self.trial(one(strength)) for one in directions] for strength in DOSE_STRENGTHS}
        unsteered = self.trial(samples=4)
        points = dose_points(unsteered, rows, [0.0] * len(rows), dose_bounds(unsteered, rows))
        return any(point.margin is not None for point in points.values())


DRAWS = [
    partial(linear, 0.3),
    partial(linear, 0.05),
    partial(one_way, 0.3),
    partial(saturated, 0.5),
    partial(cubic, 0.3),
    partial(quadratic, 0.3),
    partial(threshold, 0.5),
    nothing,
]


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


SPREADS = {
    "equal": (0.3,) * 8,
    "one large": (1.0, *(0.05,) * 7),
    "growing": tuple(float(one) for one in np.geomspace(0.1, 1.0, 8)),
}


def swept(scorer: FakeScorer, spreads: Sequence[float], effect: float) -> int | None:
    """The layer that a sweep recommends. A random vector has a direction of its own at each layer; effect: of layer 3."""
    engine = LinearEngine()
    vector, layers, strengths = planted_vector(engine), tuple(range(len(spreads))), [1.0, 2.0]
    places = [((layer,), strength) for layer in layers for strength in strengths]
    setup = Setup(ReadBack(2, vector.at(2)), layers, ("",) * PROMPTS, (), strengths, [vector], places)
    ours = [linear(spread, scorer.rng) for spread in spreads]
    if effect:
        ours[3] = lambda strength: effect * strength
    unsteered = scorer.trial(samples=4)
    trials = [scorer.trial(ours[layer](strength)) for (layer,), strength in places]
    points = layer_points(vector, setup, unsteered, trials)
    layer = layer_to_test(points)
    assert layer is not None
    controls = [linear(spreads[layer], scorer.rng) for _ in range(CONTROLS)]
    moved = {s: mean_shifts(unsteered, [scorer.trial(one(s)) for one in controls]) for s in strengths}
    best = best_point(with_chance(points, layer, moved, tests=len(layers)))
    return None if best is None else best.layer


@pytest.mark.parametrize("spreads", SPREADS.values(), ids=list(SPREADS))
def test_a_random_vector_has_no_layer_in_a_sweep(spreads: Sequence[float]) -> None:
    """Eight layers, at each of which it could pass."""
    scorer = FakeScorer(8, 0.01)
    found = [swept(scorer, spreads, 0.0) for _ in range(TRIALS)]
    assert found.count(None) >= 0.95 * TRIALS


def test_a_planted_effect_has_its_layer_in_a_sweep() -> None:
    scorer = FakeScorer(9, 0.05)
    found = [swept(scorer, SPREADS["equal"], 1.5) for _ in range(TRIALS)]
    assert found.count(3) >= 0.9 * TRIALS


def test_both_signs_and_all_doses_give_one_bound() -> None:
    """It is the same at s and -s, grows with the dose, and follows shifts that are constant or grow faster than it."""
    moved = {-2.0: (0.2, -0.4), -1.0: (0.1, 0.3), 1.0: (-0.1, -0.2), 2.0: (-0.3, 0.5)}
    bounds = chance(moved)
    assert bounds[-2.0] == bounds[2.0] > bounds[-1.0] == bounds[1.0]
    flipped = chance({-strength: [-shift for shift in found] for strength, found in moved.items()})
    assert flipped == pytest.approx(bounds)
    constant = chance(dict.fromkeys((-1.0, 0.5, 2.0), (0.3, -0.3)))
    assert list(constant.values()) == pytest.approx([2.920 * 0.3] * 3, rel=1e-3)
    cubic = chance({s: (0.3 * s**3, -0.3 * s**3) for s in (-1.0, 0.5, 2.0)})
    assert [cubic[s] for s in (0.5, -1.0, 2.0)] == pytest.approx(
        [2.920 * 0.3 * s**3 for s in (0.5, 1.0, 2.0)], rel=1e-3
    )


def test_doses_whose_shifts_fall_share_their_mean_square() -> None:
    bounds = chance({1.0: (0.4, -0.4), 2.0: (0.3, -0.3), 3.0: (0.5, -0.5)})
    assert bounds[1.0] == bounds[2.0] == pytest.approx(2.920 * ((0.16 + 0.09) / 2) ** 0.5, rel=1e-3)
    assert bounds[3.0] == pytest.approx(2.920 * 0.5, rel=1e-3)


def test_a_strength_whose_controls_all_broke_has_a_bound_between_doses_and_none_beyond_them() -> None:
    found = chance({1.0: (0.3, -0.3), 2.0: (), 3.0: (0.5, -0.5), -4.0: ()})
    assert list(found) == [1.0, 2.0, 3.0]
    assert found[2.0] == pytest.approx(2.920 * ((0.09 + 0.25) / 2) ** 0.5, rel=1e-3)
    assert chance({1.0: ()}) == {}
    assert chance({1.0: (0.0, 0.0)}) == {1.0: 0.0}


def test_directions_that_broke_do_not_count() -> None:
    found = chance({1.0: (0.3,) * 4, 2.0: (0.3,)})
    assert found == {1.0: pytest.approx(2.132 * 0.3, rel=1e-3), 2.0: pytest.approx(6.314 * 0.3, rel=1e-3)}


def test_claims_that_could_be_passed_one_by_one_share_the_one_case_in_twenty() -> None:
    moved = {1.0: (0.2, -0.1, 0.3, 0.1)}
    one, two = chance(moved)[1.0], chance(moved, tests=2)[1.0]
    assert two / one == pytest.approx(2.776 / 2.132, rel=1e-3)
