"""How far a dose-response reaches at a perplexity, and where text breaks: planted curves whose answers are known."""

from math import log
from typing import Any

import numpy as np
import pytest

from benchmarks.quality.bound import breaking_doses, typical_breaking_dose
from benchmarks.quality.curves import Curve, crossing, curve, difference, reach_interval, reached
from steering.errors import NonfiniteActivations
from steering.lab.trials import AnswerMeasures, Trial


def straight(gain: float, cost: float, noise: float = 0.0) -> Curve:
    """Strengths 0 to 3 on 40 prompts: the score grows by gain a strength, the surprise by cost."""
    strengths = np.array([0.0, 1.0, 2.0, 3.0])
    own = noise * np.random.default_rng(5).standard_normal(40)
    return Curve(strengths, strengths[:, None] * (gain + own), strengths[:, None] * np.full(40, cost))


def trial(score: float, surprise: float | None) -> Trial:
    return Trial((AnswerMeasures(score, surprise, 0.0, 0.1), AnswerMeasures(score + 1.0, surprise, 0.0, 0.1)))


def test_the_crossing_lies_between_its_neighbours() -> None:
    costs, values = np.array([0.0, 1.0, 3.0]), np.array([0.0, 10.0, 20.0])
    assert crossing(costs, values, 2.0) == 15.0
    assert crossing(costs, values, 0.5) == 5.0
    assert crossing(costs, values, 9.0) == 20.0
    assert crossing(np.array([0.0, 2.0, 0.0]), values, 1.0) == 5.0


def test_a_straight_line_reaches_gain_over_cost() -> None:
    found = straight(0.5, 0.25)
    assert reached(found, 1.5) == pytest.approx(0.5 * log(1.5) / 0.25)
    assert reached(found, 100.0) == pytest.approx(1.5)


def test_equal_curves_do_not_differ_and_a_better_one_surely_does() -> None:
    one, other = straight(0.5, 0.25, noise=0.2), straight(0.3, 0.25, noise=0.2)
    assert difference(one, one, 1.5) == (0.0, 0.0, 0.0)
    mean, low, high = difference(one, other, 1.5)
    assert mean == pytest.approx(0.2 * log(1.5) / 0.25)
    assert 0.0 < low <= mean <= high
    low, high = reach_interval(one, 1.5)
    assert low < reached(one, 1.5) < high


def test_a_curve_is_taken_along_its_sign_from_0_outwards() -> None:
    unsteered = trial(1.0, 2.0)
    broken = Trial(broken=NonfiniteActivations("too far"))
    found = curve((-2.0, -1.0, -3.0), (trial(0.0, 2.5), trial(0.5, 2.25), broken), unsteered)
    assert found.strengths.tolist() == [0.0, -1.0, -2.0]
    assert found.shift.tolist() == [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    assert found.surprise.tolist() == [[0.0, 0.0], [0.25, 0.25], [0.5, 0.5]]


def dose_results(ratios: dict[float, float]) -> dict[str, Any]:
    """A concept whose relative dose is a tenth of the strength."""
    return {"points": [{"strength": s, "perplexity_ratio": r, "relative_dose": abs(s) / 10} for s, r in ratios.items()]}


def test_the_breaking_dose_is_where_perplexity_passes_half_as_much_again() -> None:
    dose = {
        "even": dose_results({-2.0: 2.25, 0.0: 1.0, 2.0: 2.25}),
        "tough": dose_results({-2.0: 1.4, 0.0: 1.0, 2.0: 3.0}),
    }
    found = breaking_doses(dose)
    assert found["even +"] == found["even -"] == pytest.approx(0.1)
    assert found["tough -"] is None
    assert found["tough +"] == pytest.approx(0.2 * log(1.5) / log(3.0))
    assert typical_breaking_dose(found) == pytest.approx(0.1)
    assert typical_breaking_dose({"a": None, "b": 0.3, "c": None}) is None
