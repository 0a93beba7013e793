"""Lists the extraction methods in METHODS. Methods that need scikit-learn are imported on first use."""

from steering.extraction.base import ExtractionMethod, MeanDifference, Pca, Rfm
from steering.extraction.maps import Affine, Clas, Conceptor, NullSpace
from steering.registry import Registry

METHODS: Registry[type[ExtractionMethod]] = Registry(
    "method",
    {one.name: one for one in (MeanDifference, Pca, Rfm, Affine, NullSpace, Conceptor, Clas)},
    # scikit-learn takes a second to import
    loaders={"probe": "steering.extraction.classifiers:Probe", "whitened": "steering.extraction.classifiers:Whitened"},
)

__all__ = ["METHODS", "ExtractionMethod"]
