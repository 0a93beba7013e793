"""The table of docs/evidence.md: what was measured, with which counts, for how long, by which versions on which machine."""

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.page import results, table

PAGES = {
    "cards": "[concepts](concepts.md)",
    "ranges": "[concepts](concepts.md)",
    "choice": "[dose-response](dose_response.md)",
    "dose": "[dose-response](dose_response.md)",
    "holding": "[dose-response](dose_response.md)",
    "training": "[training](training.md)",
    "gates": "[deployment report](report.md)",
    "transfer": "[transfer](transfer.md)",
}


def evidence_table() -> str:
    """Shows the recorded runs by part; parts that were measured before runs were recorded say so."""
    runs: Mapping[str, Mapping[str, Any]] = results().get("runs", {})
    rows = []
    for part, page in PAGES.items():
        entries = list(runs.get(part, {}).values())
        if not entries:
            rows.append((part, page, "", "", "", "", "not recorded" if part in results() else "not measured"))
            continue
        last = max(entries, key=lambda one: str(one["date"]))
        counts = ", ".join(f"{name} {value}" for name, value in last["counts"].items())
        minutes = sum(one["seconds"] for one in entries) / 60.0
        machine = f"{last['processor']}, {last['processors']} cores, load {last['load']:.1f}"
        versions = (
            f"torch {last['torch']}, transformers {last['transformers']}, Python {last['python']}, {last['executor']}"
        )
        rows.append(
            (
                part,
                page,
                str(len(entries)),
                f"{counts}; seed {last['seed']}",
                f"{minutes:.0f}",
                last["date"],
                f"{machine}; {versions}",
            )
        )
    columns = ("part", "page", "concepts", "counts", "minutes", "date", "machine and versions")
    return table(columns, rows)
