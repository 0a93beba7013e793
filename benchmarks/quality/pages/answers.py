"""docs/answers.md: pairs of steered answers, and who distinguished them."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.quality.blind.reading import distinguished
from benchmarks.quality.page import one_line, results, table


def distinguished_table() -> str:
    """Shows for each concept with a range how many pairs the second model and the reader distinguished."""
    rows = []
    for concept, entry in _found().items():
        pairs = entry["pairs"]
        if not pairs:
            rows.append((concept, "no strength holds", "", "", ""))
            continue
        up, down = entry["strengths"]
        layers = ", ".join(map(str, entry["layers"]))
        counts = distinguished(pairs)
        by_model, by_reader = (f"{counts[who]} of {counts['pairs']}" for who in ("model", "reader"))
        read = "not read" if any(pair["read"] is None for pair in pairs) else by_reader
        rows.append((concept, f"{up:g} and {down:g} (layer {layers})", by_model, read, entry["scorer"]))
    return table(
        ("concept", "strengths", "distinguished by the second model", "distinguished by the reader", "second model"),
        rows,
    )


def pairs_shown() -> str:
    """Shows the answers of every pair, with the verdicts."""
    return "\n".join(_section(concept, entry["pairs"]) for concept, entry in _found().items() if entry["pairs"])


def _found() -> Mapping[str, Any]:
    found: Mapping[str, Any] = results().get("blind", {})
    return found


def _section(concept: str, pairs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (one_line(pair["prompt"]), one_line(pair["up"]), one_line(pair["down"]), _scores(pair), _verdict(pair["read"]))
        for pair in pairs
    ]
    columns = ("prompt", "steered up", "steered down", "scores of the second model", "reader")
    return f"### {concept}\n\n{table(columns, rows)}"


def _scores(pair: Mapping[str, Any]) -> str:
    up, down = pair["scores"]
    return f"{up:+.2f}, {down:+.2f}"


def _verdict(read: bool | None) -> str:
    return "" if read is None else "distinguished" if read else "not distinguished"
