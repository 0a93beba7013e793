"""The table of docs/evidence.md: what was measured, with which counts, for how long, by which versions on which machine."""

from collections.abc import Mapping, Sequence
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
    "blind": "[answers](answers.md)",
}
OUTSIDE = ("ranges",)
"""Parts that `make evidence` does not measure: what they write is part of the package."""

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
    """States how long `make evidence` takes in all."""
    return total_time(results().get("runs", {}))


def total_time(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """States the sum over the parts of `make evidence`, and which parts have no processor time yet."""
    inside = [part for part in PAGES if part not in OUTSIDE]
    entries = [one for part in inside for one in runs.get(part, {}).values()]
    timed = [one for one in entries if "processor_seconds" in one]
    wall, processor = (sum(one[name] for one in timed) / 60.0 for name in ("seconds", "processor_seconds"))
    lacking = [
        part
        for part in inside
        if part not in runs or not all("processor_seconds" in one for one in runs[part].values())
    ]
    return (
        f"All parts of `make evidence` together: {processor:.0f} minutes of processor time, which is {processor / PROCESSORS:.0f} minutes where "
        f"{PROCESSORS} processors are free and busy; it took {wall:.0f} minutes."
        + (f" Not complete: {', '.join(lacking)}." if lacking else "")
        + "\n"
    )


def _minutes(entries: Sequence[Mapping[str, Any]], name: str) -> str:
    """The sum over the concepts; empty where one of them has no such number."""
    return f"{sum(one[name] for one in entries) / 60.0:.1f}" if all(name in one for one in entries) else ""
