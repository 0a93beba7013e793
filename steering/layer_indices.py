"""Checks layer indices against a model: zero-based block indices, negative ones counted from the top."""

from collections.abc import Sequence
from typing import Literal

from steering.errors import InvalidRequest


def layer_index(
    layer: int, layer_count: int, *, param: str = "layers", error: type[InvalidRequest] = InvalidRequest
) -> int:
    """Returns the zero-based index of a layer. Raises `error` for a layer the model does not have."""
    resolved = layer + layer_count if layer < 0 else layer
    if not 0 <= resolved < layer_count:
        raise error(
            f"layer {layer} does not exist; the model has layers 0 to {layer_count - 1} (or -{layer_count} to -1)",
            param=param,
        )
    return resolved


def layer_indices(layers: Literal["all"] | Sequence[int], layer_count: int) -> tuple[int, ...]:
    """Returns zero-based indices, ascending, each once. Raises InvalidRequest for no layer or one the model does not have."""
    if layers == "all":
        return tuple(range(layer_count))
    if not layers:
        raise InvalidRequest(
            f"no layers given; name at least one of 0 to {layer_count - 1} (or -{layer_count} to -1)", param="layers"
        )
    return tuple(sorted({layer_index(layer, layer_count) for layer in layers}))
