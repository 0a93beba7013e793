"""Python callbacks of a compiled graph: what is decided or read between layers, and prompt attention without a kernel.

A graph is compiled once for all batches. What differs between passes and is not a tensor happens in these callbacks.
"""

import threading
from collections.abc import Callable
from enum import IntFlag
from typing import TypeAlias

from steering.engine.cpu.kernels.operations import define
from steering.shapes import Residual, Tensor

ReadResidual: TypeAlias = Callable[[int, Residual], None]
"""(layer, residual (token, d_model) in the model's dtype or float32): reads it, and does not change it."""
AttentionCallback: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, float, int | None, float | None], Tensor]
"""(layer, query, key, value, scaling, window, softcap), states (row, head, token, head_dim) -> like query."""
_pass = threading.local()


class Task(IntFlag):
    """What `steer` does after a block, in this order."""

    DECIDE = 1
    """Calls the callback of conditions, which set the weights of edits."""
    EDIT = 2
    """Applies the edits of each token's request."""
    READ = 4
    """Calls the callback of what reads the result: controllers and readouts."""


class CallbackScope:
    """Sets the callbacks of the compiled pass that runs on this thread inside the `with` statement."""

    def __init__(self, decide: ReadResidual, read: ReadResidual, attend: AttentionCallback | None = None) -> None:
        self._decide, self._read, self._attend = decide, read, attend

    def __enter__(self) -> None:
        _pass.decide, _pass.read, _pass.attend = self._decide, self._read, self._attend

    def __exit__(self, *_: object) -> None:
        _pass.decide = _pass.read = _pass.attend = None


def _residual_callback(residual: Tensor, layer: int, read: bool) -> None:
    """read: whether the residual has left the layer, and does not arrive there."""
    (_pass.read if read else _pass.decide)(layer, residual)


def _attention_callback(
    query: Tensor, key: Tensor, value: Tensor, layer: int, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """query (row, head, token, head_dim) -> (row, token, head, head_dim), contiguous like the traced shape."""
    attended: Tensor = _pass.attend(layer, query, key, value, scaling, window, softcap)
    return attended.transpose(1, 2).contiguous()


def _attention_shape(query: Tensor, _key: Tensor, value: Tensor, *_: object) -> Tensor:
    row, head, token, _head_dim = query.shape
    return query.new_empty(row, token, head, value.shape[-1])


define("residual_callback(Tensor residual, int layer, bool read) -> ()", lambda *_: None, _residual_callback)
attention_callback: Callable[..., Tensor] = define(
    "attention_callback(Tensor query, Tensor key, Tensor value, int layer, float scaling, int? window, float? softcap) "
    "-> Tensor",
    _attention_shape,
    _attention_callback,
)
