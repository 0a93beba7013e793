"""The pages of evidence state what failed, whether the seeds agree, and how long the parts took in all."""

from typing import Any

from benchmarks.quality.pages.evidence import total_time
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


def test_the_total_counts_timed_parts_and_names_the_others() -> None:
    timed = {"seconds": 600, "processor_seconds": 240}
    parts = ("cards", "choice", "dose", "holding", "training", "gates", "transfer", "blind")
    runs = {part: {"sentiment": timed} for part in parts}
    assert total_time(runs).startswith(
        "All parts of `make evidence` together: 32 minutes of processor time, which is 16"
    )
    assert "Not complete" not in total_time(runs)
    runs["gates"] = {"sentiment": timed, "refusal": {"seconds": 600}}
    del runs["blind"]
    assert "Not complete: gates, blind." in total_time(runs)
