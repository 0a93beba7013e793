"""Which layers a caller means: names and ranges become zero-based block indices of one model and one vector."""

from steering.errors import InvalidRequest, VectorModelMismatch
from steering.layer_indices import layer_index
from steering.model.info import ModelInfo
from steering.spec import LayerRange, Layers
from steering.vectors import ConceptVector


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
        # The end is exclusive, so it may be one past the last layer.
        start, end = (
            value if value == layer_count else layer_index(value, layer_count) for value in (layers.from_, layers.to)
        )
        wanted = list(range(start, end))
        if not wanted:
            raise InvalidRequest(f"the range of layers from {layers.from_} to {layers.to} is empty", param="layers")
    else:
        wanted = [layer_index(int(layer), layer_count) for layer in layers]
    missing = [layer for layer in wanted if layer not in vector.layers]
    if missing:
        raise InvalidRequest(
            f"vector {vector.id} has no direction at layers {missing}; it has {sorted(vector.layers)}", param="layers"
        )
    return tuple(sorted(set(wanted)))
