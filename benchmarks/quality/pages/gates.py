"""The tables of docs/report_results.md about the starter concepts: the three gates, what fails, side effects."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.quality.page import results, table
from steering.concepts import CONCEPTS

GATES = ("control", "utility", "robustness")
SIGNS = {"above": "needs the interval above", "at_most": "at most", "at_least": "at least"}


def gates_table() -> str:
    """Shows for each concept how many seeds pass each gate."""
    rows = [
        (
            concept,
            operating_point(entry),
            *(gate_count(entry, gate) for gate in GATES),
            ", ".join(_shift(one) for one in entry["seeds"]),
            "pass" if entry["passed"] else "fail",
            agreement(entry),
            f"{entry['prompts']}, {entry['samples']}, {entry['tokens']}",
        )
        for concept, entry in _entries()
    ]
    columns = (
        "concept", "strength at layers", *GATES, "shift (chance) by seed", "all", "seeds agree",
        "prompts, samples, tokens",
    )  # fmt: skip
    return table(columns, rows)


def failed_table() -> str:
    """Shows the checks that fail, with their numbers, for each seed, or says that none does."""
    rows = [
        (concept, *(failed_checks(one) for one in entry["seeds"]))
        for concept, entry in _entries()
        if not entry["passed"]
    ]
    if not rows:
        return "No check fails under any seed.\n"
    seeds: list[dict[str, Any]] = next((entry["seeds"] for _, entry in _entries()), [])
    return table(("concept", *(f"seed {one['seed']}" for one in seeds)), rows)


def side_effects_table() -> str:
    """Shows how far the answers moved along every concept: the mean of the seeds, bold where no interval contains 0."""
    rows = [(f"{concept} {entry['strength']:g}", *_effects(entry)) for concept, entry in _entries()]
    return table(("steered", *CONCEPTS), rows)


def _effects(entry: Mapping[str, Any]) -> Iterator[str]:
    """The cells of one row."""
    for name in CONCEPTS:
        yield side_effect_cell([one["side_effects"][name] for one in entry["seeds"] if name in one["side_effects"]])


def side_effect_cell(found: Sequence[Mapping[str, Any]]) -> str:
    """Formats the shifts of all seeds: their mean, bold where every interval lies on the same side of 0."""
    if not found:
        return ""
    shown = f"{fmean(one['mean'] for one in found):+.2f}"
    lows, highs = zip(*(one["interval"] or (0.0, 0.0) for one in found), strict=True)
    return f"**{shown}**" if min(lows) > 0.0 or max(highs) < 0.0 else shown


def _entries() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The reports in the order of the concepts."""
    found = results().get("gates", {})
    return ((concept, found[concept]) for concept in CONCEPTS if concept in found)


def operating_point(entry: Mapping[str, Any]) -> str:
    """States the strength and the layers."""
    return f"{entry['strength']:g} at {', '.join(map(str, entry['layers']))}"


def gate_count(entry: Mapping[str, Any], gate: str) -> str:
    """States how many seeds pass a gate."""
    seeds = [one["gates"] for one in entry["seeds"]]
    return f"{sum(bool(gates) and gates[gate]['passed'] for gates in seeds)} of {len(seeds)}"


def agreement(entry: Mapping[str, Any]) -> str:
    """States whether the seeds pass and fail the same gates, and if not, whether they agree on the whole."""
    if entry["seeds_agree"]:
        return "yes"
    verdicts = {bool(one["gates"]) and all(gate["passed"] for gate in one["gates"].values()) for one in entry["seeds"]}
    return "on the whole" if len(verdicts) == 1 else "no"


def _shift(one: Mapping[str, Any]) -> str:
    if not one["gates"]:
        return "broke"
    check = one["gates"]["control"]["checks"][0]
    return f"{check['value']:+.2f} ({check['threshold']:.2f})"


def failed_checks(one: Mapping[str, Any]) -> str:
    """Lists the checks that one seed fails, each with its number and what it needs."""
    if not one["gates"]:
        return "broke"
    failed = [check for gate in one["gates"].values() for check in gate["checks"] if not check["passed"]]
    return "; ".join(_check(check) for check in failed) or "none"


def _check(check: Mapping[str, Any]) -> str:
    low, high = check["interval"] or (None, None)
    interval = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
    return f"`{check['name']}` {check['value']:.2f}{interval}, {SIGNS[check['relation']]} {check['threshold']:.2f}"
