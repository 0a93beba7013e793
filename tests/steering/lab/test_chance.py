"""Chance: a random direction passes the whole rule of "steers" in about 5 % of cases or fewer (no more than a rate of 5 % gives
in 999 of 1000 runs), and a planted effect passes it.

A fake scorer stands for the engine: the shift of a prompt's answer is a function of the strength, drawn for each
direction, plus the noise of the answer. All cases are drawn at once.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pytest
from scipy.stats import binom, t

from steering.auroc import Numbers
from steering.cards import DosePoint, Estimate
from steering.lab.evaluations import DOSE_STRENGTHS
from steering.lab.layer_sweep import STRENGTHS as BY_UNIT
from steering.lab.layer_sweep import best_point, point_to_test, with_chance
from steering.lab.trials import CONTROLS, AnswerMeasures, Trial, chance, chance_of, independent_claims
from steering.schemas.evaluation import LayerPointAnswer
from tests.narrowing import present

PROMPTS, CASES, SWEEPS = 16, 1000, 500
SWEEP_STRENGTHS = BY_UNIT["scale"]
STRENGTHS: Numbers = np.array(DOSE_STRENGTHS)
Draw = Callable[[np.random.Generator, tuple[int, ...]], Numbers]
"""(generator, shape of directions) -> shift of each direction at each of STRENGTHS, (*shape, strength)."""


def most(cases: int) -> float:
    """Returns the share of cases that a rule which passes 5 % exceeds in one test of a thousand."""
    return float(binom.ppf(0.999, cases, 0.05)) / cases


def estimates(answers: Numbers) -> Iterator[Estimate]:
    """Yields the mean of each row (row, prompt), with its 95 % interval."""
    reaches = t.ppf(0.975, PROMPTS - 1) * answers.std(axis=1, ddof=1) / PROMPTS**0.5
    for mean, reach in zip(answers.mean(axis=1).tolist(), reaches.tolist(), strict=True):
        yield Estimate(mean, (mean - reach, mean + reach))


def sizes(spread: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """A size of each direction, (*shape, 1)."""
    return np.asarray(rng.normal(0.0, spread, (*shape, 1)))


def linear(spread: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """The usual one: proportional to the dose."""
    return sizes(spread, rng, shape) * STRENGTHS


def one_way(spread: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """Any edit moves the text the same way, whatever its sign: a length or style artefact."""
    return sizes(spread, rng, shape) * np.abs(STRENGTHS)


def saturated(spread: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """A shift that small doses already reach: far from linear."""
    return sizes(spread, rng, shape) * np.tanh(2.0 * STRENGTHS)


def cubic(spread: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """A shift that grows faster than the dose."""
    return sizes(spread, rng, shape) * STRENGTHS**3 / 16.0


def quadratic(spread: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """The same by the square of the dose, with the sign of the strength."""
    return sizes(spread, rng, shape) * STRENGTHS * np.abs(STRENGTHS) / 4.0


def threshold(spread: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """A shift of the largest strengths alone."""
    return sizes(spread, rng, shape) * np.sign(STRENGTHS) * (np.abs(STRENGTHS) >= 3.5)


def independent(spread: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """A shift at each strength that says nothing of that at the others."""
    return np.asarray(rng.normal(0.0, spread, (*shape, len(STRENGTHS))))


def independent_and_growing(spread: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """The same, with a spread proportional to the dose."""
    return independent(spread, rng, shape) * np.abs(STRENGTHS)


def partly_independent(spread: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """Linear, and an independent part with the spread of the linear one at strength 1."""
    return linear(spread, rng, shape) + independent(spread, rng, shape)


def nothing(_: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
    """No shift at all, so that only noise can pass."""
    return np.zeros((*shape, len(STRENGTHS)))


def share_that_steers(
    draw: Draw, noise: float, *, own: Numbers | None = None, controls: int = CONTROLS, cases: int = CASES
) -> float:
    """Returns in which share of cases a dose-response recommends a strength of either sign. noise: standard deviation of one
    answer's score; four unsteered answers are averaged. own: shift of the vector by strength; None: one more random one."""
    rng = np.random.default_rng(5)
    random = draw(rng, (cases, controls))
    vector = draw(rng, (cases,)) if own is None else np.broadcast_to(own, (cases, len(STRENGTHS)))
    unsteered = rng.normal(0.0, noise / 2.0, (cases, 1, PROMPTS))
    answers = vector[..., None] + rng.normal(0.0, noise, (cases, len(STRENGTHS), PROMPTS)) - unsteered
    moved = random[..., None] + rng.normal(0.0, noise, (*random.shape, PROMPTS)) - unsteered[:, None]
    return float(np.mean([_steers(*case) for case in zip(answers, moved, strict=True)]))


def bounds_of(strengths: Sequence[float], moved: Numbers, places: int = 1) -> dict[float, float]:
    """moved: (direction, strength, prompt)."""
    rows = dict(zip(strengths, moved.transpose(1, 0, 2), strict=True))
    return chance({s: row.mean(axis=1).tolist() for s, row in rows.items()}, places * independent_claims(rows))


def _steers(answers: Numbers, moved: Numbers) -> bool:
    """answers: (strength, prompt). moved: (direction, strength, prompt)."""
    bounds = bounds_of(DOSE_STRENGTHS, moved)
    return any(
        DosePoint(s, one.mean, present(one.interval), 1.0, 0.0, 0.0, 0.1, None, (1.0, 1.0), bounds[s]).margin
        is not None
        for s, one in zip(DOSE_STRENGTHS, estimates(answers), strict=True)
    )


DRAWS: dict[str, Draw] = {
    "linear": partial(linear, 0.3),
    "linear, small": partial(linear, 0.05),
    "one way": partial(one_way, 0.3),
    "saturated": partial(saturated, 0.5),
    "cubic": partial(cubic, 0.3),
    "quadratic": partial(quadratic, 0.3),
    "threshold": partial(threshold, 0.5),
    "independent": partial(independent, 0.3),
    "independent and growing": partial(independent_and_growing, 0.3),
    "partly independent": partial(partly_independent, 0.3),
    "nothing": nothing,
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_a_random_direction_steers_in_about_five_percent_of_cases_or_fewer(name: str, noise: float) -> None:
    """All strengths and both signs; with little noise only the spread between directions protects from a claim."""
    assert share_that_steers(DRAWS[name], noise) <= most(CASES)


@pytest.mark.parametrize("name", DRAWS)
def test_a_planted_effect_steers(name: str) -> None:
    assert share_that_steers(DRAWS[name], 0.2, own=1.5 * STRENGTHS, cases=100) >= 0.95


def test_the_spread_between_directions_counts_and_not_only_that_over_prompts() -> None:
    """With few directions, whose spread is known worst, and answers that hardly vary."""
    assert share_that_steers(DRAWS["linear"], 0.01, controls=4) <= most(CASES)


def trial(score: float) -> Trial:
    return Trial((AnswerMeasures(score, 1.0, 0.0, 0.1),))


def test_strengths_share_the_one_case_in_twenty_as_often_as_they_are_independent() -> None:
    controls = [0.2, -0.1, 0.3]
    rows = {strength: [*map(trial, controls)] for strength in (-1.0, 1.0)}
    assert chance_of(trial(0.0), rows) == pytest.approx(chance(dict.fromkeys((-1.0, 1.0), controls), tests=2))
    assert chance_of(trial(0.0), {1.0: rows[1.0]}) == pytest.approx(chance({1.0: controls}))
    sizes: Numbers = np.array(controls)[:, None]
    steady = {s: s * sizes for s in (-2.0, -1.0, 0.5, 1.0, 2.0)}
    assert independent_claims(steady) == pytest.approx(2.0)
    rng = np.random.default_rng(3)
    apart = {s: rng.normal(size=(2000, 1)) for s in (-1.0, 0.5, 1.0, 2.0)}
    assert independent_claims(apart) == pytest.approx(4.0, abs=0.01)
    noisy = {s: rng.normal(size=(2000, 8)) for s in (0.5, 1.0, 2.0)}
    assert independent_claims(noisy) < 2.5, "noise of the prompts, against which the intervals protect"
    spread: Numbers = np.linspace(-1.0, 1.0, 2000)[:, None]
    linear_and_noise = {s: s * spread + one for s, one in noisy.items()}
    assert independent_claims(linear_and_noise) == pytest.approx(1.0, abs=0.1), (
        "the correlation is estimated from 8 prompts"
    )
    assert independent_claims({**steady, 3.0: sizes[:1]}) == pytest.approx(3.0)
    assert independent_claims({1.0: np.zeros((0, 3))}) == independent_claims({}) == 1.0


SPREADS = {
    "equal": np.full(8, 0.3),
    "one large": np.array([1.0, *(0.05,) * 7]),
    "growing": np.geomspace(0.1, 1.0, 8),
}


def layers_of_sweeps(spreads: Numbers, noise: float, effect: float = 0.0) -> list[int | None]:
    """Returns the layers that sweeps recommend. A random vector has a direction of its own at each layer, as have the random
    directions at the layer that is tested. effect: shift of a strength of 1 at layer 3, in place of a random one."""
    rng, doses, layers = np.random.default_rng(8), np.array(SWEEP_STRENGTHS), len(spreads)
    slopes = rng.normal(0.0, 1.0, (SWEEPS, layers)) * spreads
    if effect:
        slopes[:, 3] = effect
    shape = (SWEEPS, layers, len(doses), PROMPTS)
    unsteered = rng.normal(0.0, noise / 2.0, (2, SWEEPS, 1, 1, PROMPTS))
    choosing, reporting = slopes[..., None, None] * doses[:, None] - unsteered + rng.normal(0.0, noise, (2, *shape))
    random = rng.normal(0.0, 1.0, (SWEEPS, CONTROLS, 1)) * doses
    noises = rng.normal(0.0, noise, (*random.shape, PROMPTS)) - unsteered[1]
    return [_layer(*case, spreads) for case in zip(choosing, reporting, random, noises, strict=True)]


def _layer(choosing: Numbers, reporting: Numbers, random: Numbers, noises: Numbers, spreads: Numbers) -> int | None:
    """choosing, reporting: (layer, strength, prompt). random: shift of each control at each strength for a spread of 1. noises: of
    it."""
    chosen = point_to_test(
        [
            layer_point(layer, strength, moved)
            for layer, rows in enumerate(choosing)
            for strength, moved in zip(SWEEP_STRENGTHS, estimates(rows), strict=True)
        ]
    )
    layer = present(chosen).layer
    there = zip(SWEEP_STRENGTHS, estimates(reporting[layer]), strict=True)
    points = [layer_point(layer, strength, moved) for strength, moved in there]
    bounds = bounds_of(SWEEP_STRENGTHS, (random * spreads[layer])[..., None] + noises, places=len(choosing))
    best = best_point(with_chance(points, bounds))
    return None if best is None else best.layer


def layer_point(layer: int, strength: float, moved: Estimate, perplexity: float = 1.0) -> LayerPointAnswer:
    return LayerPointAnswer(
        layer=layer,
        strength=strength,
        moved=moved,
        perplexity_ratio=perplexity,
        repetition=0.0,
        relative_dose=0.1,
        auroc=None,
        perplexity_interval=(perplexity, perplexity),
    )


@pytest.mark.parametrize("name", SPREADS)
def test_a_random_vector_has_no_layer_in_a_sweep(name: str) -> None:
    """Eight layers, at each of which it could pass."""
    found = layers_of_sweeps(SPREADS[name], 0.01)
    assert 1.0 - found.count(None) / SWEEPS <= most(SWEEPS)


def test_a_planted_effect_has_its_layer_in_a_sweep() -> None:
    found = layers_of_sweeps(SPREADS["equal"], 0.05, effect=1.5)
    assert found.count(3) >= 0.9 * SWEEPS


def test_a_sweep_tests_the_point_with_the_largest_lower_end_of_the_shift_in_coherent_text() -> None:
    near = layer_point(0, 1.0, Estimate(0.5, (0.4, 0.6)))
    far = layer_point(1, 1.0, Estimate(0.9, (0.3, 1.5)))
    broken = layer_point(2, 1.0, Estimate(2.0, (1.9, 2.1)), perplexity=1.6)
    assert point_to_test([far, broken, near]) is near
    assert point_to_test([broken]) is None
    on_average = layer_point(3, 1.0, Estimate(0.9, (0.8, 1.0))).model_copy(update={"perplexity_interval": (0.9, 1.6)})
    assert [point_to_test([near, on_average]), point_to_test([on_average])] == [near, on_average]
    bound = chance({1.0: (0.1, -0.1)}, tests=2)[1.0]
    (compared,) = with_chance([near], {1.0: bound})
    assert compared.chance == bound
    found = present(compared.advantage)
    assert (found.mean, *present(found.interval)) == pytest.approx((0.5 - bound, 0.4 - bound, 0.6 - bound))


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
