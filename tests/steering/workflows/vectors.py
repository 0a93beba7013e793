"""The planted concept as a vector, without an extraction."""

from steering.vectors import ConceptVector, LayerDirection
from tests.steering.workflows.linear import D_MODEL, GAIN, LAYERS, LinearEngine


def planted_vector(engine: LinearEngine, name: str = "sentiment") -> ConceptVector:
    """Scale GAIN: strength 1 moves the level of polarity by 1."""
    layers = {
        layer: LayerDirection(engine.concept, scale=GAIN, positive_mean=GAIN / 2, negative_mean=-GAIN / 2)
        for layer in range(1, LAYERS)
    }
    return ConceptVector(name, engine.info.name, engine.info.fingerprint, D_MODEL, "mean_difference", layers)
