"""The table of docs/transfer.md."""

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.page import results, table

KINDS = ("native", "transferred", "random")


def transfer_table() -> str:
    """Shows what each concept reads and how far it steers after the transfer, against native and random directions."""
    rows = [
        (
            concept,
            f"{one['from']} {one['layers'][0]} to {one['to']} {one['layers'][1]}",
            f"{one['explained']:.2f}",
            f"{one['cosine']:+.2f}",
            *(_estimate(one["auroc"][kind], "") for kind in KINDS),
            *(_estimate(one["shift"][kind], "+") for kind in KINDS[:2]),
            _random(one),
            str(one["prompts"]),
        )
        for concept, found in results().get("transfer", {}).items()
        for one in found
    ]
    columns = (
        "concept", "from, to (layer)", "explained", "cosine", *(f"AUROC, {kind}" for kind in KINDS),
        *(f"shift, {kind}" for kind in KINDS), "prompts",
    )  # fmt: skip
    return table(columns, rows)


def _random(one: Mapping[str, Any]) -> str:
    """States what one random direction in twenty reaches; of older results, the mean shift of three."""
    return f"{one['chance']:.2f}" if "chance" in one else _estimate(one["shift"]["random"], "+")


def transfer_counts() -> str:
    """States how much was measured."""
    found = [one for entries in results().get("transfer", {}).values() for one in entries]
    if not found:
        return "Nothing is measured yet.\n"
    prompts, tokens = (sorted({one[name] for one in found}) for name in ("prompts", "tokens"))
    anchors = [one["anchors"] for one in found]
    return (
        f"{', '.join(map(str, prompts))} prompts and {', '.join(map(str, tokens))} tokens an answer for each shift; "
        f"{', '.join(map(str, sorted(set(anchors))))} anchor texts; relative dose {found[0]['dose']:g}.\n"
    )


def _estimate(found: Mapping[str, Any] | None, sign: str) -> str:
    if found is None:
        return "broke"
    low, high = found["interval"] or (found["mean"], found["mean"])
    return f"{found['mean']:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"
