"""Hook points: where in a decoder block steering acts and reads. A layer and a hook point are one number, the `point` of plans and passes.

The point of the residual after block L is L. So code that knows only layers speaks of the residual.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias

from steering.errors import UnsupportedParameter
from steering.model.info import ModelInfo
from steering.shapes import Float, Tensor
from steering.spec import Hook

HOOKS: tuple[Hook, ...] = ("residual", "attention", "mlp")
HEADS = len(HOOKS)
"""The kind of a point that is not named by itself: the concatenated heads, which enter attention's output projection."""
KINDS = len(HOOKS) + 1
BlockOutput: TypeAlias = Tensor | tuple[Any, ...]
"""What a decoder block returns: the residual [row, seq, d_model] itself, or a tuple that starts with it."""
_STRIDE = 1024
_ORDER = (3, 1, 2, 0)
"""Of the kinds in a block: heads, attention, mlp, residual."""


def point_of(layer: int, kind: int) -> int:
    """Returns the point of a layer. kind: an index of HOOKS, or HEADS."""
    return kind * _STRIDE + layer


def layer_of(point: int) -> int:
    """Returns the layer of a point."""
    return point % _STRIDE


def kind_of(point: int) -> int:
    """Returns the index of its hook point in HOOKS, or HEADS."""
    return point // _STRIDE


def in_order(point: int) -> tuple[int, int]:
    """Returns the key that sorts points as a pass computes them."""
    return layer_of(point), _ORDER[kind_of(point)]


def only_residual(points: Iterable[int]) -> bool:
    """Whether all of the points are residuals after blocks."""
    return all(point < _STRIDE for point in points)


def points_of(layers: Iterable[int], info: ModelInfo, hook: Hook, head: int | None = None) -> tuple[int, ...]:
    """Returns the points of layers, in their order. head: one of the heads, before attention's output projection.
    Raises UnsupportedParameter for a hook point, or a head, that the loaded model does not have."""
    if hook not in info.hooks:
        raise UnsupportedParameter(
            f"{info.architecture} has no hook point {hook!r} on this engine; it has {', '.join(map(repr, info.hooks))}",
            param="hook",
        )
    if head is None:
        return tuple(point_of(layer, HOOKS.index(hook)) for layer in layers)
    if hook != "attention" or head >= info.head_count:
        many = f"heads 0 to {info.head_count - 1}" if info.head_count else "no hook point for single heads"
        raise UnsupportedParameter(
            f"head {head} needs hook 'attention' and a head of the model: {info.architecture} has {many}, got hook {hook!r}",
            param="head",
        )
    return tuple(point_of(layer, HEADS) for layer in layers)


def residual_of(output: BlockOutput) -> Float[Tensor, "row seq d_model"]:
    """Returns the residual in a block's output, in either of its two forms."""
    return output[0] if isinstance(output, tuple) else output


def with_residual(output: BlockOutput, residual: Float[Tensor, "row seq d_model"]) -> BlockOutput:
    """Returns the output with another residual and all else unchanged."""
    return (residual, *output[1:]) if isinstance(output, tuple) else residual
