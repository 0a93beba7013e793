"""Projections: how residual vectors become points in two or three dimensions for display, and the table PROJECTIONS of
them.

All are loaded when first asked for: they bring scikit-learn, which takes a second to import, or umap-learn, which is
optional.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from steering.errors import InvalidRequest, NonfiniteActivations
from steering.registry import Registry


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """points (example, dims). Where the projection is linear: explained_variance per dimension as a share of all
    variance, and basis (dims, d_model), so that directions can be drawn in it."""

    points: NDArray[np.float32]
    explained_variance: tuple[float, ...] | None = None
    basis: NDArray[np.float32] | None = None


class Projection(Protocol):
    """One projection method. Same input and seed, same points. min_examples: the fewest examples it accepts."""

    name: ClassVar[str]
    min_examples: ClassVar[int]

    @staticmethod
    def fit(activations: NDArray[np.float32], dims: int, seed: int) -> Points:
        """activations (example, d_model) -> Points of (example, dims). Raises InvalidRequest for too few examples."""


PROJECTIONS: Registry[type[Projection]] = Registry(
    "projection",
    loaders={
        "pca": "steering.projection.scikit_learn:Pca",
        "tsne": "steering.projection.scikit_learn:Tsne",
        "umap": "steering.projection.umap:Umap",
    },
    param="method",
)


def check_activations(method: str, min_examples: int, activations: NDArray[np.float32], dims: int) -> None:
    """Raises InvalidRequest unless there are `min_examples` examples, not all alike, and 2 or 3 dimensions."""
    if dims not in (2, 3):
        raise InvalidRequest(f"dims must be 2 or 3, got {dims}", param="dims")
    if activations.ndim != 2 or activations.shape[1] < dims:
        raise InvalidRequest(
            f"activations must be (example, d_model) with d_model at least {dims}, got {activations.shape}"
        )
    if len(activations) < min_examples:
        raise InvalidRequest(
            f"method {method!r} needs at least {min_examples} texts to draw, got {len(activations)}",
            param="texts",
        )
    if not np.isfinite(activations).all():
        raise NonfiniteActivations("the activations contain NaN or infinity, so they cannot be drawn")
    if (activations == activations[0]).all():
        raise InvalidRequest("the activations are all alike at this layer, so there is nothing to draw", param="texts")
