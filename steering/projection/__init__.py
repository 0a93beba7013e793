"""PROJECTIONS, the table of how activations are drawn. All are loaded when first asked for: they bring scikit-learn."""

from steering.projection.base import Points, Projection
from steering.registry import Registry

PROJECTIONS: Registry[type[Projection]] = Registry(
    "projection",
    {
        "pca": "steering.projection.pca:Pca",
        "tsne": "steering.projection.tsne:Tsne",
        "umap": "steering.projection.umap:Umap",
    },
)

__all__ = ["PROJECTIONS", "Points", "Projection"]
