"""Which layers a caller means: names and ranges become zero-based block indices of one model and one vector."""

from steering.errors import InvalidRequest, VectorModelMismatch
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
        start, end = (_positive(value, layer_count, inclusive=True) for value in (layers.from_, layers.to))
        wanted = list(range(start, end))
        if not wanted:
            raise InvalidRequest(f"layers from {layers.from_} to {layers.to} are none", param="layers")
    else:
        wanted = [_positive(int(layer), layer_count) for layer in layers]
    missing = [layer for layer in wanted if layer not in vector.layers]
    if missing:
        raise InvalidRequest(
            f"vector {vector.id} has no direction at layers {missing}; it has {sorted(vector.layers)}", param="layers"
        )
    return tuple(sorted(set(wanted)))


def _positive(layer: int, layer_count: int, *, inclusive: bool = False) -> int:
    resolved = layer + layer_count if layer < 0 else layer
    if not 0 <= resolved < layer_count + (1 if inclusive else 0):
        raise InvalidRequest(
            f"layer {layer} does not exist; the model has layers 0 to {layer_count - 1}", param="layers"
        )
    return resolved
