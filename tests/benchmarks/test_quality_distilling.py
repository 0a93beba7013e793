"""A vector reaches its instruction only where its text holds, and its strength is chosen among those whose text holds well."""

from typing import Any

import pytest

from benchmarks.quality.distilling import STRENGTHS, choosing, chosen_strength, evaluated, reaches, within
from steering.concepts.loader import load_neutral


def arm(effect: float, surprise: float = 1.0, repetition: float = 0.0) -> dict[str, Any]:
    return {"effect": {"mean": effect}, "surprise": surprise, "repetition": repetition}


@pytest.mark.parametrize(
    ("vector", "reached"),
    [
        (arm(0.3), True),
        (arm(0.2), True),
        (arm(0.19), False),
        (arm(0.3, surprise=1.25), True),
        (arm(0.9, surprise=1.26), False),
        (arm(0.3, repetition=0.15), True),
        (arm(0.9, repetition=0.16), False),
    ],
)
def test_an_effect_counts_where_the_text_is_about_as_fluent(vector: dict[str, Any], reached: bool) -> None:
    assert reaches(vector, arm(0.2, repetition=0.1)) == reached


def test_the_strength_has_the_largest_effect_among_fluent_answers() -> None:
    arms = {f"apply {one:g}": arm(0.1 * one, surprise=0.6 + 0.25 * one) for one in STRENGTHS} | {"told": arm(0.5)}
    assert within(arms["apply 2.5"], arms["told"])
    assert chosen_strength(arms) == 2.0  # 1.1 times the surprise; at 2.5 it is more than 1.15 times
    arms["apply 1.5"] = arm(0.3)
    assert chosen_strength(arms) == 1.5
    broken = {f"apply {one:g}": arm(one, repetition=0.5) for one in STRENGTHS} | {"told": arm(0.5)}
    assert chosen_strength(broken) == STRENGTHS[0]


def test_no_prompt_is_fitted_chosen_by_and_reported() -> None:
    sets = [set(choosing()), set(evaluated()), set(load_neutral())]
    assert not sets[0] & sets[1] | sets[1] & sets[2] | sets[0] & sets[2]
