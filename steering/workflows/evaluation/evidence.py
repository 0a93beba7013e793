"""Puts measured dose-responses on the cards of vectors: of an evaluation, or those that ship with the starter concepts."""

from dataclasses import replace

from steering.concepts.measured import measurement_of
from steering.quality import QualityCard, Recommended
from steering.vectors import ConceptVector
from steering.workflows.evaluation.dose_response import DoseResponse


def with_evidence(vector: ConceptVector, response: DoseResponse) -> ConceptVector:
    """Returns the vector with the dose-response on its card and its ranges as the recommendation, which may be none."""
    card = vector.quality or QualityCard(pairs=0, holdout=0, layers={})
    card = replace(
        card,
        dose_response=response.points,
        anti_steered=response.anti_steered,
        warnings=tuple(dict.fromkeys((*card.warnings, *response.warnings))),
    )
    measured = {"vector": response.vector, "layers": list(response.layers), "reading_layer": response.reading_layer}
    return replace(
        vector,
        quality=card,
        recommended=response.recommended,
        provenance={**vector.provenance, "dose_response": measured},
    )


def with_shipped_evidence(vector: ConceptVector, concept: str) -> ConceptVector:
    """Returns a vector of a starter concept with the dose-response that ships with the package.

    Only where it is the same vector: the same model, pairs, method, position and recommended layers. Otherwise the vector
    is returned unchanged.
    """
    found = measurement_of(concept, vector.model_fingerprint)
    if found is None or vector.quality is None or vector.recommended is None:
        return vector
    made = vector.provenance
    same = (made.get("dataset"), made.get("method"), str(made.get("position"))) == (
        found.dataset,
        found.method,
        found.position,
    )
    if not same or vector.recommended.layers != found.layers:
        return vector
    recommended, warnings = Recommended(found.layers, found.strength, found.negative, basis="measured"), list[str]()
    if not (found.strength or found.negative):
        warnings.append(found.summary)
        if found.moves_on_average:  # too few prompts to tell: the strengths to try stay
            recommended = vector.recommended
    card = replace(
        vector.quality,
        dose_response=found.points,
        anti_steered=found.anti_steered,
        warnings=(*vector.quality.warnings, *warnings),
    )
    measured = {"shipped": concept, "layers": list(found.layers), "reading_layer": found.reading_layer}
    return replace(
        vector,
        quality=card,
        recommended=recommended,
        provenance={**made, "dose_response": measured},
    )
