"""Resolves layers and given directions for one model: names and ranges become zero-based block indices."""

from collections.abc import Mapping, Sequence

import torch

from steering.errors import InvalidRequest, VectorModelMismatch
from steering.layer_indices import layer_index
from steering.model.info import ModelInfo
from steering.spec import LayerRange, Layers
from steering.spec_base import InlineVector
from steering.vectors import ConceptVector, LayerDirection, unit


def check_model(vector: ConceptVector, info: ModelInfo) -> None:
    """Raises VectorModelMismatch unless the vector was made for the loaded model."""
    if vector.d_model != info.d_model:
        raise VectorModelMismatch(
            f"vector {vector.id} has d_model {vector.d_model}, the loaded model has {info.d_model}", param="vector"
        )
    if vector.model_fingerprint != info.fingerprint:
        raise VectorModelMismatch(
            f"vector {vector.id} was made for model {vector.model!r}, loaded is {info.name!r}", param="vector"
        )


def resolve_layers(layers: Layers, vector: ConceptVector, layer_count: int) -> tuple[int, ...]:
    """Zero-based block indices, ascending. Raises InvalidRequest for a layer the model or the vector does not have."""
    if layers == "recommended":
        wanted = list(vector.recommended_layers())
    elif layers == "all":
        wanted = list(vector.layers)
    elif isinstance(layers, LayerRange):
        ends = layers.from_, layers.to  # the second is exclusive, so it may be one past the last layer
        wanted = list(range(*(end if end == layer_count else layer_index(end, layer_count) for end in ends)))
        if not wanted:
            raise InvalidRequest(f"the range of layers from {layers.from_} to {layers.to} is empty", param="layers")
    else:
        wanted = [layer_index(int(layer), layer_count) for layer in layers]
    if missing := [layer for layer in wanted if layer not in vector.layers]:
        raise InvalidRequest(
            f"vector {vector.id} has no direction at layers {missing}; it has {sorted(vector.layers)}", param="layers"
        )
    return tuple(sorted(set(wanted)))


def given_layers(
    info: ModelInfo, directions: Mapping[str, Sequence[float]], scale: Mapping[str, float] | None
) -> dict[int, LayerDirection]:
    """Returns unit directions by layer from numbers by layer (d_model each).

    Without a scale the norm of the given numbers is the natural scale: strength 1 adds exactly these numbers. Raises
    VectorModelMismatch for another d_model or a layer the model does not have, InvalidRequest for zero or infinity.
    """
    if stray := sorted(set(scale or ()) - set(directions)):
        raise InvalidRequest(f"scale names layers {stray} that have no direction", param="scale")
    layers: dict[int, LayerDirection] = {}
    for key, values in directions.items():
        layer = layer_index(int(key), info.layer_count, param="directions", error=VectorModelMismatch)
        if len(values) != info.d_model:
            raise VectorModelMismatch(
                f"layer {layer} has {len(values)} numbers; the model's d_model is {info.d_model}", param="directions"
            )
        direction, norm = unit(torch.tensor(values, dtype=torch.float32), layer)
        layers[layer] = LayerDirection(direction, scale=norm if scale is None else scale.get(key, norm))
    return dict(sorted(layers.items()))


def inline_vector(name: InlineVector, info: ModelInfo) -> ConceptVector:
    """Builds the vector of a direction given in a request. Raises what `given_layers` raises."""
    return ConceptVector(
        name="inline",
        model=info.name,
        model_fingerprint=info.fingerprint,
        d_model=info.d_model,
        method="given",
        layers=given_layers(info, name.directions, name.scale),
        sha256=name.sha256,
        inline=True,
    )
