"""ResidualHooks: permanent hooks on the decoder blocks and their hook points, which call the function of the running step."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from steering.errors import InternalError
from steering.model.hook_points import HEADS, BlockOutput, kind_of, residual_of, with_residual
from steering.model.layout import Layout
from steering.shapes import Residual

ResidualFunction: TypeAlias = Callable[[int, Residual], Residual | None]
"""(point, what is there (token, width)) -> what to continue with, or None to keep it. The point of the residual after a layer is the
layer; width is d_model, except for concatenated heads."""


class StopForward(Exception):
    """Raised by a step's function to end a forward pass early; the code that opened the step catches it."""


class ResidualHooks:
    """Hooks on every decoder block and hook point for the life of the model, idle outside a step. One thread owns the model."""

    def __init__(self, layout: Layout) -> None:
        self._layers = range(layout.layer_count)
        self._active: dict[int, ResidualFunction] = {}
        self._points = frozenset({*self._layers, *layout.inner})
        self._in_step = False
        outputs = dict(enumerate(layout.blocks)) | {at: one for at, one in layout.inner.items() if kind_of(at) != HEADS}
        self._handles = [
            module.register_forward_hook(partial(self._on_output, point)) for point, module in outputs.items()
        ]
        self._handles += [
            module.register_forward_pre_hook(partial(self._on_input, point))
            for point, module in layout.inner.items()
            if kind_of(point) == HEADS
        ]

    @contextmanager
    def step(self, apply: ResidualFunction, points: Collection[int] | None = None) -> Iterator[None]:
        """Calls `apply` at these points (None: after every block) during one forward pass, with outputs [row, seq,
        width] as [row * seq, width]; results are cast back. Raises InternalError for a second step, or unknown
        points."""
        if self._in_step:
            raise InternalError("a steering step is already running on this model: steps cannot be nested")
        chosen = self._layers if points is None else points
        if unknown := sorted(set(chosen) - self._points):
            raise InternalError(f"points {unknown} do not exist: the model has layers 0 to {self._layers[-1]}")
        self._in_step = True
        try:
            for point in chosen:
                self._active[point] = apply
            yield
        finally:
            self._active.clear()
            self._in_step = False

    def remove(self) -> None:
        """Removes these hooks, and no others, from the model. May be called again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _on_output(self, point: int, _module: object, _arguments: object, output: BlockOutput) -> BlockOutput | None:
        changed = self._changed(point, residual_of(output))
        return None if changed is None else with_residual(output, changed)

    def _on_input(self, point: int, _module: object, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changed = self._changed(point, arguments[0])
        return None if changed is None else (changed, *arguments[1:])

    def _changed(self, point: int, stream: Residual) -> Residual | None:
        apply = self._active.get(point)
        if apply is None:
            return None
        flat = stream.reshape(-1, stream.shape[-1])
        changed = apply(point, flat)
        if changed is None:
            return None
        if changed.shape != flat.shape:  # broadcasting would be silent
            raise InternalError(
                f"point {point}: expected a residual of shape {tuple(flat.shape)}, got {tuple(changed.shape)}"
            )
        return changed.to(stream.dtype).reshape(stream.shape)
