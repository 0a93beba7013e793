"""The tables of docs/concepts.md with the cards of the concepts in words."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.described import RESULTS
from benchmarks.quality.page import table
from steering.concepts.described import described

SIDES = ("down", "up")


def described_tables() -> str:
    """Shows a table for each model that was measured."""
    return "\n".join(_table(path) for path in sorted(RESULTS.parent.glob("described*.json")))


def _table(path: Path) -> str:
    """States how many were measured and what came out, then shows the card of each."""
    found = json.loads(path.read_text(encoding="utf-8"))
    concepts: Mapping[str, Mapping[str, Any]] = found["concepts"]
    read = sum(entry["interval"][0] > 0.5 for entry in concepts.values())
    both = sum(all(entry["holds"]) for entry in concepts.values())
    one = sum(any(entry["holds"]) for entry in concepts.values()) - both
    rows = [
        (
            name,
            entry["kind"],
            str(entry["pairs"]),
            str(entry["layer"]),
            f"{entry['auroc']:.2f} {_interval(entry['interval'])}",
            *(_shift(entry[side]) for side in SIDES),
            f"{entry['up']['chance']:.2f}",
            ", ".join(f"{entry[side]['perplexity_ratio']:.2f}" for side in SIDES),
            " and ".join(side for side, holds in zip(SIDES, entry["holds"], strict=True) if holds) or "none",
        )
        for name, entry in concepts.items()
    ]
    summary = (
        f"{found['model']}, {found['dtype']}, {found['date']}: {len(concepts)} of {len(described())} concepts were measured (data `{found['data']}`). The interval of the AUROC "
        f"lies above 0.5 for {read} of them. Steered at a relative dose of {found['dose']}, answers to {found['prompts']} other prompts move "
        f"beyond chance in both directions for {both} and in one for {one} more.\n\n"
    )
    columns = (
        "concept",
        "kind",
        "pairs",
        "layer",
        "held-out AUROC",
        "shift down",
        "shift up",
        "chance",
        "perplexity",
        "holds",
    )
    return summary + table(columns, rows)


def _shift(point: Mapping[str, Any]) -> str:
    return f"{point['concept_score']:+.2f} {_interval(point['concept_interval'])}"


def _interval(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"
