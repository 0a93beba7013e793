"""METHODS, the table of how a direction is found. Those that need scikit-learn are loaded when first asked for."""

from steering.extraction.base import Direction, ExtractionMethod
from steering.extraction.mean_difference import MeanDifference
from steering.extraction.pca import Pca
from steering.registry import Registry

METHODS: Registry[type[ExtractionMethod]] = Registry(
    "method",
    {
        "mean_difference": MeanDifference,
        "pca": Pca,
        "probe": "steering.extraction.probe:Probe",
        "whitened": "steering.extraction.whitened:Whitened",
    },
)

__all__ = ["METHODS", "Direction", "ExtractionMethod"]
