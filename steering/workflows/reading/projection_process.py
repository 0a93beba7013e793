"""Computes one projection in a worker process. Imports no torch, so that a worker starts within a second."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steering.projection import PROJECTIONS, Points
from steering.projection.base import Separability


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """One projected layer. separability: in the full space, not in the projection; None without two labels."""

    points: Points
    separability: Separability | None


def draw(
    activations: NDArray[np.float32],
    method: str,
    dims: int,
    seed: int,
    labels: Sequence[str] | None,
    groups: Sequence[str] | None = None,
) -> Drawing:
    """activations (example, d_model). Raises InvalidRequest where they cannot be drawn."""
    points = PROJECTIONS[method].fit(activations, dims, seed)
    if labels is None or len(set(labels)) < 2:
        return Drawing(points, None)
    # scikit-learn takes a second to import, in the worker only
    from steering.projection.separability import separability  # noqa: PLC0415

    return Drawing(points, separability(activations, labels, seed, groups))
