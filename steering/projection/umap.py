"""Projects activations with UMAP: like t-SNE, but keeps more of the arrangement. Compiles on first use."""

import warnings
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from steering.projection import Points, check_activations

with warnings.catch_warnings():
    # umap-learn warns that its parametric form, which is not used here, lacks Tensorflow.
    warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
    import umap

NEIGHBOURS = 15


class Umap:
    """Fits UMAP (umap-learn). A seeded fit runs on one thread."""

    name: ClassVar[str] = "umap"
    min_examples: ClassVar[int] = 6

    @staticmethod
    def fit(activations: NDArray[np.float32], dims: int, seed: int) -> Points:
        """activations (example, d_model) -> Points (example, dims)."""
        check_activations(Umap.name, Umap.min_examples, activations, dims)
        model = umap.UMAP(
            n_components=dims,
            n_neighbors=min(NEIGHBOURS, len(activations) - 1),
            # The spectral start solves for dims + 1 eigenvectors, for which small sets are too small.
            init="spectral" if len(activations) > 4 * dims else "random",
            random_state=seed,
            n_jobs=1,
        )
        return Points(points=np.asarray(model.fit_transform(activations), dtype=np.float32))
