"""PROJECTIONS, the table of how activations are drawn. All are loaded when first asked for: they bring scikit-learn, which
takes a second to import, or umap-learn, which is optional."""

from steering.projection.base import Points, Projection
from steering.registry import Registry

PROJECTIONS: Registry[type[Projection]] = Registry(
    "projection",
    loaders={
        "pca": "steering.projection.scikit_learn:Pca",
        "tsne": "steering.projection.scikit_learn:Tsne",
        "umap": "steering.projection.umap:Umap",
    },
    param="method",
)

__all__ = ["PROJECTIONS", "Points", "Projection"]
