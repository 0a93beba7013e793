"""From what was measured at each layer to a quality card with plain warnings, and to the layer worth steering at."""

from collections.abc import Mapping, Sequence

from steering.quality import LayerQuality, QualityCard, Recommended
from steering.vectors import DEFAULT_STRENGTHS

WINDOW = (0.4, 0.7)
"""Share of the model's depth in which concepts steer best (shared by the published layer searches)."""
FEW_PAIRS = 20
FEW_HELD = 10
FEW_TOPICS = 4
LOW_AGREEMENT = 0.2
CLOSE_TO_RANDOM = 0.05
USUAL_DOSES = (0.05, 0.12)
"""Relative doses to try at one layer: from where the embedded model's text moves to where the first concept breaks it."""


def best_layer(layers: Mapping[int, LayerQuality], layer_count: int) -> int:
    """The layer in WINDOW of the depth that reads best: AUROC, then the lower end of its interval, then separation.

    AUROC counts to two decimals, since a third is chance at these sizes. Where nothing was measured, the layer nearest
    the middle of the window; where the vector has no layer in the window, the choice is among all it has.
    """
    inside = [layer for layer in sorted(layers) if WINDOW[0] <= (layer + 1) / layer_count <= WINDOW[1]]
    middle = sum(WINDOW) / 2 * layer_count - 1

    def rank(layer: int) -> tuple[float, float, float, float]:
        quality = layers[layer]
        low = quality.auroc_interval[0] if quality.auroc_interval else 0.0
        return round(quality.auroc or 0.0, 2), round(low, 2), quality.separation or 0.0, -abs(layer - middle)

    return max(inside or sorted(layers), key=rank)


def recommend(
    card: QualityCard, layer_count: int, scales: Mapping[int, float] | None = None, norms: Sequence[float] = ()
) -> Recommended:
    """The layer that reads best, and the strengths to try there before any were measured.

    scales: natural scale by layer; norms: typical residual norm of every layer, both in residual units. Where both are
    known the strengths are those of USUAL_DOSES, else DEFAULT_STRENGTHS.
    """
    layer = best_layer(card.layers, layer_count)
    if scales is None or not norms:
        return Recommended(layers=(layer,), strength=DEFAULT_STRENGTHS)
    low, high = (round(dose * norms[layer] / scales[layer], 2) for dose in USUAL_DOSES)
    return Recommended(layers=(layer,), strength=(low, high))


def build_card(
    layers: Mapping[int, LayerQuality], *, layer_count: int, pairs: int, holdout: int, held_topics: int
) -> QualityCard:
    """The card of a vector just made. pairs: all of them; holdout: those held out, over held_topics topics.

    For two unpaired heaps both count the smaller class. The warnings speak of the layer that `recommend` would choose.
    `dose_response` and `anti_steered` stay None until an evaluation has generated text.
    """
    layer = best_layer(layers, layer_count)
    warnings = _about_data(pairs, holdout, held_topics) + _about_layer(layer, layers[layer])
    return QualityCard(pairs=pairs, holdout=holdout, layers=dict(layers), warnings=warnings)


def _about_data(pairs: int, holdout: int, held_topics: int) -> tuple[str, ...]:
    warnings = []
    if pairs < FEW_PAIRS:
        warnings.append(f"too few pairs: {pairs}; expect another direction from other examples below {FEW_PAIRS}")
    if holdout == 0:
        warnings.append("nothing was held out: how well the direction reads new text was not measured")
    elif holdout < FEW_HELD or held_topics < FEW_TOPICS:
        warnings.append(
            f"held-out part too small: {holdout} pairs over {held_topics} topics, so the figures are rough "
            f"(at least {FEW_HELD} over {FEW_TOPICS} are wanted)"
        )
    return tuple(warnings)


def _about_layer(layer: int, quality: LayerQuality) -> tuple[str, ...]:
    warnings = []
    if quality.auroc is not None:
        low, high = quality.auroc_interval or (quality.auroc, quality.auroc)
        if high < 0.5:
            warnings.append(f"reads the wrong way round on held-out text at layer {layer} (AUROC {quality.auroc:.2f})")
        elif low <= 0.5:
            warnings.append(
                f"no better than chance on held-out text at layer {layer} "
                f"(AUROC {quality.auroc:.2f}, interval {low:.2f} to {high:.2f})"
            )
        elif quality.random_auroc is not None and quality.auroc - quality.random_auroc < CLOSE_TO_RANDOM:
            warnings.append(
                f"random directions read nearly as well at layer {layer} ({quality.random_auroc:.2f} against "
                f"{quality.auroc:.2f}): the texts differ in more than the concept"
            )
    if quality.pair_agreement is not None and quality.pair_agreement < LOW_AGREEMENT:
        warnings.append(
            f"pairs disagree at layer {layer}: each pair's difference has cosine {quality.pair_agreement:.2f} with the "
            "mean of the others"
        )
    return tuple(warnings)
