"""A vector reaches its instruction only where its text holds; the strength is that at which most instructions are reached."""

from typing import Any

import pytest

from benchmarks.quality.distilling import (
    STRENGTHS,
    arms_of,
    chosen_strength,
    evaluated,
    reaches,
    strength_of,
    told_apart,
    tried,
)
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


def test_the_strength_reaches_most_instructions_and_is_the_lowest_of_equals() -> None:
    def arms(needed: float, broken: float) -> dict[str, Any]:
        of = {one: arm(float(one >= needed), surprise=1.0 + float(one >= broken)) for one in STRENGTHS}
        return {f"apply {one:g}": found for one, found in of.items()} | {"told": arm(1.0)}

    assert chosen_strength({"one": arms(1.5, 9.0), "other": arms(2.0, 2.5)}) == 2.0
    assert chosen_strength({"one": arms(1.5, 2.0), "other": arms(2.0, 2.5)}) == 1.5
    assert chosen_strength({"one": arms(9.0, 9.0)}) == STRENGTHS[0]


def test_the_first_reader_chooses_the_strength_whoever_reads_best() -> None:
    names = ["told", *(f"apply {one:g}" for one in STRENGTHS)]

    def reading(needed: float, auroc: float) -> dict[str, Any]:
        effects = {arm: {"effect": {"mean": float(arm != f"apply {needed:g}")}, "auroc": auroc} for arm in names}
        return {"choosing": {"one": effects, "other": effects}}

    fluent = {arm: {"surprise": 1.0, "repetition": 0.0} for arm in names}
    broken = {**fluent, "apply 1": {"surprise": 2.0, "repetition": 0.0}}
    parts = {"choosing": {"one": {"arms": fluent}, "other": {"arms": broken}}}
    found = parts | {"readings": {"first": reading(2.5, 0.6), "second": reading(1.5, 0.8)}}
    assert strength_of(found) == 1.5, "at 1 the text of one is too surprising, and 2 reaches no more"
    assert told_apart(found, "second") == 0.8
    assert arms_of(found, "choosing", "second")["other"]["apply 1"]["surprise"] == 2.0
    assert not arms_of(found, "instructions", "second")


def test_no_prompt_is_fitted_chosen_by_and_reported() -> None:
    sets = [set(tried()), set(evaluated()), set(load_neutral())]
    assert not sets[0] & sets[1] | sets[1] & sets[2] | sets[0] & sets[2]
