"""QualityCard survives a trip through JSON unchanged, whatever was measured; vectors read at their own position."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from steering.cards import DosePoint, LayerQuality, QualityCard, own_position

CARD = TypeAdapter(QualityCard)

number = st.floats(-10, 10)
maybe = st.none() | number
interval = st.tuples(number, number)
figures = ("auroc", "separation", "pair_agreement", "random_auroc")
layer_quality = st.fixed_dictionaries(dict.fromkeys(figures, maybe) | {"auroc_interval": st.none() | interval})
costs = ("strength", "concept_score", "perplexity_ratio", "repetition", "kl_neutral", "relative_dose")
dose_point = st.fixed_dictionaries(
    dict.fromkeys(costs, number) | {"concept_interval": st.none() | interval, "random_score": maybe}
)
words = st.lists(st.text(max_size=20), max_size=3).map(tuple)


@given(
    layers=st.dictionaries(st.integers(0, 40), layer_quality, max_size=4),
    dose_response=st.none() | st.lists(dose_point, max_size=3),
    anti_steered=maybe,
    warnings=words,
)
def test_to_json_and_back(
    layers: dict[int, dict[str, Any]],
    dose_response: list[dict[str, Any]] | None,
    anti_steered: float | None,
    warnings: tuple[str, ...],
) -> None:
    made = QualityCard(
        pairs=40,
        holdout=12,
        layers={layer: LayerQuality(**figures) for layer, figures in layers.items()},
        dose_response=None if dose_response is None else tuple(DosePoint(**point) for point in dose_response),
        anti_steered=anti_steered,
        warnings=warnings,
    )
    assert CARD.validate_python(json.loads(json.dumps(made.to_dict(), allow_nan=False))) == made


def test_the_words_on_the_wire() -> None:
    quality = LayerQuality(
        auroc=0.98, auroc_interval=(0.91, 1.0), separation=3.1, pair_agreement=0.8, random_auroc=0.52
    )
    assert QualityCard(pairs=40, holdout=12, layers={12: quality}, warnings=("too few pairs",)).to_dict() == {
        "pairs": 40,
        "holdout": 12,
        "layers": {
            "12": {
                "auroc": 0.98,
                "auroc_interval": (0.91, 1.0),
                "separation": 3.1,
                "pair_agreement": 0.8,
                "random_auroc": 0.52,
            }
        },
        "dose_response": None,
        "anti_steered": None,
        "warnings": ("too few pairs",),
        "auroc": None,
        "auroc_interval": None,
        "folds": 0,
        "max_auroc": None,
        "max_auroc_interval": None,
    }


@pytest.mark.parametrize(
    ("method", "provenance", "position"),
    [
        ("distil", {}, "response_mean"),
        ("distil", {"position": "last"}, "last"),
        ("mean_difference", {"position": -2}, -2),
        ("given", {}, "last"),
    ],
)
def test_a_vector_reads_at_its_own_position_and_a_distilled_one_reads_answers(
    method: str, provenance: dict[str, object], position: object
) -> None:
    assert own_position(method, provenance) == position
