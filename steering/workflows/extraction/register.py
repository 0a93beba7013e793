"""Vectors that are given rather than extracted: plain numbers, or others combined."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from steering.errors import InvalidRequest, VectorModelMismatch
from steering.model.info import ModelInfo
from steering.vectors import ConceptVector, LayerDirection, combine, unit


def registered(
    info: ModelInfo,
    name: str,
    directions: Mapping[str, Sequence[float]],
    scale: Mapping[str, float] | None = None,
    description: str = "",
    tags: tuple[str, ...] = (),
) -> ConceptVector:
    """Numbers by layer (d_model each) as a vector of the loaded model, not yet stored.

    Without a scale the length of what was given is the natural scale: strength 1 adds exactly these numbers. Raises
    VectorModelMismatch for another d_model or a layer the model does not have, InvalidRequest for zero or infinity.
    """
    stray = sorted(set(scale or ()) - set(directions))
    if stray:
        raise InvalidRequest(f"scale names layers {stray} that have no direction", param="scale")
    layers: dict[int, LayerDirection] = {}
    for key, values in directions.items():
        layer = int(key)
        if layer >= info.layer_count:
            raise VectorModelMismatch(
                f"layer {layer} does not exist; the model has layers 0 to {info.layer_count - 1}", param="directions"
            )
        if len(values) != info.d_model:
            raise VectorModelMismatch(
                f"layer {layer} has {len(values)} numbers; the model's d_model is {info.d_model}", param="directions"
            )
        direction, length = unit(torch.tensor(values, dtype=torch.float32), layer)
        layers[layer] = LayerDirection(direction, length if scale is None else scale.get(key, length))
    return ConceptVector(
        name=name,
        model=info.name,
        model_fingerprint=info.fingerprint,
        d_model=info.d_model,
        method="given",
        layers=dict(sorted(layers.items())),
        description=description,
        tags=tags,
    )


def combined(
    name: str,
    terms: Sequence[tuple[ConceptVector, float]],
    orthogonal_to: Sequence[ConceptVector] = (),
    description: str = "",
    tags: tuple[str, ...] = (),
) -> ConceptVector:
    """A weighted sum (see `vectors.combine`) with words of its own."""
    return replace(combine(name, terms, orthogonal_to), description=description, tags=tags)
