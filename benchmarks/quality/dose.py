"""Measures the dose-response of a concept's vector with default settings, on prompts that no setting was chosen on."""

from dataclasses import asdict
from typing import Any

from benchmarks.quality.concepts import Profile, neutral_prompts, reporting_prompts, strengths_of, vector_of
from benchmarks.quality.progress import progress_printer
from benchmarks.quality.recording import PARTS, items_of, write_items
from steering.engine.api import Engine, GenerationRequest, SamplingParams
from steering.lab.controls import plan_at
from steering.lab.evaluations import DoseResponseRequest, dose_response
from steering.pairs import ChatMessage
from steering.schemas.evaluation import DoseResponseAnswer
from steering.vectors import ConceptVector
from steering.workflows.generate import background

SHOWN = (-0.15, 0.0, 0.15)
"""Planned doses whose text is shown, of one prompt."""


async def measured(engine: Engine, concept: str, profile: Profile) -> dict[str, Any]:
    """Returns vector, card and dose-response as JSON values. planned_dose: relative dose of strength 1, by layer."""
    vector = await vector_of(engine, concept)
    request = DoseResponseRequest(
        vector,
        prompts=reporting_prompts(engine, concept, profile.reporting),
        neutral=neutral_prompts(engine, profile.neutral),
        strengths=strengths_of(engine, vector, profile.doses),
        random_directions=profile.controls,
        sampling=profile.sampling,
        checkpoints=PARTS,
    )
    found = await dose_response(engine, request, progress=progress_printer(f"{concept}, dose"))
    write_items("dose", concept, found.scores, items_of(engine))
    return {
        "position": vector.provenance["position"],
        "layers": list(found.layers),
        "reading_layer": found.reading_layer,
        "card": {str(layer): _quality(vector, layer) for layer in sorted({*found.layers, found.reading_layer})},
        "scale": {str(layer): vector.at(layer).scale for layer in found.layers},
        "planned_dose": {
            str(layer): vector.at(layer).scale / engine.info.typical_norms[layer] for layer in found.layers
        },
        **_numbers(found),
        "texts": await _texts(engine, vector, found, request),
    }


def _quality(vector: ConceptVector, layer: int) -> dict[str, Any]:
    assert vector.quality is not None
    return asdict(vector.quality.layers[layer])


def _numbers(found: DoseResponseAnswer) -> dict[str, Any]:
    return {
        "baseline_score": found.baseline_score,
        "points": [asdict(point) for point in found.points],
        "advantages": {str(point.strength): asdict(point.advantage) for point in found.points if point.advantage},
        "anti_steered": found.anti_steered,
        "recommended": _range(None if found.recommended is None else found.recommended.strength),
        "negative": _range(None if found.recommended is None else found.recommended.negative),
        "warnings": list(found.warnings),
    }


def _range(bounds: tuple[float, float] | None) -> list[float] | None:
    return None if bounds is None else list(bounds)


async def _texts(
    engine: Engine, vector: ConceptVector, found: DoseResponseAnswer, request: DoseResponseRequest
) -> list[dict[str, Any]]:
    """Answers the first prompt greedily at the doses SHOWN."""
    assert request.prompts is not None
    prompt = request.prompts[0]
    sampling = SamplingParams(max_tokens=request.sampling.max_tokens)
    shown = strengths_of(engine, vector, SHOWN)
    requests = [
        GenerationRequest(prompt, sampling, await plan_at(engine.info, vector, strength, found.layers))
        for strength in shown
    ]
    last = prompt[-1]
    question = last.content if isinstance(last, ChatMessage) else str(prompt)
    return [
        {"strength": strength, "prompt": question, "text": one.text}
        for strength, one in zip(shown, await background(engine, requests), strict=True)
    ]
