"""ResidualHooks: one permanent hook on each decoder block, which calls the function of the running step."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

from steering.errors import InternalError
from steering.model.layout import BlockOutput, Layout, residual_of, with_residual
from steering.shapes import Residual

ResidualFunction: TypeAlias = Callable[[int, Residual], Residual | None]
"""(layer, residual (token, d_model)) -> the residual to continue with, or None to keep it."""


class StopForward(Exception):
    """Raised by a step's function to end a forward pass early; the code that opened the step catches it."""


class ResidualHooks:
    """Hooks on every decoder block for the life of the model, idle outside a step. One thread owns the model."""

    def __init__(self, layout: Layout) -> None:
        self._active: list[ResidualFunction | None] = [None] * layout.layer_count
        self._in_step = False
        self._handles = [
            block.register_forward_hook(partial(self._hook, layer)) for layer, block in enumerate(layout.blocks)
        ]

    @contextmanager
    def step(self, apply: ResidualFunction, layers: Collection[int] | None = None) -> Iterator[None]:
        """Calls `apply` after the blocks in `layers` (None: after every block) during one forward pass.

        A [row, seq, d_model] output is passed as [row * seq, d_model]; the result is cast to the dtype of the output.
        Raises InternalError when a step is already running, or for layers the model does not have.
        """
        if self._in_step:
            raise InternalError("a steering step is already running on this model: steps cannot be nested")
        chosen = range(len(self._active)) if layers is None else layers
        unknown = sorted(layer for layer in chosen if not 0 <= layer < len(self._active))
        if unknown:
            raise InternalError(f"layers {unknown} do not exist: the model has layers 0 to {len(self._active) - 1}")
        self._in_step = True
        try:
            for layer in chosen:
                self._active[layer] = apply
            yield
        finally:
            self._active[:] = [None] * len(self._active)
            self._in_step = False

    def remove(self) -> None:
        """Removes these hooks, and no others, from the model. May be called again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, layer: int, _block: object, _arguments: object, output: BlockOutput) -> BlockOutput | None:
        apply = self._active[layer]
        if apply is None:
            return None
        residual = residual_of(output)
        flat = residual.reshape(-1, residual.shape[-1])
        changed = apply(layer, flat)
        if changed is None:
            return None
        if changed.shape != flat.shape:  # broadcasting would be silent
            raise InternalError(
                f"layer {layer}: expected a residual of shape {tuple(flat.shape)}, got {tuple(changed.shape)}"
            )
        return with_residual(output, changed.to(residual.dtype).reshape(residual.shape))
