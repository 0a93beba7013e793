"""A vector reaches its instruction only where its text holds, on prompts that measured nothing before."""

from typing import Any

import pytest

from benchmarks.quality.distilling import (
    EVALUATED,
    arms_of,
    data_of,
    evaluated,
    kept_results,
    reaches,
    told_apart,
    tried,
)
from steering.concepts.loader import load_instructed, load_neutral, load_report_prompts


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


def test_the_reader_that_tells_answers_of_other_prompts_apart_best_is_known_with_what_it_read() -> None:
    def reading(auroc: float) -> dict[str, Any]:
        return {"choosing": {name: {"told": {"effect": {"mean": 0.1}, "auroc": auroc}} for name in ("one", "other")}}

    fluent, broken = ({"told": {"surprise": surprise, "repetition": 0.0}} for surprise in (1.0, 2.0))
    parts = {"choosing": {"one": {"arms": fluent}, "other": {"arms": broken}}}
    found = parts | {"readings": {"first": reading(0.6), "second": reading(0.8)}}
    assert told_apart(found, "second") == 0.8 > told_apart(found, "first")
    assert arms_of(found, "choosing", "second")["other"]["told"]["surprise"] == 2.0
    assert not arms_of(found, "instructions", "second")


def test_prompts_that_were_reported_before_are_not_reported_again() -> None:
    before = [load_report_prompts(name)[:16] for name in ("sentiment", "formality")]
    assert len(evaluated()) == EVALUATED
    assert not set(evaluated()) & {prompt for prompts in before for prompt in prompts}


def test_no_prompt_is_fitted_chosen_by_and_reported() -> None:
    sets = [set(tried()), set(evaluated()), set(load_neutral()), set(load_instructed())]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_results_of_other_settings_or_data_are_not_kept() -> None:
    about = {"seed": 1}
    parts: dict[str, Any] = {"choosing": {"pirate": 1}, "instructions": {"pirate": 2}}
    data = {part: data_of(part) for part in parts}
    found = {**about, **parts, "data": data, "readings": {"reader": {**parts, "date": "2026-12-03"}}}
    assert kept_results(found, about, "choosing") == found
    assert kept_results(found, {"seed": 2}, "choosing") == {}
    other = {**found, "data": {**data, "choosing": "of other prompts"}, "note": "of both"}
    readings = {"reader": {"instructions": parts["instructions"], "date": "2026-12-03"}}
    left = {**about, "data": other["data"], "choosing": {}, "instructions": parts["instructions"], "readings": readings}
    assert kept_results(other, about, "choosing") == left
    assert kept_results(other, about, "instructions") == other
