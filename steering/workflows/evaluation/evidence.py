"""Puts measured dose-responses on the cards of vectors: of an evaluation, or those that ship with the starter concepts."""

from dataclasses import replace

from steering.concepts.measured import ConceptMeasurement, measurement_of
from steering.quality import QualityCard, Recommended
from steering.vectors import ConceptVector
from steering.workflows.evaluation.dose_response import DoseResponse


def with_evidence(vector: ConceptVector, response: DoseResponse) -> ConceptVector:
    """Returns the vector with the dose-response on its card and its ranges as the recommendation, which may be none."""
    card = vector.quality or QualityCard(pairs=0, holdout=0, layers={})
    warnings = tuple(dict.fromkeys((*card.warnings, *response.warnings)))
    card = replace(card, dose_response=response.points, anti_steered=response.anti_steered, warnings=warnings)
    return _proved(vector, card, response.recommended, {"vector": response.vector}, response.reading_layer)


def _proved(
    vector: ConceptVector, card: QualityCard, recommended: Recommended, source: dict[str, str], reading_layer: int
) -> ConceptVector:
    """Returns the vector with a card and what was measured; its provenance says where that is from."""
    measured = {**source, "layers": list(recommended.layers), "reading_layer": reading_layer}
    provenance = {**vector.provenance, "dose_response": measured}
    return replace(vector, quality=card, recommended=recommended, provenance=provenance)


def with_shipped_evidence(vector: ConceptVector, concept: str) -> ConceptVector:
    """Returns a vector of a starter concept with the dose-response that ships with the package.

    Only where it is the same vector: the same model, pairs, method and position, with the measured layers; otherwise it is
    returned unchanged. The measured layers become the recommended ones: several layers read equally well, and rounding
    decides between them. Where too few prompts were measured to tell, the card's own recommendation stays.
    """
    found = measurement_of(concept, vector.model_fingerprint)
    if found is None or vector.quality is None or not _same(vector, found):
        return vector
    warnings = (*vector.quality.warnings, *(() if found.claims else (found.summary,)))
    card = replace(vector.quality, warnings=warnings)
    if not found.claims and found.moves_on_average:
        return replace(vector, quality=card)
    card = replace(card, dose_response=found.points, anti_steered=found.anti_steered)
    recommended = Recommended(found.layers, found.strength, found.negative, basis="measured")
    return _proved(vector, card, recommended, {"shipped": concept}, found.reading_layer)


def _same(vector: ConceptVector, found: ConceptMeasurement) -> bool:
    """Whether the measurement is of this vector."""
    made = vector.provenance
    origin = made.get("dataset"), made.get("method"), str(made.get("position"))
    return origin == (found.dataset, found.method, found.position) and set(found.layers) <= set(vector.layers)
