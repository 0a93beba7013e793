"""The tables of docs/evidence.md: what the starter concepts do, and how, when and where that was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.quality import coverage, random_directions
from benchmarks.quality.blind.reading import distinguished
from benchmarks.quality.concepts import data_digest
from benchmarks.quality.page import range_text, results, table
from benchmarks.quality.pages.gates import GATES, gate_count
from benchmarks.quality.recording import read_results
from steering.cards import COHERENT, DosePoint
from steering.concepts import CONCEPTS
from steering.concepts.measured import ConceptMeasurement, measurement_of, measurements
from steering.model.embedded import EMBEDDED_MODEL

PAGES = {
    "cards": "[concepts](concepts.md)",
    "ranges": "[concepts](concepts.md)",
    "choice": "[dose-response](dose_response_results.md)",
    "dose": "[dose-response](dose_response_results.md)",
    "holding": "[dose-response](dose_response_results.md)",
    "training": "[training](training.md)",
    "gates": "[deployment report](report_results.md)",
    "methods": "[deployment report](report_results.md)",
    "transfer": "[transfer](transfer.md)",
    "blind": "[answers](answers.md)",
}


def results_table() -> str:
    """Shows the main results of every starter concept, one row each."""
    blind = results()["blind"]
    model = next(entry["model"] for entry in blind.values() if entry["pairs"])
    rows = [_result(concept, model) for concept in CONCEPTS if concept in blind]
    columns = (
        "concept", "separates", "strengths that hold", "shift", "perplexity", "report", "distinguished", "steers",
    )  # fmt: skip
    return table(columns, rows)


def _result(concept: str, model: str) -> Sequence[str]:
    card, blind = results()["cards"][concept], results()["blind"][concept]
    low, high = card["auroc_interval"]
    measured = measurement_of(concept, model)
    assert measured is not None
    counts = distinguished(blind) if blind["pairs"] else {}
    return (
        concept,
        f"{card['auroc']:.2f} [{low:.2f}, {high:.2f}]",
        *_held(measured),
        ", ".join(gate_count(results()["gates"][concept], gate) for gate in GATES),
        f"{counts['model']} and {counts['reader']} of {counts['pairs']}" if counts else "",
        "yes" if measured.claims else "not shown",
    )


def _held(measured: ConceptMeasurement) -> tuple[str, str, str]:
    """Returns the strengths that hold, and shift and perplexity at the one that moves the text furthest."""
    ranges = [ends for ends in (measured.strength, measured.negative) if ends is not None]
    holding = [point for point in measured.points for low, high in ranges if low <= point.strength <= high]
    furthest = max(holding, key=lambda point: abs(point.concept_score), default=None)
    return (
        " and ".join(range_text(ends) for ends in ranges) or "none",
        "" if furthest is None else f"{furthest.concept_score:+.2f} at {furthest.strength:g}",
        "" if furthest is None else f"{furthest.perplexity_ratio:.2f}",
    )


def other_models_table() -> str:
    """Shows what was measured of the starter concepts on other models than the embedded one."""
    rows = []
    for model, concepts in measurements().items():
        for concept, measured in concepts.items() if model != EMBEDDED_MODEL else ():
            read = measured.blind
            counts = "" if read is None else f"{read.model} and {read.reader} of {read.pairs}"
            controls = (
                "" if read is None else ", ".join(str(one) for one in (read.other, read.random) if one is not None)
            )
            steers = "yes" if measured.claims else "not shown"
            about = model, concept, str(measured.layers[0]), str(measured.prompts)
            rows.append((*about, *_held(measured), counts, controls, steers, measured.date))
    columns = (
        "model",
        "concept",
        "layer",
        "prompts",
        "strengths that hold",
        "shift",
        "perplexity",
        "distinguished",
        "controls",
        "steers",
        "date",
    )
    return table(columns, rows)


def one_dose_table() -> str:
    """Shows shift, advantage over chance and perplexity of the concepts that were measured at one dose a side on other models."""
    rows = []
    for model, concepts in measurements().items():
        for concept, measured in concepts.items() if model != EMBEDDED_MODEL else ():
            steered = [point for point in measured.points if point.strength]
            if len(steered) == 2:
                rows += [(model, concept, str(measured.prompts), *_point(point)) for point in steered]
    return table(("model", "concept", "prompts", "strength", "shift", "advantage over chance", "perplexity"), rows)


def _point(point: DosePoint) -> tuple[str, str, str, str]:
    """Returns strength, shift, advantage over chance along the sign of the strength, and perplexity."""
    assert point.concept_interval is not None, "measured on several prompts"
    assert point.perplexity_interval is not None, "measured on several prompts"
    assert point.threshold is not None, "random directions did not break"
    shift, (low, high), (least, most) = point.concept_score, point.concept_interval, point.perplexity_interval
    along = (shift, low, high) if point.strength > 0.0 else (-shift, -high, -low)
    mean, *ends = (one - point.threshold for one in along)
    beyond = f", beyond {COHERENT:g}" if most > COHERENT else ""
    return (
        f"{point.strength:g}",
        f"{shift:+.2f} [{low:+.2f}, {high:+.2f}]",
        f"{mean:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}]",
        f"{point.perplexity_ratio:.2f} [{least:.2f}, {most:.2f}]{beyond}",
    )


def evidence_table() -> str:
    """Shows the recorded runs by part; parts that were measured before runs were recorded say so."""
    runs: Mapping[str, Mapping[str, Any]] = results().get("runs", {})
    rows = []
    for part, page in PAGES.items():
        entries = [{**one, "is_of": concept} for concept, one in runs.get(part, {}).items()]
        if not entries:
            rows.append((part, page, *[""] * 6, "not recorded" if part in results() else "not measured"))
            continue
        by_counts = dict[str, list[Mapping[str, Any]]]()
        for one in entries:
            counts = ", ".join(f"{name} {value}" for name, value in one["counts"].items())
            by_counts.setdefault(f"{counts}; seed {one['seed']}", []).append(one)
        rows += [(part, page, *_run(counts, alike)) for counts, alike in by_counts.items()]
    columns = (
        "part", "page", "concepts", "counts", "data", "minutes", "processor minutes", "date", "machine and versions",
    )  # fmt: skip
    return table(columns, rows)


def _run(counts: str, entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Shows runs with the same counts: how many concepts, the time of all, and the machine of the last."""
    last = max(entries, key=lambda one: str(one["date"]))
    machine = f"{last['processor']}, {last['processors']} cores, load {last['load']:.1f}"
    versions = (
        f"torch {last['torch']}, transformers {last['transformers']}, Python {last['python']}, {last['executor']}"
    )
    minutes = (_minutes(entries, name) for name in ("seconds", "processor_seconds"))
    return str(len(entries)), counts, data_of(entries), *minutes, last["date"], f"{machine}; {versions}"


def data_of(entries: Sequence[Mapping[str, Any]]) -> str:
    """States whether runs had the data whose digests the page lists."""
    if any("data" not in one for one in entries):
        return "no digest"
    changed = [one["is_of"] for one in entries if one["data"] != data_digest(one["is_of"])]
    return f"changed since: {', '.join(changed)}" if changed else "as below"


def digests_table() -> str:
    """Lists the digest of each concept's pairs and prompts."""
    return table(("concept", "digest of pairs and prompts"), [(one, f"`{data_digest(one)}`") for one in CONCEPTS])


def duration() -> str:
    """States how long the commands of `make evidence` took when their parts were last measured."""
    found = results()
    others = {"coverage": read_results(coverage.RESULT), "random_directions": read_results(random_directions.RESULT)}
    return time_of_parts(found.get("runs", {})) + time_of_others(others) + time_at_once(found.get("whole"))


def time_of_parts(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """States the time of the parts of `make evidence`, each as it was last measured. Empty without runs."""
    entries = [one for part, of in runs.items() if part != "ranges" for one in of.values()]
    if not entries:
        return ""
    last = max(entries, key=lambda one: str(one["date"]))
    first, machine = min(one["date"] for one in entries), f"{last['processors']} processors ({last['processor']})"
    dates = last["date"] if first == last["date"] else f"{first} to {last['date']}"
    wall, processor = (_minutes(entries, name) or "unknown" for name in ("seconds", "processor_seconds"))
    return f"The parts of `benchmarks.quality` took {wall} minutes in all on {machine}, and {processor} minutes of processor time, {dates}. "


def time_of_others(found: Mapping[str, Mapping[str, Any]]) -> str:
    """States the time of the commands that follow, by name."""
    shown = [
        f"`{name}` {one['seconds'] / 60.0:.0f} minutes ({one['date']})"
        if "seconds" in one
        else f"`{name}` has no recorded time"
        for name, one in found.items()
    ]
    return f"`described` begins no concept after 60 minutes; {'; '.join(shown)}. "


def time_at_once(found: Mapping[str, Any] | None) -> str:
    """States the time of the last run of all parts at once, compilation included."""
    if found is None:
        return "All parts have not been measured in one run yet.\n"
    return f"The last run of all parts of `benchmarks.quality` at once was on {found['date']}, as they were then, and took {found['seconds'] / 60.0:.0f} minutes.\n"


def _minutes(entries: Sequence[Mapping[str, Any]], name: str) -> str:
    """The sum over the concepts; empty where one of them has no such number."""
    return f"{sum(one[name] for one in entries) / 60.0:.1f}" if all(name in one for one in entries) else ""
