"""The card's warnings, the layer it recommends and the strengths to try."""

import dataclasses
from typing import Any

import pytest
import torch

from steering.cards import Estimate, LayerQuality, QualityCard
from steering.extraction.card import TYPICAL_DOSES, best_layer, build_card, recommend
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows.extract import with_recommendation
from tests.steering.workflows.linear import LinearEngine

GOOD = LayerQuality(auroc=0.95, auroc_interval=(0.9, 0.99), separation=2.5, pair_agreement=0.6, random_auroc=0.6)
CLEAR = Estimate(0.94, (0.85, 0.98))
NORMS = [1.0] * 14 + [200.0] + [1.0] * 15


def card(
    quality: LayerQuality = GOOD,
    auroc: Estimate | None = CLEAR,
    pairs: int = 64,
    holdout: int = 15,
    folds: int = 3,
    topics: int = 16,
) -> QualityCard:
    return build_card(
        {14: quality}, layer_count=30, pairs=pairs, holdout=holdout, folds=folds, topics=topics, auroc=auroc
    )


def test_good_evidence_draws_no_warning() -> None:
    made = card()
    assert made.warnings == ()
    assert (made.pairs, made.holdout, made.folds, made.layers) == (64, 15, 3, {14: GOOD})
    assert (made.auroc, made.auroc_interval, made.at_chance) == (0.94, (0.85, 0.98), False)
    assert (made.dose_response, made.anti_steered) == (None, None)


@pytest.mark.parametrize(
    ("changes", "opening"),
    [
        ({"pairs": 12}, "too few pairs: 12"),
        ({"topics": 4}, "few topics: 4"),
        ({"auroc": Estimate(0.55, (0.4, 0.7))}, "not shown to be better than chance (15 held out): AUROC 0.55"),
        ({"auroc": Estimate(0.3, (0.2, 0.45))}, "reads the poles reversed"),
        ({"quality": dataclasses.replace(GOOD, random_auroc=0.93)}, "random directions read nearly as well"),
        ({"quality": dataclasses.replace(GOOD, pair_agreement=0.05)}, "pairs disagree at layer 14"),
        (
            {"quality": LayerQuality(pair_agreement=0.6), "auroc": None, "folds": 0, "holdout": 0},
            "nothing was held out",
        ),
    ],
)
def test_each_weakness_is_named_once(changes: dict[str, Any], opening: str) -> None:
    warnings = card(**changes).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith(opening)


def test_recommends_the_best_layer_between_two_fifths_and_seven_tenths_of_the_depth() -> None:
    perfect = LayerQuality(auroc=1.0, auroc_interval=(1.0, 1.0), separation=9.0)
    layers = dict.fromkeys(range(30), GOOD) | {3: perfect, 27: perfect}
    layers[14] = dataclasses.replace(GOOD, auroc=0.97)
    recommended = recommend(QualityCard(64, 15, layers), 30, {14: 10.0})
    assert recommended.layers == (14,)
    assert (recommended.strength, recommended.strengths_to_try) == (None, None)  # norms are not known


def test_strengths_to_try_follow_from_scale_and_norm_and_are_never_called_measured() -> None:
    recommended = recommend(card(), 30, {14: 10.0}, NORMS)
    assert recommended.strength is None
    assert recommended.basis == "card"
    low, high = recommended.strengths_to_try or (0.0, 0.0)
    assert (low * 10.0 / 200.0, high * 10.0 / 200.0) == pytest.approx(TYPICAL_DOSES, rel=0.05)


def test_a_vector_at_chance_gets_no_strengths() -> None:
    recommended = recommend(card(auroc=Estimate(0.6, (0.45, 0.75))), 30, {14: 10.0}, NORMS)
    assert (recommended.strength, recommended.strengths_to_try) == (None, None)


@pytest.mark.parametrize(("auroc", "at_chance"), [(0.01, True), (0.5, True), (1.0, False)])
def test_without_an_interval_the_auroc_itself_decides(auroc: float, at_chance: bool) -> None:
    """Two topics have no interval: those that read well keep their strengths, and those that read worse than chance do not."""
    made = card(auroc=Estimate(auroc, None), topics=2)
    assert made.at_chance == at_chance
    assert (recommend(made, 30, {14: 10.0}, NORMS).strengths_to_try is None) == at_chance
    few, *others = made.warnings
    assert few.startswith("few topics: 2")
    said = f"not shown to be better than chance (15 held out): AUROC {auroc:.2f}, no interval: fewer than 3 topics"
    assert others == ([said] if at_chance else [])


@pytest.mark.parametrize("factor", [0.1, 2.0])
def test_without_a_card_the_dose_is_that_of_the_vectors_own_scale(factor: float) -> None:
    """Twice the scale, half the strength: the same dose."""
    info = dataclasses.replace(LinearEngine().info, layer_count=30, typical_norms=tuple(NORMS))
    layers = {14: LayerDirection(torch.eye(info.d_model)[0], scale=factor * 10.0)}
    vector = ConceptVector("given", info.name, info.fingerprint, info.d_model, "given", layers)
    found = with_recommendation(vector, info).recommended
    assert found is not None
    assert (found.layers, found.basis, found.strength) == ((14,), "norms", None)
    low, high = found.strengths_to_try or (0.0, 0.0)
    assert (low * factor * 10.0 / 200.0, high * factor * 10.0 / 200.0) == pytest.approx(TYPICAL_DOSES, rel=0.05)


def test_the_window_is_counted_in_blocks_done() -> None:
    layers = {layer: LayerQuality(auroc=0.5 + layer / 100) for layer in range(10)}
    assert best_layer(layers, layer_count=10) == 6
    assert best_layer({layer: LayerQuality(auroc=1 - layer / 100) for layer in range(10)}, layer_count=10) == 3


def test_ties_go_to_the_lower_end_then_to_separation_then_to_the_middle() -> None:
    change = dataclasses.replace
    assert best_layer({14: GOOD, 15: GOOD, 16: change(GOOD, auroc_interval=(0.93, 0.99))}, 30) == 16
    assert best_layer({14: change(GOOD, separation=3.0), 15: GOOD, 16: GOOD}, 30) == 14
    assert best_layer({14: change(GOOD, separation=3.0), 15: change(GOOD, auroc=0.953)}, 30) == 14
    assert best_layer(dict.fromkeys(range(30), GOOD), 30) in (15, 16)


def test_unmeasured_layers_give_the_middle_of_the_window_and_outside_layers_the_best_there_is() -> None:
    assert best_layer({layer: LayerQuality() for layer in range(30)}, 30) in (15, 16)
    assert best_layer({2: LayerQuality(auroc=0.6), 4: LayerQuality(auroc=0.9)}, 30) == 4
    assert best_layer({1: LayerQuality()}, 2) == 1
