"""The card's warnings and the layer it recommends."""

import dataclasses

import pytest

from steering.extraction.card import USUAL_DOSES, best_layer, build_card, recommend
from steering.quality import LayerQuality, QualityCard
from steering.vectors import DEFAULT_STRENGTHS

GOOD = LayerQuality(auroc=0.95, auroc_interval=(0.9, 0.99), separation=2.5, pair_agreement=0.6, random_auroc=0.6)


def card(quality: LayerQuality, pairs: int = 64, holdout: int = 20, held_topics: int = 5) -> QualityCard:
    return build_card({15: quality}, layer_count=30, pairs=pairs, holdout=holdout, held_topics=held_topics)


def warned(quality: LayerQuality, words: str, **counts: int) -> bool:
    """Whether exactly one warning was given, and begins with these words."""
    warnings = card(quality, **counts).warnings
    return len(warnings) == 1 and warnings[0].startswith(words)


def test_good_evidence_draws_no_warning() -> None:
    made = card(GOOD)
    assert made.warnings == ()
    assert (made.pairs, made.holdout, made.layers) == (64, 20, {15: GOOD})
    assert made.dose_response is None
    assert made.anti_steered is None


def test_each_weakness_is_named() -> None:
    change = dataclasses.replace
    assert warned(GOOD, "too few pairs: 12", pairs=12)
    assert warned(GOOD, "held-out part too small: 4 pairs over 4 topics", holdout=4, held_topics=4)
    assert warned(GOOD, "held-out part too small: 20 pairs over 2 topics", held_topics=2)
    assert warned(
        change(GOOD, auroc=0.55, auroc_interval=(0.4, 0.7)), "no better than chance on held-out text at layer 15"
    )
    assert warned(change(GOOD, auroc=0.3, auroc_interval=(0.2, 0.45)), "reads the wrong way round")
    assert warned(change(GOOD, random_auroc=0.93), "random directions read nearly as well")
    assert warned(change(GOOD, pair_agreement=0.05), "pairs disagree at layer 15")


def test_nothing_held_out_is_said_once() -> None:
    assert warned(LayerQuality(pair_agreement=0.6), "nothing was held out", holdout=0, held_topics=0)


def test_recommends_the_best_layer_between_two_fifths_and_seven_tenths_of_the_depth() -> None:
    perfect = LayerQuality(auroc=1.0, auroc_interval=(1.0, 1.0), separation=9.0)
    layers = dict.fromkeys(range(30), GOOD) | {3: perfect, 27: perfect}
    layers[14] = dataclasses.replace(GOOD, auroc=0.97)
    recommended = recommend(QualityCard(pairs=64, holdout=20, layers=layers), layer_count=30)
    assert recommended.layers == (14,)
    assert recommended.strength == DEFAULT_STRENGTHS


def test_strengths_follow_from_scale_and_norm_where_both_are_known() -> None:
    card = QualityCard(pairs=64, holdout=20, layers={14: GOOD})
    scales, norms = {14: 10.0}, [1.0] * 14 + [200.0] + [1.0] * 15
    low, high = recommend(card, 30, scales, norms).strength
    assert (low * 10.0 / 200.0, high * 10.0 / 200.0) == pytest.approx(USUAL_DOSES)
    assert recommend(card, 30, scales, ()).strength == DEFAULT_STRENGTHS


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
