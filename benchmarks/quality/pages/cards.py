"""The table of docs/concepts.md with the quality cards of the starter concepts."""

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.page import range_text, results, table


def cards_table() -> str:
    """Shows the card of every starter concept at its recommended layer."""
    rows = [
        (
            concept,
            f"`{entry['position']}`",
            str(entry["layer"]),
            f"{entry['auroc']:.2f} [{entry['auroc_interval'][0]:.2f}, {entry['auroc_interval'][1]:.2f}]",
            f"{entry['separation']:.1f}",
            f"{entry['pair_agreement']:.2f}",
            f"{entry['random_auroc']:.2f}",
            f"{entry['scale']:.1f} ({entry['share']:.2f})",
            strengths_of_card(entry),
        )
        for concept, entry in results()["cards"].items()
    ]
    columns = (
        "concept", "position", "layer", "held-out AUROC", "separation", "pair agreement", "random", "natural scale",
        "recommended strengths",
    )  # fmt: skip
    return table(columns, rows)


def strengths_of_card(entry: Mapping[str, Any]) -> str:
    """The measured strengths above and below zero, or those to try where none is measured."""
    measured = [range_text(one) for one in (entry["strength"], entry["negative"]) if one]
    return ", ".join(measured) or f"to try: {range_text(entry['strengths_to_try'])}"
