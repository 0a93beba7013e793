"""Makes vectors: by any extraction method or by training, from given numbers, or from other vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from steering.cards import Recommended
from steering.engine.api import Engine
from steering.engine.capabilities import can_fit, fitting_of
from steering.errors import InvalidRequest
from steering.extraction import METHODS
from steering.extraction.card import strengths_to_try
from steering.model.info import ModelInfo
from steering.plan.layers import given_layers
from steering.registry import unknown_name
from steering.vectors import ConceptVector, combine
from steering.workflows.extract import ExtractionRequest, extract
from steering.workflows.generate import Progress, ignore_progress
from steering.workflows.train import TRAINED, TrainingSettings, check_pairs, train

METHOD_NAMES = (*METHODS, TRAINED)
"""Every value that `method` accepts."""


def methods_of(engine: Engine) -> tuple[str, ...]:
    """Returns the names that `method` may have with this engine."""
    return METHOD_NAMES if can_fit(engine) else tuple(METHODS)


def check_method(engine: Engine, method: str, training: TrainingSettings | None = None, *, paired: bool = True) -> None:
    """Raises InvalidRequest for an unknown method, training settings for another method, or unpaired texts for training;
    UnsupportedParameter for training with an engine that cannot fit directions."""
    if method not in METHOD_NAMES:
        raise InvalidRequest(unknown_name("method", method, METHOD_NAMES, "method"), param="method")
    if method == TRAINED:
        fitting_of(engine)
        check_pairs(paired)
    elif training is not None:
        raise InvalidRequest(f"'training' belongs to method {TRAINED!r}, not to {method!r}", param="training")


async def make_vector(
    engine: Engine,
    request: ExtractionRequest,
    *,
    training: TrainingSettings | None = None,
    progress: Progress = ignore_progress,
) -> ConceptVector:
    """Extracts or trains a vector, depending on the method; see `extract` and `train`."""
    check_method(engine, request.method, training)
    if request.method == TRAINED:
        return await train(engine, request, training, progress=progress)
    return await extract(engine, request, progress=progress)


def registered(
    info: ModelInfo,
    name: str,
    directions: Mapping[str, Sequence[float]],
    scale: Mapping[str, float] | None = None,
    description: str = "",
    tags: tuple[str, ...] = (),
) -> ConceptVector:
    """Builds a vector of the loaded model from numbers by layer (d_model each), not yet stored.

    Raises what `given_layers` raises.
    """
    vector = ConceptVector(
        name=name,
        model=info.name,
        model_fingerprint=info.fingerprint,
        d_model=info.d_model,
        method="given",
        layers=given_layers(info, directions, scale),
        description=description,
        tags=tags,
    )
    return with_recommendation(vector, info)


def combined(
    info: ModelInfo,
    name: str,
    terms: Sequence[tuple[ConceptVector, float]],
    orthogonal_to: Sequence[ConceptVector] = (),
    description: str = "",
    tags: tuple[str, ...] = (),
) -> ConceptVector:
    """Builds a weighted sum of vectors (see `vectors.combine`) with its own description and tags."""
    vector = replace(combine(name, terms, orthogonal_to), description=description, tags=tags)
    return with_recommendation(vector, info)


def with_recommendation(vector: ConceptVector, info: ModelInfo) -> ConceptVector:
    """Adds strengths to try from the vector's own scale and the model's typical norms, where it has no recommendation."""
    if vector.recommended is not None:
        return vector
    scales, layers = {layer: entry.scale for layer, entry in vector.layers.items()}, vector.recommended_layers()
    strengths = strengths_to_try(layers, scales, info.typical_norms)
    return replace(vector, recommended=Recommended(layers, strengths_to_try=strengths, basis="norms"))
