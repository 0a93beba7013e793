"""Lists the extraction methods in METHODS. Methods that need scikit-learn are imported on first use."""

from steering.extraction.affine import Affine
from steering.extraction.base import ExtractionMethod, MeanDifference, Pca
from steering.extraction.clas import Clas
from steering.extraction.conceptor import Conceptor
from steering.extraction.null_space import NullSpace
from steering.extraction.rfm import Rfm
from steering.registry import Registry

METHODS: Registry[type[ExtractionMethod]] = Registry(
    "method",
    {one.name: one for one in (MeanDifference, Pca, Rfm, Affine, NullSpace, Conceptor, Clas)},
    # scikit-learn takes a second to import
    loaders={"probe": "steering.extraction.classifiers:Probe", "whitened": "steering.extraction.classifiers:Whitened"},
)

__all__ = ["METHODS", "ExtractionMethod"]
