"""Defines what is measured: concepts, prompts for choosing settings and for reporting, and strengths."""

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steering.concepts.loader import load_concept, load_evaluation_prompts, load_neutral, load_report_prompts
from steering.engine.api import Engine, Position, Prompt, SamplingParams, TrainingSettings
from steering.lab.evaluations import with_shipped_evidence
from steering.lab.trials import CONTROLS
from steering.pairs import dataset_digest
from steering.vectors import ConceptVector
from steering.workflows.extract import TRAINED, ExtractionRequest, make_vector
from steering.workflows.texts import as_prompts, default_position

DOSES = (-0.2, -0.15, -0.1, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Planned relative doses, signed: concepts differ in their natural scale, so strengths are chosen by the dose they make."""
MEAN_DIFFERENCE = "mean_difference"


@dataclass(frozen=True, slots=True)
class Profile:
    """States how much is measured. choosing, reporting: prompts; judged: prompts of a deployment report.
    controls: random directions of equal dose. doses: planned relative ones; none are chosen. anchors: texts of a transfer."""

    choosing: int = 10
    reporting: int = 24
    judged: int = 24
    neutral: int = 8
    tokens: int = 32
    controls: int = CONTROLS
    doses: tuple[float, ...] = DOSES
    anchors: int = 300

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(max_tokens=self.tokens, temperature=0.7, seed=0)


EVIDENCE = Profile()
"""The parts of `make evidence`."""
RANGES = Profile(neutral=4, tokens=40, doses=(-0.25, -0.2, -0.16, -0.1, -0.06, 0.06, 0.1, 0.16, 0.2, 0.25))
"""Both directions of every concept. Of refusal on the embedded model, text breaks at 0.25 in both directions."""
LARGER = replace(RANGES, tokens=32, reporting=96, doses=())
"""Ranges of a larger model, on which an answer takes several times as long: one dose a side, chosen on other prompts, and more
prompts, since their noise is a part of what random directions seem to reach."""
QUICK = Profile(choosing=2, reporting=3, judged=2, neutral=1, tokens=8, controls=1, doses=(-0.1, 0.1), anchors=40)
"""Shows that everything runs; measures nothing."""


def choosing_prompts(engine: Engine, concept: str, count: int) -> tuple[Prompt, ...]:
    """Returns prompts for choosing settings: the user messages of the concept's pairs, spread over the topics."""
    found = list(dict.fromkeys(text[0].content for text in load_concept(concept).positive if not isinstance(text, str)))
    return as_prompts(engine, found[:: max(1, len(found) // count)][:count])


def reporting_prompts(engine: Engine, concept: str, count: int) -> tuple[Prompt, ...]:
    """Returns the concept's evaluation prompts, none of which is among its pairs."""
    return as_prompts(engine, load_evaluation_prompts(concept)[:count])


def judging_prompts(engine: Engine, concept: str, count: int) -> tuple[Prompt, ...]:
    """Returns the concept's report prompts, on which no layer and no strength was chosen."""
    return as_prompts(engine, load_report_prompts(concept)[:count])


def further_prompts(engine: Engine, concept: str, count: int) -> tuple[Prompt, ...]:
    """Returns the last report prompts and prompts of prompts.json, on which other models than the embedded one are measured: no layer
    and no strength was chosen on them."""
    return as_prompts(engine, _further(concept)[-count:])


def dose_prompts(engine: Engine, concept: str, count: int, reporting: int) -> tuple[Prompt, ...]:
    """Returns prompts that choose doses: `count` of those that choose settings, and as many that measured former doses, before the last
    `reporting` of `further_prompts`."""
    return (*choosing_prompts(engine, concept, count), *as_prompts(engine, _further(concept)[:-reporting][:count]))


def _further(concept: str) -> list[str]:
    return [*load_report_prompts(concept), *written_prompts(concept)]


def written_prompts(concept: str) -> tuple[str, ...]:
    """Returns the concept's prompts of prompts.json, of which some concepts have none."""
    found: dict[str, list[str]] = json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))
    return tuple(found.get(concept, ()))


def data_digest(concept: str) -> str:
    """Returns the digest of a concept's pairs and of all prompts that it is measured on."""
    prompts = [load_evaluation_prompts(concept), _further(concept), load_neutral()]
    return digest([dataset_digest(load_concept(concept)), *prompts])


def digest(content: Sequence[Any]) -> str:
    """Returns the first digits of the SHA-256 of what JSON can represent."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]


def neutral_prompts(engine: Engine, count: int) -> tuple[Prompt, ...]:
    """Returns the last neutral prompts. Training uses the first ones for its KL term."""
    return as_prompts(engine, load_neutral()[-count:])


def strengths_of(engine: Engine, vector: ConceptVector, doses: Sequence[float]) -> tuple[float, ...]:
    """Returns the strengths that plan these relative doses at the vector's recommended layer, to two decimals."""
    (layer,) = vector.recommended_layers()
    unit = engine.info.typical_norms[layer] / vector.at(layer).scale
    return tuple(round(dose * unit, 2) for dose in doses)


_MADE: dict[tuple[Hashable, ...], ConceptVector] = {}


async def vector_of(
    engine: Engine,
    concept: str,
    *,
    position: Position | None = None,
    layers: Sequence[int] | None = None,
    method: str = MEAN_DIFFERENCE,
    training: TrainingSettings | None = None,
) -> ConceptVector:
    """Extracts a concept's vector with the server's defaults, which include the layer and the range that ship with the concept.

    training: settings of the method "trained". The parts of a run share the vectors: an extraction has no randomness but its seed.
    """
    pairs = load_concept(concept)
    request = ExtractionRequest(concept, pairs, position=position or default_position(pairs))
    if layers is not None:
        request = replace(request, layers=tuple(layers))
    request = replace(request, method=method if training is None else TRAINED)
    key = engine.info.fingerprint, concept, request.position, request.layers, request.method, training
    if key not in _MADE:
        _MADE[key] = with_shipped_evidence(await make_vector(engine, request, training=training), concept)
    return _MADE[key]
