"""umap: like t-SNE, with more of the arrangement at large. Needs the extra `umap`; compiles for seconds on first use."""

import warnings
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from steering.errors import UnsupportedParameter
from steering.projection.base import Points, check_activations

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)  # its parametric form, unused here
    try:
        import umap
    except ModuleNotFoundError:
        umap = None

NEIGHBOURS = 15


class Umap:
    """UMAP by umap-learn. Seeded, hence on one thread."""

    name: ClassVar[str] = "umap"
    least: ClassVar[int] = 6

    @staticmethod
    def fit(activations: NDArray[np.float32], dims: int, seed: int) -> Points:
        """activations (example, d_model) -> Points. Raises UnsupportedParameter where umap-learn is not installed."""
        if umap is None:
            raise UnsupportedParameter(
                "method 'umap' needs the package umap-learn, which is not installed here (the extra 'umap' brings it); "
                "'pca' and 'tsne' need nothing more",
                param="method",
            )
        check_activations(Umap.name, activations, dims, Umap.least)
        model = umap.UMAP(
            n_components=dims,
            n_neighbors=min(NEIGHBOURS, len(activations) - 1),
            # The spectral start solves for dims + 1 eigenvectors, for which small sets are too small.
            init="spectral" if len(activations) > 4 * dims else "random",
            random_state=seed,
            n_jobs=1,
        )
        return Points(points=np.asarray(model.fit_transform(activations), dtype=np.float32))
