"""The pages of evidence state what failed, whether the seeds agree, and how long the parts took in all."""

from typing import Any

from benchmarks.quality.pages.cards import strengths_of_card
from benchmarks.quality.pages.evidence import EXPECTED, total_time
from benchmarks.quality.pages.gates import agreement, failed_checks


def check(name: str, passed: bool, interval: list[float] | None = None) -> dict[str, Any]:
    return {
        "name": name, "value": 0.2, "relation": "above", "threshold": 0.3, "passed": passed, "interval": interval,
    }  # fmt: skip


def seed(**passed: bool) -> dict[str, Any]:
    gates = {name: {"passed": one, "checks": [check(f"{name}.check", one)]} for name, one in passed.items()}
    return {"gates": gates}


def entry(*seeds: dict[str, Any]) -> dict[str, Any]:
    verdicts = {tuple(gate["passed"] for gate in one["gates"].values()) for one in seeds}
    return {"seeds": list(seeds), "seeds_agree": len(verdicts) == 1}


def test_failed_checks_are_listed_with_what_they_need() -> None:
    found = {"gates": {"control": {"checks": [check("shift", False, [-0.1, 0.5]), check("other", True)]}}}
    assert failed_checks(found) == "`shift` 0.20 [-0.10, +0.50], needs the interval above 0.30"


def test_a_seed_without_a_failed_check_says_so_and_one_that_broke_too() -> None:
    assert failed_checks(seed(control=True)) == "none"
    assert failed_checks({"gates": {}}) == "broke"


def test_seeds_that_fail_different_gates_agree_on_the_whole_only() -> None:
    assert agreement(entry(seed(control=True, utility=False), seed(control=True, utility=False))) == "yes"
    assert agreement(entry(seed(control=False, utility=True), seed(control=True, utility=False))) == "on the whole"
    assert agreement(entry(seed(control=True, utility=True), seed(control=True, utility=False))) == "no"


def test_the_total_counts_every_concept_of_every_part() -> None:
    time = {"seconds": 60, "processor_seconds": 90}
    runs = {part: {str(n): time for n in range(count)} for part, count in EXPECTED.items()}
    found, count = total_time(runs), sum(EXPECTED.values())
    assert found.startswith(
        f"The parts of `make evidence` took {count} minutes on 2 processors, and {1.5 * count:.0f} minutes of"
    )
    assert "Extrapolated" not in found
    assert "Not in the sum" not in found


def test_the_mean_stands_for_concepts_without_a_time_and_parts_without_one_are_named() -> None:
    runs = {"gates": {"sentiment": {"seconds": 60, "processor_seconds": 60}, "refusal": {"seconds": 600}}}
    found = total_time(runs)
    assert found.startswith(f"The parts of `make evidence` took {EXPECTED['gates']} minutes on 2 processors")
    assert f"Extrapolated from some concepts: gates (1 of {EXPECTED['gates']} concepts)." in found
    assert "no time is recorded: cards, choice, dose, holding, training, transfer, blind." in found


def test_a_card_shows_what_was_measured_both_ways_or_what_to_try() -> None:
    measured = {"strength": [1.0, 3.67], "negative": [-1.67, -1.67], "strengths_to_try": None}
    assert strengths_of_card(measured) == "1 to 3.67, -1.67"
    assert strengths_of_card({**measured, "strength": None}) == "-1.67"
    assert (
        strengths_of_card({"strength": None, "negative": None, "strengths_to_try": [0.25, 0.59]})
        == "to try: 0.25 to 0.59"
    )
