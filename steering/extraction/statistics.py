"""Computes the statistics of the quality card of one layer: separation, pair agreement, random controls and AUROC."""

from collections.abc import Sequence

import numpy as np
import torch

from steering.auroc import HeldOut, Indices, Numbers, auroc, estimate_auroc
from steering.errors import InvalidRequest
from steering.extraction.base import Negatives, Positives
from steering.quality import LayerQuality
from steering.shapes import Direction, Float, Tensor

RANDOM_DIRECTIONS = 32


def held_out(
    direction: Direction, positive: Positives, negative: Negatives, positive_groups: Indices, negative_groups: Indices
) -> HeldOut:
    """Projects held-out examples on a direction (d_model,). Raises InvalidRequest unless every example has a group."""
    if len(positive_groups) != len(positive) or len(negative_groups) != len(negative):
        raise InvalidRequest(
            f"every held-out example needs a group: got {len(positive_groups)} and {len(negative_groups)} groups for "
            f"{len(positive)} positives and {len(negative)} negatives",
            param="topics",
        )
    above, below = (_project(rows, direction[None])[0] for rows in (positive, negative))
    return HeldOut(above, below, positive_groups, negative_groups)


def separation(positive: Numbers, negative: Numbers) -> float | None:
    """Returns (mean p+ - mean p-) / sqrt((var+ + var-) / 2); None without any spread or with one example of a class."""
    if min(len(positive), len(negative)) < 2:
        return None
    spread = float(np.sqrt((positive.var(ddof=1) + negative.var(ddof=1)) / 2.0))
    return float(positive.mean() - negative.mean()) / spread if spread > 0.0 else None


def pair_agreement(differences: Float[Tensor, "pair d_model"]) -> float | None:
    """Returns the mean cosine of each pair's difference with the mean of the others'; None for one pair or only zeros."""
    if len(differences) < 2:
        return None
    rows = differences.double()
    others = rows.sum(0) - rows
    norms = rows.norm(dim=1) * others.norm(dim=1)
    usable = norms > 0.0
    if not bool(usable.any()):
        return None
    return float(((rows * others).sum(1)[usable] / norms[usable]).mean())


def random_auroc(fit_shift: Direction, positive: Positives, negative: Negatives, seed: int) -> float:
    """Returns the mean held-out AUROC of random directions, each signed by the mean shift of the *fitted* examples.

    0.5 where the classes do not differ, above it where they differ so broadly that any direction separates them. Choosing
    the sign on the held-out examples would report chance as more than 0.5.
    """
    noise = np.random.default_rng(seed).standard_normal((RANDOM_DIRECTIONS, len(fit_shift)))
    directions = torch.from_numpy(noise)
    directions = directions * torch.where(directions @ fit_shift.double() < 0.0, -1.0, 1.0).double()[:, None]
    return float(auroc(_project(positive, directions), _project(negative, directions)).mean())


def layer_quality(
    splits: Sequence[Sequence[HeldOut]], agreement: float | None = None, controls: Sequence[float] = ()
) -> LayerQuality:
    """Summarizes the folds of one layer. controls: `random_auroc` of each fold."""
    found = estimate_auroc(splits)
    if found is None:
        return LayerQuality(pair_agreement=agreement)
    folds = [fold for folds in splits for fold in folds]
    distances = [value for fold in folds if (value := separation(fold.positive, fold.negative)) is not None]
    return LayerQuality(
        auroc=found.mean,
        auroc_interval=found.interval,
        separation=float(np.mean(distances)) if distances else None,
        pair_agreement=agreement,
        random_auroc=float(np.mean(controls)) if controls else None,
    )


def _project(rows: Float[Tensor, "example d_model"], directions: Float[Tensor, "k d_model"]) -> Numbers:
    """Returns projections (k, example) in float64."""
    projections: Numbers = (directions.double() @ rows.double().T).numpy(force=True)
    return projections
