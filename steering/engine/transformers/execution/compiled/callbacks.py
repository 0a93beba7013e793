"""Python callbacks of a compiled graph: steering that is not a plain addition, and prompt attention without a kernel.

A graph is compiled once for all batches. What differs between passes and is not a tensor happens in these callbacks.
"""

import threading
from collections.abc import Callable
from enum import IntEnum
from typing import TypeAlias

from steering.engine.transformers.execution.kernels.operations import define
from steering.model.hooks import ResidualFunction
from steering.shapes import Tensor

AttentionCallback: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, float, int | None, float | None], Tensor]
"""(layer, query, key, value, scaling, window, softcap), states (row, head, token, head_dim) -> like query."""
_pass = threading.local()


class Opcode(IntEnum):
    """What `steer` does after a block."""

    NONE = 0
    ADD = 1
    """Adds the bank's rows."""
    CALLBACK = 2
    """Calls `hook_callback`."""


class CallbackScope:
    """Sets the callbacks of the compiled pass that runs on this thread inside the `with` statement."""

    def __init__(self, on_layer: ResidualFunction, attend: AttentionCallback | None = None) -> None:
        self._on_layer, self._attend = on_layer, attend

    def __enter__(self) -> None:
        _pass.on_layer, _pass.attend = self._on_layer, self._attend

    def __exit__(self, *_: object) -> None:
        _pass.on_layer = _pass.attend = None


def _hook_callback(residual: Tensor, layer: int) -> None:
    """Steers residual (token, d_model) in place."""
    changed = _pass.on_layer(layer, residual)
    if changed is not None:
        residual.copy_(changed)


def _attention_callback(
    query: Tensor, key: Tensor, value: Tensor, layer: int, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """query (row, head, token, head_dim) -> (row, token, head, head_dim), contiguous like the traced shape."""
    attended: Tensor = _pass.attend(layer, query, key, value, scaling, window, softcap)
    return attended.transpose(1, 2).contiguous()


def _attention_shape(query: Tensor, _key: Tensor, value: Tensor, *_: object) -> Tensor:
    row, head, token, _head_dim = query.shape
    return query.new_empty(row, token, head, value.shape[-1])


define("hook_callback(Tensor(a!) residual, int layer) -> ()", lambda *_: None, _hook_callback)
attention_callback: Callable[..., Tensor] = define(
    "attention_callback(Tensor query, Tensor key, Tensor value, int layer, float scaling, int? window, float? softcap) "
    "-> Tensor",
    _attention_shape,
    _attention_callback,
)
