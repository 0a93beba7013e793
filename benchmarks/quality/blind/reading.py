"""`python -m benchmarks.quality.blind.reading`: shows the pairs of answers without saying which is which, and records the verdicts.

A starter concept whose pairs are not distinguished does not claim to steer (`steering.concepts.measured`).

python -m benchmarks.quality.blind.reading                    # prints every pair in an order that its texts decide
python -m benchmarks.quality.blind.reading VERDICTS.json      # {"sentiment": ["A", "B", ...], ...}: the answer with more of the concept
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.ranges import PATH as MEASURED
from steering.concepts import CONCEPTS

RESULTS = Path(__file__).parents[2] / "results" / "quality.json"


def swapped(pair: Mapping[str, Any]) -> bool:
    """Whether the answer that was steered up is shown as B. Decided by a hash of both texts, so it needs no record."""
    return bool(hashlib.sha256(f"{pair['up']}\n{pair['down']}".encode()).digest()[0] & 1)


def shown(concept: str, pairs: Sequence[Mapping[str, Any]]) -> str:
    """Formats the pairs of a concept for a reader."""
    described = CONCEPTS[concept]
    lines = [f"# {concept}: which answer is more like this: {described.positive} (not: {described.negative})"]
    for number, pair in enumerate(pairs, 1):
        first, second = (pair["down"], pair["up"]) if swapped(pair) else (pair["up"], pair["down"])
        lines += [f"\n{number}. {pair['prompt']}", f"  A: {first!r}", f"  B: {second!r}"]
    return "\n".join(lines) + "\n"


def record(found: dict[str, Any], verdicts: Mapping[str, Sequence[str]]) -> None:
    """Stores for each pair whether the reader found the answer that was steered up. Raises ValueError for other counts or words."""
    for concept, words in verdicts.items():
        pairs = found[concept]["pairs"]
        if len(words) != len(pairs) or not {*words} <= {"A", "B"}:
            raise ValueError(f"{concept} needs {len(pairs)} verdicts of 'A' or 'B', got {list(words)}")
        for pair, word in zip(pairs, words, strict=True):
            pair["read"] = (word == "B") == swapped(pair)


def distinguished(pairs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Counts the pairs that the second model and the reader distinguished."""
    by_model = sum(pair["scores"][0] > pair["scores"][1] for pair in pairs)
    return {"pairs": len(pairs), "model": by_model, "reader": sum(bool(pair["read"]) for pair in pairs)}


def main(arguments: Sequence[str]) -> None:
    """Prints the pairs, or records the verdicts of the named file."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    found = results.get("blind", {})
    if not arguments:
        print("\n".join(shown(concept, entry["pairs"]) for concept, entry in found.items() if entry["pairs"]))
        return
    record(found, json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    for concept, entry in found.items():
        if entry["pairs"]:
            measured[entry["model"]]["concepts"][concept]["blind"] = distinguished(entry["pairs"])
    MEASURED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
