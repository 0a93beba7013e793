"""Loads what was measured of the starter concepts: at which strengths they steer a model, in both directions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import Field, TypeAdapter

from steering.cards import DosePoint, verdict_without_proof
from steering.spec import Interval

MEASURED_FILE = "measured.json"
DISTINGUISHED = 0.8
"""Share of answer pairs that must be distinguished before a concept claims to steer: 8 of 10 happen by chance in 5 % of cases."""


@dataclass(frozen=True, slots=True)
class BlindReading:
    """How many of `pairs` answers steered up and down a second model and a blind reader distinguished.
    other, random: how many pairs the reader answered alike, in either direction, where the same pairs stood under the description of
    another concept, and where a random direction of the same dose steered; None where that was not read."""

    pairs: int
    model: int
    reader: int
    other: int | None = None
    random: int | None = None

    @property
    def passed(self) -> bool:
        """Whether both distinguished at least DISTINGUISHED of the pairs, and the reader more than of either control."""
        controls = max(self.other or 0, self.random or 0)
        return min(self.model, self.reader) >= DISTINGUISHED * self.pairs and self.reader > controls


@dataclass(frozen=True, slots=True)
class ConceptMeasurement:
    """The dose-response of a concept's vector with default settings on one model. strength, negative: the strengths
    that hold above and below 0; None where the concept does not steer that way. blind: None where no pairs were
    read. date: of the run, as YYYY-MM-DD."""

    dataset: str
    method: str
    position: Annotated[str, Field(coerce_numbers_to_str=True)]
    layers: tuple[int, ...]
    reading_layer: int
    prompts: int
    strength: Interval | None
    negative: Interval | None
    anti_steered: float | None
    points: tuple[DosePoint, ...]
    blind: BlindReading | None = None
    date: str = ""

    @property
    def claims(self) -> bool:
        """Whether the concept claims to steer: a range holds, and answers were read blind and are distinguished."""
        return bool(self.strength or self.negative) and self.blind is not None and self.blind.passed

    @property
    def summary(self) -> str:
        """One line: whether it steers the model, which way, and at what strength."""
        layers = f"layer {', '.join(map(str, self.layers))}, {self.prompts} prompts"
        ranges = [one for one in (self.strength, self.negative) if one]
        shown = [f"{low:g} to {high:g}" if low != high else f"{low:g}" for low, high in ranges]
        if not ranges:
            return f"{verdict_without_proof(point.moves_on_average for point in self.points)} ({layers})"
        if self.blind is None:
            return f"not shown to steer: its score moves, but no answers were read blind ({layers})"
        if not self.claims:
            found = f"{self.blind.model} (second model) and {self.blind.reader} (reader) of {self.blind.pairs} pairs distinguished"
            read = {"under another description": self.blind.other, "under a random direction": self.blind.random}
            found += "".join(f", {count} {where}" for where, count in read.items() if count is not None)
            return f"not shown to steer: its score moves, but only {found} ({layers})"
        if len(ranges) == 2:
            return f"steers both ways: strength {shown[0]} and {shown[1]} ({layers})"
        side = "positive" if self.strength else "negative"
        return f"steers one way only: strength {shown[0]} ({side} side) ({layers})"

    @property
    def moves_on_average(self) -> bool:
        """Whether at some strength the mean shift exceeds chance and mean perplexity stays coherent."""
        return any(point.moves_on_average for point in self.points)


@dataclass(frozen=True, slots=True)
class _MeasuredModel:
    model: str
    concepts: Mapping[str, ConceptMeasurement]


def measurement_of(concept: str, model_fingerprint: str) -> ConceptMeasurement | None:
    """Returns the measurement of a concept on a model; None where there is none."""
    model = _content().get(model_fingerprint)
    return None if model is None else model.concepts.get(concept)


def measurements() -> dict[str, Mapping[str, ConceptMeasurement]]:
    """Returns the measurements of every model by concept, under the model's name."""
    return {one.model: one.concepts for one in _content().values()}


def summaries_of(concept: str) -> dict[str, str]:
    """Returns, for each model the concept was measured on, one line: whether it steers, which way, at what strength."""
    return {model: concepts[concept].summary for model, concepts in measurements().items() if concept in concepts}


@cache
def _content() -> Mapping[str, _MeasuredModel]:
    """The models by fingerprint."""
    adapter = TypeAdapter(Mapping[str, _MeasuredModel])
    return adapter.validate_json((files("steering.concepts") / "data" / MEASURED_FILE).read_bytes())
