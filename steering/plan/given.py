"""Builds directions of the loaded model from given numbers: those of a registration, and those inside a request."""

from collections.abc import Mapping, Sequence

import torch

from steering.errors import InvalidRequest, VectorModelMismatch
from steering.layer_indices import layer_index
from steering.model.info import ModelInfo
from steering.spec_base import InlineVector
from steering.vectors import ConceptVector, LayerDirection, unit


def given_layers(
    info: ModelInfo, directions: Mapping[str, Sequence[float]], scale: Mapping[str, float] | None
) -> dict[int, LayerDirection]:
    """Returns unit directions by layer from numbers by layer (d_model each).

    Without a scale the norm of the given numbers is the natural scale: strength 1 adds exactly these numbers. Raises
    VectorModelMismatch for another d_model or a layer the model does not have, InvalidRequest for zero or infinity.
    """
    stray = sorted(set(scale or ()) - set(directions))
    if stray:
        raise InvalidRequest(f"scale names layers {stray} that have no direction", param="scale")
    layers: dict[int, LayerDirection] = {}
    for key, values in directions.items():
        layer = layer_index(int(key), info.layer_count, param="directions", error=VectorModelMismatch)
        if len(values) != info.d_model:
            raise VectorModelMismatch(
                f"layer {layer} has {len(values)} numbers; the model's d_model is {info.d_model}", param="directions"
            )
        direction, norm = unit(torch.tensor(values, dtype=torch.float32), layer)
        layers[layer] = LayerDirection(direction, norm if scale is None else scale.get(key, norm))
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
