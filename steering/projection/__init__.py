"""PROJECTIONS, the table of how activations are drawn. All are loaded when first asked for: they bring scikit-learn."""

from steering.projection.base import Points, Projection
from steering.registry import Registry


def _pca() -> type[Projection]:
    from steering.projection.pca import Pca  # noqa: PLC0415 - scikit-learn takes a second to import

    return Pca


def _tsne() -> type[Projection]:
    from steering.projection.tsne import Tsne  # noqa: PLC0415 - scikit-learn takes a second to import

    return Tsne


def _umap() -> type[Projection]:
    from steering.projection.umap import Umap  # noqa: PLC0415 - umap-learn is optional and slow to import

    return Umap


PROJECTIONS: Registry[type[Projection]] = Registry(
    "projection",
    loaders={"pca": _pca, "tsne": _tsne, "umap": _umap},
    param="method",
)

__all__ = ["PROJECTIONS", "Points", "Projection"]
