"""Builds the quality card with its warnings, and recommends a layer and strengths from it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from steering.auroc import MIN_GROUPS
from steering.cards import Estimate, LayerQuality, QualityCard, Recommended
from steering.spec import Interval

WINDOW = (0.4, 0.7)
"""Share of the model's depth in which concepts steer best (common to the published layer searches)."""
FEW_PAIRS = 20
FEW_TOPICS = 6
LOW_AGREEMENT = 0.2
CLOSE_TO_RANDOM = 0.05
TYPICAL_DOSES = (0.05, 0.12)
"""Relative doses to try at one layer: from where the embedded model's text changes to where the first concept breaks it."""


def layers_in_window(layers: Iterable[int], layer_count: int) -> list[int]:
    """Returns the layers of which `best_layer` chooses, ascending: those in WINDOW of the depth, all where none is."""
    ascending = sorted(layers)
    return [layer for layer in ascending if WINDOW[0] <= (layer + 1) / layer_count <= WINDOW[1]] or ascending


def best_layer(layers: Mapping[int, LayerQuality], layer_count: int) -> int:
    """Returns the layer in WINDOW of the depth, if any, that reads best: AUROC to two decimals, then the lower end of
    its interval, then separation; without measurements the one nearest the middle of the window."""
    middle = sum(WINDOW) / 2 * layer_count - 1

    def rank(layer: int) -> tuple[float, float, float, float]:
        quality = layers[layer]
        low = quality.auroc_interval[0] if quality.auroc_interval else 0.0
        return round(quality.auroc or 0.0, 2), round(low, 2), quality.separation or 0.0, -abs(layer - middle)

    return max(layers_in_window(layers, layer_count), key=rank)


def recommend(
    card: QualityCard, layer_count: int, scales: Mapping[int, float], norms: Sequence[float] = ()
) -> Recommended:
    """Recommends the layer that reads best, and strengths to try there; no strengths for a vector at chance."""
    layer = best_layer(card.layers, layer_count)
    strengths = None if card.at_chance else strengths_to_try((layer,), scales, norms)
    return Recommended((layer,), strengths_to_try=strengths, basis="norms" if card.auroc is None else "card")


def strengths_to_try(layers: Sequence[int], scales: Mapping[int, float], norms: Sequence[float]) -> Interval | None:
    """Returns the strengths that make TYPICAL_DOSES over the layers together; None where norms are not known. scales:
    natural scale by layer; norms: typical residual norm of every layer, both in residual units."""
    if not norms:
        return None
    dose_of_one = sum(scales[layer] / norms[layer] for layer in layers)
    low, high = (float(f"{dose / dose_of_one:.2g}") for dose in TYPICAL_DOSES)
    return low, high


def build_card(
    layers: Mapping[int, LayerQuality],
    *,
    layer_count: int,
    pairs: int,
    holdout: int,
    folds: int,
    topics: int,
    auroc: Estimate | None,
) -> QualityCard:
    """Builds the card of a new vector. For unpaired texts, pairs and holdout count the smaller class. holdout: pairs
    held out by a fold. auroc: of the whole procedure, the choice of the layer included."""
    layer = best_layer(layers, layer_count)
    data = _about_data(pairs, folds, topics)
    warnings = (*data, *_about_measurements(auroc, holdout, layer, layers[layer]))
    return QualityCard(
        pairs=pairs,
        holdout=holdout,
        layers=dict(layers),
        warnings=warnings,
        auroc=None if auroc is None else auroc.mean,
        auroc_interval=None if auroc is None else auroc.interval,
        folds=folds,
    )


def _about_data(pairs: int, folds: int, topics: int) -> Iterator[str]:
    if pairs < FEW_PAIRS:
        yield f"too few pairs: {pairs}; below {FEW_PAIRS}, other examples give another direction"
    if folds == 0:
        yield "nothing was held out: how well the direction reads new text was not measured"
    elif topics < FEW_TOPICS:
        yield (
            f"few topics: {topics}, so the figures are rough and may not hold on other topics (at least {FEW_TOPICS} are "
            "recommended)"
        )


def _about_measurements(auroc: Estimate | None, holdout: int, layer: int, quality: LayerQuality) -> Iterator[str]:
    if auroc is not None and auroc.interval is not None and auroc.interval[1] < 0.5:
        yield f"reads the poles reversed on held-out text (AUROC {auroc.mean:.2f}, {holdout} held out)"
    elif auroc is not None and (auroc.interval or (auroc.mean,))[0] <= 0.5:
        shown = f"no interval: fewer than {MIN_GROUPS} topics"
        if auroc.interval is not None:
            shown = f"interval {auroc.interval[0]:.2f} to {auroc.interval[1]:.2f}"
        yield f"not shown to be better than chance ({holdout} held out): AUROC {auroc.mean:.2f}, {shown}"
    own, random = quality.auroc, quality.random_auroc
    if own is not None and random is not None and own > 0.5 and own - random < CLOSE_TO_RANDOM:
        yield (
            f"random directions read nearly as well at layer {layer} ({random:.2f}, this direction {own:.2f}): the texts "
            "differ in more than the concept"
        )
    if quality.pair_agreement is not None and quality.pair_agreement < LOW_AGREEMENT:
        yield (
            f"pairs disagree at layer {layer}: the difference of a pair has cosine {quality.pair_agreement:.2f} with the "
            "mean of the others"
        )
