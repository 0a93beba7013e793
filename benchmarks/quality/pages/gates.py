"""The tables of docs/report.md: concept by method, with the three gates, and texts."""

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.page import results, table

GATES = ("control", "utility", "robustness")


def gates_table() -> str:
    """Shows for each concept and method how many seeds pass each gate."""
    rows = [
        (
            concept,
            method,
            f"{entry['strength']:g} at {', '.join(map(str, entry['layers']))}",
            *(_passed(entry, gate) for gate in GATES),
            _shift(entry),
            "pass" if entry["passed"] else "fail",
            "yes" if entry["seeds_agree"] else "no",
            f"{entry['prompts']}, {entry['varied']}, {entry['tokens']}",
        )
        for concept, methods in results().get("gates", {}).items()
        for method, entry in methods.items()
    ]
    columns = (
        "concept", "method", "strength at layers", *GATES, "shift (chance)", "all", "seeds agree",
        "prompts, varied, tokens",
    )  # fmt: skip
    return table(columns, rows)


def _passed(entry: Mapping[str, Any], gate: str) -> str:
    seeds = [one["gates"] for one in entry["seeds"]]
    return f"{sum(bool(gates) and gates[gate]['passed'] for gates in seeds)} of {len(seeds)}"


def _shift(entry: Mapping[str, Any]) -> str:
    one = entry["seeds"][0]
    if not one["gates"]:
        return "broke"
    check = one["gates"]["control"]["checks"][0]
    return f"{check['value']:+.2f} ({check['threshold']:.2f})"
