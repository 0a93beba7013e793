"""`python -m benchmarks.quality.coverage`: how often the interval of a card holds the AUROC of its vector on new topics, by simulation.

Activations of d_model 576, as the embedded model has, with features whose variances fall as 1/f; pairs, and lists with topics.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.concepts import digest
from benchmarks.quality.page import table
from benchmarks.quality.recording import Stopwatch, read_results, write_results
from steering.auroc import auroc
from steering.cards import Estimate
from steering.extraction.base import MeanDifference
from steering.extraction.card import best_layer
from steering.extraction.cross_validation import LayerFit, fit_layer, folding, nested_auroc
from steering.pairs import PairSet
from steering.workflows.measures import share

RESULT = Path(__file__).parents[1] / "results" / "coverage.json"
LAYERS, FRESH = 5, 200
"""Layers among which one is chosen, and new topics on which the vector is read."""
RUNS = 200
SEED = 0
"""Of the first run of a row; each further run has the next."""
FOLDED = "2026-12-01"
"""Since when cross-validation has at most ten folds, and one fit for every two of them (f464e4da)."""
Draw = Callable[[int, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class World:
    """How activations are drawn. signal: length of the concept where it is strongest. correlated: whether variances fall as 1/f."""

    topics: int
    pairs: int
    signal: float
    paired: bool = True
    d_model: int = 24
    correlated: bool = False

    def draw(self, seed: int) -> Draw:
        """Returns what draws activations (layer, class, pair, d_model) of new topics: each layer has its own direction and strength, each
        topic its own background and size of the concept, and the texts of a pair a shift that they share."""
        rng, shape = np.random.default_rng(seed), (LAYERS, self.d_model)
        directions = rng.normal(size=shape)
        directions *= (
            self.signal * rng.uniform(0.5, 1.0, size=(LAYERS, 1)) / np.linalg.norm(directions, axis=1)[:, None]
        )
        spread = np.ones(self.d_model)
        if self.correlated:
            spread = 1.0 / np.sqrt(np.arange(1, self.d_model + 1))
            spread *= np.sqrt(self.d_model / np.square(spread).sum())

        def draw(topics: int, pairs: int) -> torch.Tensor:
            background = spread * rng.normal(size=(topics, 1, 1, *shape))
            size = 1.0 + 0.5 * rng.normal(size=(topics, 1, 1, LAYERS, 1))
            shift = 0.6 * spread * rng.normal(size=(topics, pairs, 1 if self.paired else 2, *shape))
            noise = spread * rng.normal(size=(topics, pairs, 2, *shape))
            sign = np.array([0.5, -0.5])[:, None, None]
            rows = background + shift + noise + sign * size * directions
            return torch.from_numpy(rows.reshape(topics * pairs, 2, *shape)).permute(2, 1, 0, 3).float()

        return draw

    def extracted(self, activations: torch.Tensor, seed: int) -> tuple[dict[int, LayerFit], Estimate]:
        """Fits and cross-validates the layers as an extraction does."""
        count = activations.shape[2]
        positives, negatives = (tuple(f"{side}{index}" for index in range(count)) for side in "+-")
        topics = tuple(str(index // self.pairs) for index in range(count))
        written = PairSet(
            positives, negatives, topics, paired=self.paired, negative_topics=() if self.paired else topics
        )
        division = folding(written, 0.3, seed)
        fits = {
            layer: fit_layer(MeanDifference.fit, positive, negative, self.paired, division, seed)
            for layer, (positive, negative) in enumerate(activations)
        }
        found = nested_auroc(fits, LAYERS)
        assert found is not None
        return fits, found

    def trial(self, seed: int) -> tuple[float, Estimate]:
        """Returns the AUROC of one vector on new topics, and what its card says of it."""
        draw = self.draw(seed)
        fits, found = self.extracted(draw(self.topics, self.pairs), seed)
        layer = best_layer({one: fit.quality for one, fit in fits.items()}, LAYERS)
        positive, negative = (draw(FRESH, 1)[layer] @ fits[layer].direction.direction).double().numpy()
        return float(auroc(positive, negative)), found


def holds(fresh: float, card: Estimate) -> bool:
    """Whether the interval of a card holds a value."""
    low, high = card.interval or (1.0, 0.0)
    return low <= fresh <= high


WORLDS = tuple(
    World(topics, pairs, signal, paired, 576, correlated=True)
    for paired in (True, False)
    for topics, pairs, signal in ((10, 4, 6.0), (8, 3, 12.0), (16, 4, 4.0), (24, 1, 8.0))
)


def digest_of_worlds() -> str:
    """Returns the digest of what is drawn: the worlds, the layers and the new topics."""
    return digest([[asdict(world) for world in WORLDS], LAYERS, FRESH])


def measured(world: World, runs: int) -> dict[str, Any]:
    """Returns the share of runs whose interval holds the fresh value, with its 95 % interval, and which of the others lie where."""
    found = [world.trial(SEED + run) for run in range(runs)]
    held = share(sum(holds(*one) for one in found), runs)
    missed = [(fresh, card) for fresh, card in found if not holds(fresh, card)]
    return {
        "form": "pairs" if world.paired else "lists",
        "topics": world.topics,
        "texts_a_side": world.topics * world.pairs,
        "runs": runs,
        "held": held.mean,
        "interval": held.interval,
        "fresh_above": sum(fresh > card.mean for fresh, card in missed),
        "fresh_below": sum(fresh < card.mean for fresh, card in missed),
        "width": float(np.mean([card.interval[1] - card.interval[0] for _, card in found if card.interval])),
    }


def coverage_table(path: Path = RESULT) -> str:
    """Shows the share of intervals that hold the fresh value, by form and size."""
    found = read_results(path)
    if not found:
        return "Not simulated yet.\n"
    rows = []
    for one in found["rows"]:
        low, high = one["interval"]
        rows.append(
            (
                one["form"],
                f"{one['topics']} ({one['texts_a_side']} texts a side)",
                f"{one['held']:.1%} of {one['runs']} [{low:.0%}, {high:.0%}]",
                f"{one['fresh_above']}, {one['fresh_below']}",
                f"{one['width']:.2f}",
            )
        )
    columns = ("form", "topics", "interval holds the fresh AUROC", "fresh above, below it", "mean width")
    forms = {one["form"]: [row for row in found["rows"] if row["form"] == one["form"]] for one in found["rows"]}
    shares = ", ".join(f"{_pooled(of):.1%} of {name}" for name, of in forms.items())
    lowest = min(one["held"] for one in found["rows"])
    where = f"d_model {found['d_model']}, {found['layers']} layers, variances as 1/f"
    about = f"simulated on {found['date']} with seeds from {found['seed']} on (worlds `{found['data']}`)"
    before = ", before the folds of cross-validation changed (f464e4da, 1 December 2026)"
    return table(columns, rows) + (
        f"\n{_pooled(found['rows']):.1%} of all: {shares}, with {found['rows'][0]['runs']} draws a row, of which the lowest has {lowest:.1%}; {where}; "
        f"{about}{before if found['date'] < FOLDED else ''}.\n"
    )


def _pooled(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(one["held"] * one["runs"] for one in rows) / sum(one["runs"] for one in rows))


def main() -> None:
    """Simulates, and writes the shares."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.coverage", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    watch, rows = Stopwatch(), []
    about = {"d_model": 576, "layers": LAYERS, "seed": SEED, "data": digest_of_worlds()}
    for world in WORLDS:
        rows.append(measured(world, chosen.runs))
        print(rows[-1], flush=True)
        found = {"date": datetime.now(UTC).date().isoformat(), **asdict(watch.spent()), "rows": rows}
        write_results(RESULT, about | found)


if __name__ == "__main__":
    main()
