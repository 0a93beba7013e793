"""The card's interval holds the AUROC of the vector on new topics as often as it says, by simulation; shuffled labels are at
chance."""

import os

import numpy as np
import pytest
import torch

from benchmarks.quality.coverage import LAYERS, World, holds
from steering.extraction.base import MeanDifference
from steering.extraction.card import best_layer
from steering.extraction.cross_validation import fit_layer, folding, nested_auroc
from steering.pairs import PairSet

RUNS = int(os.environ.get("EXTRACTIONS", "40"))
"""Simulated extractions of each kind; `make fuzz` makes more."""
WORLDS = (World(10, 4, 2.5), World(8, 3, 5.0), World(24, 1, 1.5), World(10, 4, 2.5, paired=False))


@pytest.mark.parametrize("world", WORLDS, ids=repr)
def test_the_interval_holds_the_fresh_value(world: World) -> None:
    """`python -m benchmarks.quality.coverage` draws activations as wide as a model's."""
    held = sum(holds(*world.trial(seed)) for seed in range(RUNS))
    assert held / RUNS >= 0.92


def test_shuffled_labels_are_at_chance_within_their_intervals() -> None:
    rng = np.random.default_rng(0)
    held, means = 0, []
    for seed in range(60):
        world = World(12, 3, 4.0)
        activations = world.draw(seed)(12, 3)
        swapped = torch.from_numpy(rng.random(activations.shape[2]) < 0.5)
        activations[:, :, swapped] = activations[:, :, swapped].flip(1)
        _, found = world.extracted(activations, seed)
        low, high = found.interval or (1.0, 0.0)
        held += low <= 0.5 <= high
        means.append(found.mean)
    assert held >= 54
    assert np.mean(means) == pytest.approx(0.5, abs=0.04)


def test_the_best_of_many_useless_layers_is_not_reported_as_good() -> None:
    """Chosen and reported on the same examples, the best of the layers would look better than chance."""
    found, chosen, world = [], [], World(8, 2, 0.0)
    for seed in range(40):
        fits, nested = world.extracted(world.draw(seed)(8, 2), seed)
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
