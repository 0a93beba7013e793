"""The pages of evidence state what failed, whether the seeds agree, and how long the parts took in all."""

from typing import Any

from benchmarks.quality.__main__ import PARTS, parsed
from benchmarks.quality.concepts import data_digest
from benchmarks.quality.pages.evidence import (
    PAGES,
    data_of,
    one_dose_table,
    time_at_once,
    time_of_others,
    time_of_parts,
)
from benchmarks.quality.pages.gates import agreement, failed_checks
from steering.concepts import CONCEPTS


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


def test_runs_on_other_pairs_or_prompts_are_named() -> None:
    runs = [{"is_of": one, "data": data_digest(one)} for one in ("sentiment", "refusal")]
    assert data_of(runs) == "as below"
    assert data_of([*runs, {"is_of": "formality", "data": data_digest("refusal")}]) == "changed since: formality"
    assert data_of([*runs, {"is_of": "formality"}]) == "no digest"


def test_the_time_is_the_sum_over_the_parts_as_they_were_last_measured() -> None:
    run = {"seconds": 3200, "processor_seconds": 6000, "processors": 2, "processor": "AMD EPYC", "date": "2026-11-27"}
    later = {**run, "seconds": 400, "processor_seconds": 600, "date": "2026-12-02"}
    runs = {"dose": {"sentiment": run, "refusal": later}, "ranges": {"sentiment": run}}
    assert time_of_parts(runs) == (
        "The parts of `benchmarks.quality` took 60.0 minutes in all on 2 processors (AMD EPYC), and 110.0 minutes of "
        "processor time, 2026-11-27 to 2026-12-02. "
    ), "ranges are no part"
    assert time_of_parts({}) == ""
    assert time_of_others({"coverage": later, "random_directions": {"date": "2026-11-30"}}) == (
        "`described` begins no concept after 60 minutes; `coverage` 7 minutes (2026-12-02); `random_directions` has no "
        "recorded time. "
    )
    assert time_at_once(run).endswith("on 2026-11-27, as they were then, and took 53 minutes.\n")
    assert "not been measured in one run" in time_at_once(None)


def test_both_sides_of_a_concept_at_one_dose_a_side_are_compared_with_chance() -> None:
    rows = one_dose_table().splitlines()
    assert (
        "| qwen2.5-coder-0.5b | specificity | 48 | -1.18 | -0.36 [-0.44, -0.28] | +0.20 [+0.11, +0.28] | "
        "1.32 [1.13, 1.54], beyond 1.5 |"
    ) in rows
    assert (
        "| qwen2.5-coder-0.5b | specificity | 48 | 0.96 | +0.21 [+0.13, +0.30] | +0.09 [+0.01, +0.17] | 1.26 [1.10, 1.45] |"
    ) in rows
    assert not any("| refusal |" in row for row in rows), "measured at several doses a side"


def test_evidence_is_every_part_but_the_ranges_with_every_concept() -> None:
    chosen = parsed(["--second", "other.gguf"])
    assert {*PAGES, "ranges"} == {*chosen.only, "ranges"} == {*PARTS}
    assert tuple(chosen.concepts) == tuple(CONCEPTS)
