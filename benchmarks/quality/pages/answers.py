"""The table of docs/answers.md: how many pairs of steered answers were distinguished."""

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.blind.reading import distinguished
from benchmarks.quality.page import results, table


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


def _found() -> Mapping[str, Any]:
    found: Mapping[str, Any] = results().get("blind", {})
    return found
