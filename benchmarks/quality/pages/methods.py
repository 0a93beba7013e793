"""The tables of docs/report_results.md that compare methods: concept by method, with the three gates."""

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.page import results, table
from benchmarks.quality.pages.gates import GATES, failed_checks, operating_point
from benchmarks.quality.reports.methods import METHODS
from steering.concepts import CONCEPTS

Entries = Mapping[str, Mapping[str, Any]]


def methods_table() -> str:
    """Shows which gates each concept passes by each method, with the shift, the perplexity and what fails."""
    found = _found()
    rows = [_row(concept, method, found[concept][method]) for concept in found for method in found[concept]]
    columns = ("concept", "method", "strength at layers", *GATES, "shift (chance)", "perplexity", "checks that fail")
    return table(columns, rows)


def methods_summary() -> str:
    """Shows for how many concepts each method passes each gate, and how often the text moves furthest by it among those that pass
    the gate of utility."""
    found = _found()
    furthest = [furthest_method(entries) for entries in found.values()]
    rows = []
    for method in METHODS:
        entries = [one[method]["seeds"][0] for one in found.values() if method in one]
        counts = [sum(_passes(one, gate) for one in entries) for gate in GATES]
        every = sum(all(_passes(one, gate) for gate in GATES) for one in entries)
        rows.append((method, *(f"{n} of {len(entries)}" for n in (*counts, every)), str(furthest.count(method))))
    return table(("method", *GATES, "all three", "furthest at a utility that passes"), rows)


def methods_counts() -> str:
    """States how much was measured."""
    counts = {
        f"{one['prompts']} prompts, {one['varied']} of them varied; answers to each under each steering: {one['samples']}; tokens of an answer: "
        f"{one['tokens']}; seed: {', '.join(str(seed['seed']) for seed in one['seeds'])}"
        for entries in _found().values()
        for one in entries.values()
    }
    return "".join(f"{one[:1].upper()}{one[1:]}.\n" for one in sorted(counts))


def furthest_method(entries: Entries) -> str | None:
    """Returns the method with the largest shift among those that pass the gate of utility; None where none does."""
    passing = {name: _moved(one["seeds"][0]) for name, one in entries.items() if _passes(one["seeds"][0], "utility")}
    return max(passing, key=lambda name: passing[name], default=None)


def _found() -> Mapping[str, Entries]:
    found = results().get("methods", {})
    return {concept: found[concept] for concept in CONCEPTS if concept in found}


def _row(concept: str, method: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    (one,) = entry["seeds"]
    if not one["gates"]:
        return (concept, method, operating_point(entry), *["fail"] * len(GATES), "", "", "broke")
    control, utility = (one["gates"][name]["checks"] for name in ("control", "utility"))
    low, high = control[0]["interval"]
    chance = "" if one["chance"] is None else f" ({one['chance']:.2f})"
    return (
        concept,
        method,
        operating_point(entry),
        *("pass" if _passes(one, gate) else "fail" for gate in GATES),
        f"{_moved(one):+.2f} [{low:+.2f}, {high:+.2f}]{chance}",
        f"{utility[0]['value']:.2f}",
        "" if entry["passed"] else failed_checks(one),
    )


def _passes(one: Mapping[str, Any], gate: str) -> bool:
    return bool(one["gates"]) and bool(one["gates"][gate]["passed"])


def _moved(one: Mapping[str, Any]) -> float:
    return float(one["gates"]["control"]["checks"][0]["value"])
