"""tsne: neighbours stay neighbours; distances between groups mean little."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from steering.projection.base import Points, check_activations

PERPLEXITY = 30.0
AXES = 50
"""Principal axes kept before, as van der Maaten and Hinton (2008) do: less noise, and fifty times less to compare."""


class Tsne:
    """t-SNE by scikit-learn, on the first 50 principal axes, started from the first of them."""

    name: ClassVar[str] = "tsne"
    min_examples: ClassVar[int] = 5

    @staticmethod
    def fit(activations: NDArray[np.float32], dims: int, seed: int) -> Points:
        """activations (example, d_model) -> Points. Perplexity 30, or a third of the examples where they are few."""
        check_activations(Tsne.name, activations, dims, Tsne.min_examples)
        axes = min(AXES, *activations.shape)
        rows = PCA(n_components=axes, svd_solver="full").fit_transform(activations.astype(np.float64))
        model = TSNE(
            n_components=dims,
            perplexity=min(PERPLEXITY, (len(rows) - 1) / 3),
            init="pca",
            random_state=seed,
            n_jobs=1,
        )
        # Its OpenMP threads wait actively, which on a busy machine costs ten times what they gain.
        with threadpool_limits(limits=1):
            return Points(points=model.fit_transform(rows).astype(np.float32))
