"""The table of docs/evidence.md: what was measured, with which counts, for how long, by which versions on which machine."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.quality.concepts import CONCEPTS
from benchmarks.quality.page import results, table
from benchmarks.quality.training import CONTESTED
from steering.concepts import CONCEPTS as STARTERS

PAGES = {
    "cards": "[concepts](concepts.md)",
    "ranges": "[concepts](concepts.md)",
    "choice": "[dose-response](dose_response.md)",
    "dose": "[dose-response](dose_response.md)",
    "holding": "[dose-response](dose_response.md)",
    "training": "[training](training.md)",
    "gates": "[deployment report](report.md)",
    "transfer": "[transfer](transfer.md)",
    "blind": "[answers](answers.md)",
}
EXPECTED = {
    "cards": len(STARTERS),
    "choice": len(CONCEPTS),
    "dose": len(CONCEPTS),
    "holding": len(CONCEPTS),
    "training": len(CONTESTED),
    "gates": len(STARTERS),
    "transfer": len(STARTERS),
    "blind": len(STARTERS),
}
"""Parts of `make evidence`, with the number of concepts that each measures. Ranges are not among them: they are part of the package."""
PROCESSORS = 2


def evidence_table() -> str:
    """Shows the recorded runs by part; parts that were measured before runs were recorded say so."""
    runs: Mapping[str, Mapping[str, Any]] = results().get("runs", {})
    rows = []
    for part, page in PAGES.items():
        entries = list(runs.get(part, {}).values())
        if not entries:
            rows.append((part, page, *[""] * 5, "not recorded" if part in results() else "not measured"))
            continue
        last = max(entries, key=lambda one: str(one["date"]))
        counts = ", ".join(f"{name} {value}" for name, value in last["counts"].items())
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
                _minutes(entries, "seconds"),
                _minutes(entries, "processor_seconds"),
                last["date"],
                f"{machine}; {versions}",
            )
        )
    columns = (
        "part", "page", "concepts", "counts", "minutes", "processor minutes", "date", "machine and versions",
    )  # fmt: skip
    return table(columns, rows)


def duration() -> str:
    """States how long `make evidence` took in all."""
    return total_time(results().get("runs", {}))


def total_time(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """States the time of all parts of `make evidence`: where only some concepts have one, their mean stands for the others."""
    wall, processor, partly, lacking = 0.0, 0.0, [], []
    for part, expected in EXPECTED.items():
        timed = [one for one in runs.get(part, {}).values() if "processor_seconds" in one]
        if not timed:
            lacking.append(part)
            continue
        wall += fmean(one["seconds"] for one in timed) * expected / 60.0
        processor += fmean(one["processor_seconds"] for one in timed) * expected / 60.0
        if len(timed) < expected:
            partly.append(f"{part} ({len(timed)} of {expected} concepts)")
    return (
        f"The parts of `make evidence` took {wall:.0f} minutes on {PROCESSORS} processors, and {processor:.0f} minutes of processor time."
        + (f" Extrapolated from some concepts: {', '.join(partly)}." if partly else "")
        + (f" Not in the sum, since no time is recorded: {', '.join(lacking)}." if lacking else "")
        + "\n"
    )


def _minutes(entries: Sequence[Mapping[str, Any]], name: str) -> str:
    """The sum over the concepts; empty where one of them has no such number."""
    return f"{sum(one[name] for one in entries) / 60.0:.1f}" if all(name in one for one in entries) else ""
