"""CONCEPTS, the table of starter concepts: contrastive pairs that come with the package, each with two named poles. `described.py` has
those whose pairs the loaded model writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class ConceptEntry:
    """positive, negative: what a strength above and below zero means. kind: "starter", whose texts are in `data/<name>*.jsonl`; that of
    a concept in words otherwise, such as "tone" or "role"."""

    positive: str
    negative: str
    description: str
    kind: str


def read_entries(file: str) -> dict[str, ConceptEntry]:
    """Reads concepts by name from a file of `data`."""
    lines = (files("steering.concepts") / "data" / file).read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return {entry.pop("name"): ConceptEntry(**entry) for entry in entries}


CONCEPTS: Mapping[str, ConceptEntry] = read_entries("starter.jsonl")
RENAMED: Mapping[str, str] = {"factuality": "specificity"}
"""Earlier names of concepts, for the message of an error. The pairs are about definite claims, true or not."""
