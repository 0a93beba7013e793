"""pca: the plane in which the points spread the most. Linear, so a direction can be drawn in it too."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from steering.projection.base import Points, check_activations


class Pca:
    """points = (X - mean) basis^T, basis (dims, d_model) the first principal axes. The seed changes nothing.

    An axis is known only up to its sign; the one is taken that makes its largest component positive.
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
