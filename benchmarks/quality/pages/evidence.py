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
    "methods": "[deployment report](report.md)",
    "transfer": "[transfer](transfer.md)",
    "blind": "[answers](answers.md)",
}


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
    return whole_time(results().get("whole"))


def whole_time(found: Mapping[str, Any] | None) -> str:
    """States the time of the last run of all parts, compilation included."""
    if found is None:
        return "`make evidence` has not run as a whole yet.\n"
    return (
        f"`make evidence` took {found['seconds'] / 60.0:.0f} minutes on {found['processors']} processors ({found['processor']}), and "
        f"{found['processor_seconds'] / 60.0:.0f} minutes of processor time, on {found['date']}.\n"
    )


def _minutes(entries: Sequence[Mapping[str, Any]], name: str) -> str:
    """The sum over the concepts; empty where one of them has no such number."""
    return f"{sum(one[name] for one in entries) / 60.0:.1f}" if all(name in one for one in entries) else ""
