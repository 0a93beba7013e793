"""Projection: many residual vectors -> points in two or three dimensions, so that a person can see them."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Points:
    """points (example, dims); explained_variance per dimension and basis (dims, d_model), mean (d_model,) where the
    projection is linear, so that directions can be drawn in it."""

    points: NDArray[np.float32]
    explained_variance: tuple[float, ...] | None = None
    basis: NDArray[np.float32] | None = None
    mean: NDArray[np.float32] | None = None


class Projection(Protocol):
    """One way to flatten. Same input and seed, same points."""

    name: ClassVar[str]

    @staticmethod
    def fit(activations: NDArray[np.float32], dims: int, seed: int) -> Points:
        """activations (example, d_model) -> Points of (example, dims). Raises InvalidRequest when examples are too few."""
        ...
