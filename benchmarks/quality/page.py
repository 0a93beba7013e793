"""The tables of docs/dose_response_results.md, docs/training.md and docs/mathematics.md, from the saved results."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.quality.bound import breaking_doses, typical_breaking_dose
from steering.concepts import CONCEPTS
from steering.concepts.measured import summaries_of

RESULTS = Path(__file__).parent.parent / "results" / "quality.json"
COHERENT = 1.5
Row = Sequence[str]


@cache
def results() -> Mapping[str, Any]:
    """Reads benchmarks/results/quality.json."""
    found: Mapping[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def table(columns: Row, rows: Sequence[Row]) -> str:
    """Formats a Markdown table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (columns, ["---"] * len(columns), *rows))


def measured_on() -> str:
    """States the model, its dtype, the device and the last date of the dose-response."""
    found = results()
    date = max(run["date"] for run in found["runs"]["dose"].values())
    return f"{found['model']}, {found['dtype']} on {found['device']}, {date}."


def ranges_table() -> str:
    """Shows at which strengths each starter concept steers the embedded model with default settings."""
    rows = []
    for concept in CONCEPTS:
        for model, line in summaries_of(concept).items():
            rows.append((concept, model, line))
    return table(("concept", "model", "measured"), rows)


def dose_counts() -> str:
    """States how much was measured for the dose-response."""
    runs = results().get("runs", {}).get("dose", {})
    if not runs:
        return "The counts are not recorded.\n"
    found: dict[str, list[str]] = {}
    for concept, run in runs.items():
        counts = run["counts"]
        text = (
            f"{counts['reporting']} evaluation prompts, {counts['tokens']} tokens an answer, {counts['controls']} random directions, "
            f"{counts['neutral']} neutral prompts"
        )
        found.setdefault(text, []).append(concept)
    return "".join(f"{', '.join(concepts)}: {text}.\n" for text, concepts in found.items())


def overview() -> str:
    """Shows the result of the default settings for every concept."""
    rows = []
    for concept, entry in results()["dose"].items():
        quality = entry["card"][str(entry["reading_layer"])]
        best = best_point(entry)
        low, high = quality["auroc_interval"]
        rows.append(
            (
                f"[{concept}](#{concept})",
                entry["position"],
                ", ".join(map(str, entry["layers"])),
                f"{quality['auroc']:.2f} [{low:.2f}, {high:.2f}]",
                range_text(entry["recommended"]),
                range_text(entry["negative"]),
                "" if best is None else f"{best['strength']:g}",
                "" if best is None else _moved(best),
                "" if best is None else f"{best['perplexity_ratio']:.2f}",
                "" if best is None else f"{best['relative_dose']:.2f}",
                "holds" if best is not None else "**falls short**",
            )
        )
    columns = (
        "concept", "read at", "layers", "held-out AUROC", "hold above zero", "below zero", "furthest", "shift there",
        "perplexity", "relative dose", "",
    )  # fmt: skip
    return table(columns, rows)


def best_point(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the point with the largest shift among the strengths that hold, of either sign; None where none does."""
    ranges = [found for found in (entry["recommended"], entry["negative"]) if found is not None]
    inside = [
        point
        for point in entry["points"]
        for low, high in ranges
        if min(low, high) <= point["strength"] <= max(low, high)
    ]
    return max(inside, key=lambda point: abs(point["concept_score"]), default=None)


def concept_tables() -> str:
    """Shows a section per concept: its strengths, then texts."""
    return "\n".join(_section(concept, entry) for concept, entry in results()["dose"].items())


def _section(concept: str, entry: Mapping[str, Any]) -> str:
    columns = (
        "strength", "shift of the score", "random directions", "beyond chance", "perplexity", "repetition",
        "KL on neutral", "relative dose",
    )  # fmt: skip
    rows = [_row(point, entry["advantages"].get(str(point["strength"]))) for point in entry["points"]]
    return f"### {concept}\n\n{_verdict(entry)}\n\n{table(columns, rows)}\n{_texts(entry['texts'])}"


def _row(point: Mapping[str, Any], beyond: Mapping[str, Any] | None) -> Row:
    random, interval = point["random_score"], beyond and beyond["interval"]
    return (
        f"{point['strength']:g}",
        _moved(point) if point["strength"] else "0",
        "" if random is None else f"{random:+.2f}",
        ""
        if beyond is None
        else f"{beyond['mean']:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""),
        f"{point['perplexity_ratio']:.2f}",
        f"{point['repetition']:.2f}",
        "" if point["kl_neutral"] is None else f"{point['kl_neutral']:.2f}",
        f"{point['relative_dose']:.2f}",
    )


def _moved(point: Mapping[str, Any]) -> str:
    between = "" if (ends := point["concept_interval"]) is None else f" [{ends[0]:+.2f}, {ends[1]:+.2f}]"
    return f"{point['concept_score']:+.2f}{between}"


def range_text(found: Sequence[float] | None) -> str:
    """States a range of strengths, or that there is none."""
    if found is None:
        return "none"
    return f"{found[0]:g}" if found[0] == found[1] else f"{found[0]:g} to {found[1]:g}"


def _verdict(entry: Mapping[str, Any]) -> str:
    best = best_point(entry)
    layers = ", ".join(map(str, entry["layers"]))
    where = f"Steered at layer {layers}, read back at layer {entry['reading_layer']}."
    if best is None:
        held = f"**Falls short**: no strength moved the text beyond chance with perplexity within {COHERENT:g} times."
    else:
        held = (
            f"Strengths that hold: {range_text(entry['recommended'])} above zero, {range_text(entry['negative'])} below. At "
            f"{best['strength']:g} the score moves by {best['concept_score']:+.2f} natural scales at "
            f"{best['perplexity_ratio']:.2f} times the perplexity."
        )
    against = (
        "" if entry["anti_steered"] is None else f" {entry['anti_steered']:.0%} of the prompts moved against the sign."
    )
    return f"{where} {held}{against}"


def _texts(texts: Sequence[Mapping[str, Any]]) -> str:
    shown = "".join(f"| {one['strength']:g} | {one_line(one['text'])} |\n" for one in texts)
    return f"*{one_line(texts[0]['prompt'])}*\n\n| strength | answer, the most likely tokens |\n|---|---|\n{shown}"


def one_line(text: str) -> str:
    """Formats a text as a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def bound_table() -> str:
    """Shows the dose at which each curve breaks, and their median."""
    found = breaking_doses(results()["dose"])
    rows = [(concept, *(_dose(found[f"{concept} {sign}"]) for sign in "+-")) for concept in results()["dose"]]
    middle = typical_breaking_dose(found)
    summary = "fewer than half broke" if middle is None else f"median of all: {middle:.2f}"
    return table(("concept", "above zero", "below zero"), rows) + f"\n{summary}\n"


def _dose(dose: float | None) -> str:
    return "not reached" if dose is None else f"{dose:.2f}"


def choice_table() -> str:
    """Shows the shift of each position and set of layers at a perplexity ratio of COHERENT."""
    choices = results()["choice"]
    places = list(dict.fromkeys((row["position"], tuple(row["layers"])) for rows in choices.values() for row in rows))
    rows = []
    for position, layers in places:
        cells = [
            next(
                (
                    f"{row['reached'][str(COHERENT)]:+.2f}"
                    for row in found
                    if (row["position"], tuple(row["layers"])) == (position, layers)
                ),
                "",
            )
            for found in choices.values()
        ]
        rows.append((f"`{position}`", ", ".join(map(str, layers)), *cells))
    return table(("position", "layers", *choices), rows)


def training_table() -> str:
    """Compares trained vectors with mean difference on the reporting prompts."""
    rows = []
    for concept, entry in results()["training"].items():
        base, best = entry["reporting"]["mean difference"], entry["reporting"][entry["best"]]
        for bound, (mean, low, high) in entry["further"].items():
            rows.append(
                (
                    concept,
                    str(entry["layer"]),
                    entry["best"],
                    f"{entry['cosine'][entry['best']]:.2f}",
                    f"{float(bound):g}",
                    _three(base[bound]),
                    _three(best[bound]),
                    _three((mean, low, high)),
                )
            )
    columns = (
        "concept",
        "layer",
        "settings",
        "cosine",
        "perplexity",
        "mean difference",
        "trained",
        "trained minus mean difference",
    )
    return table(columns, rows)


def settings_table() -> str:
    """Shows all settings of training on the choosing prompts."""
    rows = [
        (concept, name, *(_three(reach[bound]) for bound in reach))
        for concept, entry in results()["training"].items()
        for name, reach in entry["choosing"].items()
    ]
    return table(("concept", "settings", "at 1.25 times", "at 1.5 times"), rows)


def _three(values: Sequence[float]) -> str:
    return f"{values[0]:+.2f} [{values[1]:+.2f}, {values[2]:+.2f}]"
