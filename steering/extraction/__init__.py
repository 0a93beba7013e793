"""Lists the extraction methods in METHODS. Methods that need scikit-learn are imported on first use."""

from steering.extraction.base import ExtractionMethod, MeanDifference, Pca
from steering.registry import Registry

METHODS: Registry[type[ExtractionMethod]] = Registry(
    "method",
    {"mean_difference": MeanDifference, "pca": Pca},
    # scikit-learn takes a second to import
    loaders={"probe": "steering.extraction.classifiers:Probe", "whitened": "steering.extraction.classifiers:Whitened"},
)

__all__ = ["METHODS", "ExtractionMethod"]
