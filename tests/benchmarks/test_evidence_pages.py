"""The pages of evidence state what failed, whether the seeds agree, and how long the parts took in all."""

from typing import Any

from benchmarks.quality.__main__ import PARTS, parsed
from benchmarks.quality.concepts import data_digest
from benchmarks.quality.pages.evidence import PAGES, data_of, whole_time
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


def test_the_time_is_that_of_a_run_of_all_parts() -> None:
    run = {"seconds": 3200, "processor_seconds": 6000, "processors": 2, "processor": "AMD EPYC", "date": "2026-11-27"}
    assert whole_time(run) == (
        "`make evidence` took 53 minutes on 2 processors (AMD EPYC), and 100 minutes of processor time, on 2026-11-27.\n"
    )
    assert "not run as a whole" in whole_time(None)


def test_evidence_is_every_part_but_the_ranges_with_every_concept() -> None:
    chosen = parsed(["--second", "other.gguf"])
    assert {*PAGES, "ranges"} == {*chosen.only, "ranges"} == {*PARTS}
    assert tuple(chosen.concepts) == tuple(CONCEPTS)
