"""`python -m benchmarks.quality.blind.reading`: shows the pairs of answers without saying which is which, and records the verdicts.

A starter concept whose pairs are not distinguished does not claim to steer (`steering.concepts.measured`).

python -m benchmarks.quality.blind.reading                    # prints every pair in an order that its texts decide
python -m benchmarks.quality.blind.reading VERDICTS.json      # {"sentiment": ["A", "B", ...], ...}: the answer with more of the concept

Two controls stand beside the pairs of a concept: `<concept>/other`, the same pairs under the description of another concept, and
`<concept>/random`, pairs under a random direction of the same dose. A reader who tells these apart sees a style.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.ranges import PATH as MEASURED
from benchmarks.quality.recording import read_results, write_results
from steering.concepts import CONCEPTS

RESULTS = Path(__file__).parents[2] / "results" / "quality.json"


def swapped(pair: Mapping[str, Any]) -> bool:
    """Whether the answer that was steered up is shown as B. Decided by a hash of both texts, so it needs no record."""
    return bool(hashlib.sha256(f"{pair['up']}\n{pair['down']}".encode()).digest()[0] & 1)


def sheets(found: Mapping[str, Any]) -> dict[str, tuple[str, list[dict[str, Any]], str]]:
    """Returns name of the sheet -> the concept whose description is read, the pairs, and the field of a pair for the verdict."""
    made: dict[str, tuple[str, list[dict[str, Any]], str]] = {}
    for concept, entry in found.items():
        if entry["pairs"]:
            made[concept] = concept, entry["pairs"], "read"
        if entry.get("random"):
            made[f"{concept}/other"] = entry["other"], entry["pairs"], "read_other"
            made[f"{concept}/random"] = concept, entry["random"], "read"
    return made


def shown(name: str, concept: str, pairs: Sequence[Mapping[str, Any]]) -> str:
    """Formats the pairs of a sheet for a reader."""
    described = CONCEPTS[concept]
    lines = [f"# {name}: which answer is more like this: {described.positive} (not: {described.negative})"]
    for number, pair in enumerate(pairs, 1):
        first, second = (pair["down"], pair["up"]) if swapped(pair) else (pair["up"], pair["down"])
        lines += [f"\n{number}. {pair['prompt']}", f"  A: {first!r}", f"  B: {second!r}"]
    return "\n".join(lines) + "\n"


def record(found: dict[str, Any], verdicts: Mapping[str, Sequence[str]]) -> None:
    """Stores for each pair whether the reader found the answer that was steered up. Raises ValueError for other counts or words."""
    known = sheets(found)
    for name, words in verdicts.items():
        _, pairs, field = known[name]
        if len(words) != len(pairs) or not {*words} <= {"A", "B"}:
            raise ValueError(f"{name} needs {len(pairs)} verdicts of 'A' or 'B', got {list(words)}")
        for pair, word in zip(pairs, words, strict=True):
            pair[field] = (word == "B") == swapped(pair)


def distinguished(entry: Mapping[str, Any]) -> dict[str, int]:
    """Counts the pairs that the second model and the reader distinguished, and how many of each control the reader answered
    alike, in either direction; a control that was not read is left out."""
    pairs = entry["pairs"]
    counts = {"pairs": len(pairs), "model": ranked(pairs, "scores"), "reader": sum(bool(one["read"]) for one in pairs)}
    controls = (("other", pairs, "read_other"), ("random", entry.get("random", ()), "read"))
    for name, of, field in controls:
        read = [one[field] for one in of if one.get(field) is not None]
        if of and len(read) == len(of):
            counts[name] = max(sum(read), len(read) - sum(read))
    return counts


def is_of(entry: Mapping[str, Any], measured: Mapping[str, Any]) -> bool:
    """Whether the pairs were steered at the layers and strengths that are measured now."""
    ends = max(measured["strength"] or [0.0]), min(measured["negative"] or [0.0])
    return (*entry["strengths"],) == ends and entry["layers"] == measured["layers"]


def ranked(pairs: Sequence[Mapping[str, Any]], field: str) -> int:
    """Counts the pairs whose answer steered up has the higher score."""
    return sum(pair[field][0] > pair[field][1] for pair in pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the pairs, or records the verdicts of the named file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.blind.reading")
    parser.add_argument("verdicts", type=Path, nargs="?")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="of another model: benchmarks/results/quality.MODEL.json"
    )
    chosen = parser.parse_args(arguments)
    results = read_results(chosen.results)
    found = results.get("blind", {})
    if chosen.verdicts is None:
        print("\n".join(shown(name, concept, pairs) for name, (concept, pairs, _) in sheets(found).items()))
        return
    record(found, json.loads(chosen.verdicts.read_text(encoding="utf-8")))
    write_results(chosen.results, results)
    measured = read_results(MEASURED)
    for concept, entry in found.items():
        if entry["pairs"]:
            known = measured[entry["model"]]["concepts"][concept]
            if is_of(entry, known):
                known["blind"] = distinguished(entry)
            else:
                print(f"{concept} is left out: its pairs are of other layers or strengths than were measured since")
    write_results(MEASURED, measured)


if __name__ == "__main__":
    main()
