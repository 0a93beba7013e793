"""Lists the extraction methods in METHODS. Methods that need scikit-learn are imported on first use."""

from steering.extraction.base import ExtractionMethod
from steering.extraction.mean_difference import MeanDifference
from steering.extraction.pca import Pca
from steering.registry import Registry


def _probe() -> type[ExtractionMethod]:
    from steering.extraction.probe import Probe  # noqa: PLC0415 - scikit-learn takes a second to import

    return Probe


def _whitened() -> type[ExtractionMethod]:
    from steering.extraction.whitened import Whitened  # noqa: PLC0415 - scikit-learn takes a second to import

    return Whitened


METHODS: Registry[type[ExtractionMethod]] = Registry(
    "method",
    {"mean_difference": MeanDifference, "pca": Pca},
    loaders={"probe": _probe, "whitened": _whitened},
)

__all__ = ["METHODS", "ExtractionMethod"]
