"""Measures directions on the pairs that each fold holds out, in one model at one layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from steering.auroc import HeldOut
from steering.extraction.cross_validation import Folding, held_out
from steering.extraction.differences import MeanDifference
from steering.pairs import Split
from steering.shapes import Direction, Float, Tensor
from steering.vectors import LayerDirection

RANDOM_DIRECTIONS = 8
"""Random directions for each split into folds; each is signed by the pairs that are not held out."""

FitFold: TypeAlias = Callable[[Split], Direction]


@dataclass(frozen=True, slots=True, eq=False)
class ReadLayer:
    """The pairs as one model reads them at one layer."""

    positive: Float[Tensor, "pos d_model"]
    negative: Float[Tensor, "neg d_model"]
    paired: bool

    def fit(self, split: Split | None = None) -> LayerDirection:
        """Fits the mean difference, without what a split holds out."""
        if split is None:
            return MeanDifference.fit(self.positive, self.negative, self.paired)
        return MeanDifference.fit(
            self.positive[list(split.fit_positive)], self.negative[list(split.fit_negative)], self.paired
        )

    def signed(self, direction: Direction, split: Split) -> Direction:
        """Turns a direction so that it points from the negative to the positive texts that a split does not hold out."""
        shift = self.positive[list(split.fit_positive)].mean(0) - self.negative[list(split.fit_negative)].mean(0)
        return direction if float(direction @ shift) >= 0.0 else -direction

    def measured(self, division: Folding, fit: FitFold, splits: Sequence[Sequence[Split]]) -> list[list[HeldOut]]:
        """Projects what each fold holds out on the direction that is fitted without it."""
        found = []
        for split in splits:
            folds = []
            for fold in split:
                groups = (
                    division.positive_groups[list(fold.held_positive)],
                    division.negative_groups[list(fold.held_negative)],
                )
                rows = self.positive[list(fold.held_positive)], self.negative[list(fold.held_negative)]
                folds.append(held_out(fit(fold), *rows, *groups))
            found.append(folds)
        return found


def random_folds(read: ReadLayer, division: Folding, seed: int) -> list[list[HeldOut]]:
    """Projects held-out pairs on random directions."""
    generator = torch.Generator().manual_seed(seed % 2**63)

    def fit(fold: Split) -> Direction:
        return read.signed(torch.randn(read.positive.shape[1], generator=generator), fold)

    return read.measured(division, fit, division.splits * RANDOM_DIRECTIONS)
