"""The card's interval holds the AUROC of the vector on new topics as often as it says, by simulation; shuffled labels are at
chance."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from steering.auroc import auroc
from steering.cards import Estimate
from steering.extraction.base import MeanDifference
from steering.extraction.card import best_layer
from steering.extraction.cross_validation import LayerFit, fit_layer, folding, nested_auroc
from steering.pairs import PairSet

LAYERS, D_MODEL, RUNS = 5, 24, 120
Draw = Callable[[int, int], torch.Tensor]


def world(seed: int, signal: float) -> Draw:
    """Draws activations (layer, class, pair, d_model) of new topics: each layer has its own direction and strength, each
    topic its own background and size of the concept, each pair its own shift."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(LAYERS, D_MODEL))
    directions *= signal * rng.uniform(0.5, 1.0, size=(LAYERS, 1)) / np.linalg.norm(directions, axis=1, keepdims=True)

    def draw(topics: int, pairs: int) -> torch.Tensor:
        background = rng.normal(size=(topics, 1, 1, LAYERS, D_MODEL))
        size = 1.0 + 0.5 * rng.normal(size=(topics, 1, 1, LAYERS, 1))
        shift = 0.6 * rng.normal(size=(topics, pairs, 1, LAYERS, D_MODEL))
        noise = rng.normal(size=(topics, pairs, 2, LAYERS, D_MODEL))
        sign = np.array([0.5, -0.5])[:, None, None]
        rows = background + shift + noise + sign * size * directions
        return torch.from_numpy(rows.reshape(topics * pairs, 2, LAYERS, D_MODEL)).permute(2, 1, 0, 3).float()

    return draw


def extracted(activations: torch.Tensor, pairs_per_topic: int, seed: int) -> tuple[dict[int, LayerFit], Estimate]:
    count = activations.shape[2]
    names = tuple(str(index) for index in range(count))
    topics = tuple(str(index // pairs_per_topic) for index in range(count))
    division = folding(PairSet(names, names, topics), 0.3, seed)
    fits = {
        layer: fit_layer(MeanDifference.fit, positive, negative, True, division, seed)
        for layer, (positive, negative) in enumerate(activations)
    }
    found = nested_auroc(fits, LAYERS)
    assert found is not None
    return fits, found


@pytest.mark.parametrize(("topics", "pairs", "signal"), [(10, 4, 2.5), (8, 3, 5.0), (24, 1, 1.5)])
def test_the_interval_holds_the_fresh_value(topics: int, pairs: int, signal: float) -> None:
    held = 0
    for seed in range(RUNS):
        draw = world(seed, signal)
        fits, found = extracted(draw(topics, pairs), pairs, seed)
        layer = best_layer({one: fit.quality for one, fit in fits.items()}, LAYERS)
        positive, negative = (draw(200, 1)[layer] @ fits[layer].direction.direction).double().numpy()
        low, high = found.interval or (1.0, 0.0)
        held += low <= float(auroc(positive, negative)) <= high
    assert held / RUNS >= 0.92


def test_shuffled_labels_are_at_chance_within_their_intervals() -> None:
    rng = np.random.default_rng(0)
    held, means = 0, []
    for seed in range(60):
        activations = world(seed, 4.0)(12, 3)
        swapped = torch.from_numpy(rng.random(activations.shape[2]) < 0.5)
        activations[:, :, swapped] = activations[:, :, swapped].flip(1)
        _, found = extracted(activations, 3, seed)
        low, high = found.interval or (1.0, 0.0)
        held += low <= 0.5 <= high
        means.append(found.mean)
    assert held >= 54
    assert np.mean(means) == pytest.approx(0.5, abs=0.04)


def test_the_best_of_many_useless_layers_is_not_reported_as_good() -> None:
    """Chosen and reported on the same examples, the best of the layers would look better than chance."""
    found, chosen = [], []
    for seed in range(40):
        fits, nested = extracted(world(seed, 0.0)(8, 2), 2, seed)
        layer = best_layer({one: fit.quality for one, fit in fits.items()}, LAYERS)
        found.append(nested.mean)
        chosen.append(fits[layer].quality.auroc or 0.0)
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)
    assert np.mean(chosen) > np.mean(found) + 0.02


@pytest.mark.parametrize("paired", [False, True])
def test_repeated_texts_are_no_evidence(paired: bool) -> None:
    """Noise, every text of which stands twice: were one held out and the other fitted, it would be recognised."""
    generator, means, shown = torch.Generator().manual_seed(0), [], 0
    for seed in range(30):
        positive, negative = torch.randn(2, 12, 64, generator=generator).repeat(1, 2, 1)
        names = tuple(f"{index % 12}" for index in range(24))
        texts = tuple(f"+{name}" for name in names), tuple(f"-{name}" for name in names)
        division = folding(PairSet(*texts, paired=paired), 0.3, seed)
        found = nested_auroc({0: fit_layer(MeanDifference.fit, positive, negative, paired, division, seed)}, 1)
        assert found is not None
        assert found.interval is not None
        means.append(found.mean)
        shown += found.interval[0] > 0.5
    assert np.mean(means) == pytest.approx(0.5, abs=0.06)
    assert shown <= 3
