"""Projects activations with scikit-learn, by their principal axes or by t-SNE."""

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


class Pca:
    """points = (X - mean) basis^T, basis (dims, d_model) the first principal axes, along which the points spread the most.

    Linear, so a direction can be drawn in it too. The seed changes nothing. An axis is known only up to its sign; the one is taken that makes its largest component positive.
    """

    name: ClassVar[str] = "pca"
    min_examples: ClassVar[int] = 4

    @staticmethod
    def fit(activations: NDArray[np.float32], dims: int, seed: int) -> Points:
        """activations (example, d_model) -> Points with explained variance, basis and mean."""
        check_activations(Pca.name, activations, dims, Pca.min_examples)
        rows = activations.astype(np.float64)
        model = PCA(n_components=dims, svd_solver="full").fit(rows)
        largest = np.abs(model.components_).argmax(axis=1)
        basis = model.components_ * np.sign(model.components_[np.arange(dims), largest])[:, None]
        return Points(
            points=((rows - model.mean_) @ basis.T).astype(np.float32),
            explained_variance=tuple(float(share) for share in model.explained_variance_ratio_),
            basis=basis.astype(np.float32),
            mean=model.mean_.astype(np.float32),
        )


class Tsne:
    """t-SNE on the first 50 principal axes, started from the first of them.

    Neighbours stay neighbours; distances between groups mean little.
    """

    name: ClassVar[str] = "tsne"
    min_examples: ClassVar[int] = 5

    @staticmethod
    def fit(activations: NDArray[np.float32], dims: int, seed: int) -> Points:
        """activations (example, d_model) -> Points. Perplexity 30, or a third of the examples where they are few."""
        check_activations(Tsne.name, activations, dims, Tsne.min_examples)
        axes = min(AXES, *activations.shape)
        rows = PCA(n_components=axes, svd_solver="full").fit_transform(activations.astype(np.float64))
        model = TSNE(
            n_components=dims, perplexity=min(PERPLEXITY, (len(rows) - 1) / 3), init="pca", random_state=seed, n_jobs=1
        )
        # Its OpenMP threads wait actively, which on a busy machine costs ten times what they gain.
        with threadpool_limits(limits=1):
            return Points(points=model.fit_transform(rows).astype(np.float32))
