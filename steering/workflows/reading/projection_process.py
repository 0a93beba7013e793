"""What a worker process does for a map of activations: one projection at a time. Imports no torch, so a worker starts soon."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from steering.projection import PROJECTIONS, Points
from steering.projection.base import Separability

NICENESS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """One layer as drawn. separability: in the space itself, not in the drawing; None without two labels."""

    points: Points
    separability: Separability | None


def draw(activations: NDArray[np.float32], method: str, dims: int, seed: int, labels: Sequence[str] | None) -> Drawing:
    """activations (example, d_model). Raises InvalidRequest where they cannot be drawn."""
    _stand_back()
    with threadpool_limits(limits=1):
        points = PROJECTIONS[method].fit(activations, dims, seed)
        apart = _apart(activations, labels, seed)
    return Drawing(points, apart)


def _apart(activations: NDArray[np.float32], labels: Sequence[str] | None, seed: int) -> Separability | None:
    if labels is None or len(set(labels)) < 2:
        return None
    from steering.projection.separability import separability  # noqa: PLC0415 - scikit-learn, needed in a worker only

    return separability(activations, labels, seed)


def _stand_back() -> None:
    """The server and its model go first: one thread, and lower priority where the system knows it."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))
