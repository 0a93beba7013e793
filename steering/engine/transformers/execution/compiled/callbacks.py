"""What a compiled graph asks of Python while it runs: to steer the residual after a block, and to attend within prompts.

A graph is made once for every batch there will be. What differs from pass to pass, and is no tensor, happens here.
"""

import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeAlias

import torch

from steering.shapes import Residual, Tensor

HookCallback: TypeAlias = Callable[[int, Residual], Residual | None]
"""(layer, residual (token, d_model)) -> the residual to go on with, or None to leave it as it is."""
Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, float, int | None, float | None], Tensor]
"""(layer, query, key, value, scaling, window, softcap), all (row, head, token, head_dim) -> as query."""
_pass = threading.local()


class Task(IntEnum):
    """What `steer` does after a block."""

    NOTHING = 0
    ADD = 1
    """Adds the bank's rows."""
    VISIT = 2
    """Calls `visit`."""


class answering:  # noqa: N801 - reads as the statement it is: `with answering(visitor):`
    """For the length of one compiled pass on this thread, its graph's calls come to these functions."""

    def __init__(self, visitor: HookCallback, attend: Attend | None = None) -> None:
        self._visitor, self._attend = visitor, attend

    def __enter__(self) -> None:
        _pass.visitor, _pass.attend = self._visitor, self._attend

    def __exit__(self, *_: object) -> None:
        _pass.visitor = _pass.attend = None


def _visit(residual: Tensor, layer: int) -> None:
    """residual (token, d_model), steered in place."""
    changed = _pass.visitor(layer, residual)
    if changed is not None:
        residual.copy_(changed)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, layer: int, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """query (row, head, token, head_dim) -> (row, token, head, head_dim), contiguous as the graph was promised."""
    attended: Tensor = _pass.attend(layer, query, key, value, scaling, window, softcap)
    return attended.transpose(1, 2).contiguous()


def _attended_shape(query: Tensor, _key: Tensor, value: Tensor, *_: object) -> Tensor:
    row, head, token, _head_dim = query.shape
    return query.new_empty(row, token, head, value.shape[-1])


_library: Any = torch.library.Library("steering", "DEF")  # type: ignore[no-untyped-call]
_library.define("visit(Tensor(a!) residual, int layer) -> ()")
_library.define(
    "attend(Tensor query, Tensor key, Tensor value, int layer, float scaling, int? window, float? softcap) -> Tensor"
)
# registered by hand: `torch.library.custom_op` costs ten times as much a call, and a pass makes one a layer
_library.impl("visit", _visit, "CompositeExplicitAutograd")
_library.impl("attend", _attend, "CompositeExplicitAutograd")
torch.library.register_fake("steering::visit", lambda *_: None, lib=_library)
torch.library.register_fake("steering::attend", _attended_shape, lib=_library)
attend: Callable[..., Tensor] = torch.ops.steering.attend
