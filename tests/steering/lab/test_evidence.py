"""Shipped measurements become the evidence of exactly the vectors they were made of, and say in a line what they found."""

from dataclasses import replace
from typing import Any

import pytest

from steering.cards import DosePoint, LayerQuality, QualityCard, Recommended
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept
from steering.concepts.measured import BlindReading, ConceptMeasurement, _content, measurement_of, summaries_of
from steering.lab.evaluations import with_shipped_evidence
from steering.pairs import dataset_digest
from steering.vectors import ConceptVector
from tests.narrowing import present
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.vectors import planted_vector

MODEL = next(iter(_content()))


def vector_like(found: ConceptMeasurement, **changes: Any) -> ConceptVector:
    base = planted_vector(LinearEngine())
    layers = dict.fromkeys(found.layers, base.at(1))
    vector = replace(
        base,
        model_fingerprint=MODEL,
        layers=layers,
        quality=QualityCard(64, 22, dict.fromkeys(found.layers, LayerQuality(auroc=0.9))),
        recommended=Recommended(found.layers, strengths_to_try=(0.5, 1.0), basis="card"),
        provenance={"dataset": found.dataset, "method": found.method, "position": found.position},
    )
    return replace(vector, **changes)


def shipped(concept: str) -> ConceptMeasurement:
    found = measurement_of(concept, MODEL)
    assert found is not None
    return found


def test_every_concept_is_measured_on_the_embedded_model() -> None:
    assert set(_content()[MODEL].concepts) == set(CONCEPTS)


@pytest.mark.parametrize(
    ("model", "concept"), [(model, name) for model, one in _content().items() for name in one.concepts]
)
def test_what_is_measured_has_both_directions_with_intervals(model: str, concept: str) -> None:
    found = measurement_of(concept, model)
    assert found is not None
    assert found.dataset == dataset_digest(load_concept(concept))
    strengths = [point.strength for point in found.points]
    assert min(strengths) < 0.0 < max(strengths)
    for point in found.points:
        low, high = present(point.concept_interval)
        assert low <= point.concept_score <= high
        assert point.perplexity_interval is not None
    assert summaries_of(concept)[_content()[model].model] == found.summary


@pytest.mark.parametrize("concept", CONCEPTS)
def test_it_is_the_evidence_of_the_same_vector_alone(concept: str) -> None:
    found = shipped(concept)
    proved = with_shipped_evidence(vector_like(found), concept)
    assert proved.quality is not None
    assert proved.recommended is not None
    claimed = (found.strength, found.negative) if found.claims else (None, None)
    assert (proved.recommended.strength, proved.recommended.negative) == claimed
    if found.summary.startswith("not shown"):
        assert proved.recommended == vector_like(found).recommended
        assert proved.quality.warnings == (found.summary,)
        assert proved.provenance["evaluation_warnings"] == [found.summary], "a newer evaluation removes it"
    else:
        assert proved.recommended.basis == "measured"
        assert proved.recommended.layers == found.layers
        assert proved.quality.dose_response == found.points
    for changes in (
        {"model_fingerprint": "another"},
        {"provenance": {"dataset": "another", "method": found.method, "position": found.position}},
        {"layers": {0: planted_vector(LinearEngine()).at(1)}},
    ):
        other = vector_like(found, **changes)
        assert with_shipped_evidence(other, concept) is other


def point(strength: float, score: float, ratio: float = 1.0) -> DosePoint:
    return DosePoint(strength, score, (score, score), ratio, 0.0, 0.0, 0.1, 0.0, (ratio, ratio), 0.2)


@pytest.mark.parametrize(
    ("strength", "negative", "points", "line"),
    [
        ((0.5, 1.0), (-2.0, -1.0), (), "steers both ways: strength 0.5 to 1 and -2 to -1 (layer 14, 12 prompts)"),
        (None, (-1.0, -1.0), (), "steers one way only: strength -1 (negative side) (layer 14, 12 prompts)"),
        (None, None, (point(1.0, 0.3),), "not shown to steer (layer 14, 12 prompts)"),
        (None, None, (point(1.0, 0.3, 1.8), point(-1.0, 0.1)), "does not steer (layer 14, 12 prompts)"),
    ],
)
def test_the_line_says_whether_which_way_and_at_what_strength(
    strength: tuple[float, float] | None,
    negative: tuple[float, float] | None,
    points: tuple[DosePoint, ...],
    line: str,
) -> None:
    read = BlindReading(10, 10, 10) if strength or negative else None
    made = ConceptMeasurement("d", "mean_difference", "last", (14,), 14, 12, strength, negative, 0.0, points, read)
    assert made.summary == line


@pytest.mark.parametrize(
    ("blind", "claims", "line"),
    [
        (BlindReading(10, 8, 10), True, "steers one way only: strength 1 (positive side) (layer 14, 12 prompts)"),
        (
            BlindReading(10, 10, 7),
            False,
            "not shown to steer: its score moves, but only 10 (second model) and 7 (reader) of 10 pairs distinguished "
            "(layer 14, 12 prompts)",
        ),
        (
            None,
            False,
            "not shown to steer: its score moves, but no answers were read blind (layer 14, 12 prompts)",
        ),
    ],
)
def test_a_concept_whose_answers_are_not_read_and_distinguished_does_not_claim_to_steer(
    blind: BlindReading | None, claims: bool, line: str
) -> None:
    points = (point(1.0, 0.3),)
    made = ConceptMeasurement("d", "mean_difference", "last", (14,), 14, 12, (1.0, 1.0), None, 0.0, points, blind)
    assert made.claims is claims
    assert made.summary == line
