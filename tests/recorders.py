"""Recorders that need no CUDA device: one that replays as a graph does, and one that fails."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from steering.engine.captured_decode import Compute
from steering.shapes import Logits, Tensor


class Undoing(TorchDispatchMode):
    """Keeps what operations write over, to put it back."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {**dict(zip((one.name for one in func._schema.arguments), args, strict=False)), **(kwargs or {})}
        for argument in func._schema.arguments:
            if (
                argument.alias_info is not None
                and argument.alias_info.is_write
                and given.get(argument.name) is not None
            ):
                self._before.append((given[argument.name], given[argument.name].clone()))
        return func(*args, **(kwargs or {}))

    def undo(self) -> None:
        for tensor, before in reversed(self._before):
            tensor.copy_(before)


class TracedRecorder:
    """Records the operations on tensors, as a CUDA graph does: nothing is computed by recording, at a replay no line of Python
    of the pass is run again, tensors are read and written where they lay, and a number's value cannot be asked for.

    (What a CUDA graph cannot do beyond that, it does not show: a copy to or from another device, a stream of its own.)
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, compute: Compute, token_ids: Tensor, positions: Tensor) -> Callable[[], Logits]:
        """See Recorder."""
        undoing = Undoing()
        with undoing:
            graph = make_fx(compute)(token_ids, positions)
        undoing.undo()
        self.recorded += 1
        logits: list[Logits] = []

        def replay() -> Logits:
            self.replayed += 1
            with torch.no_grad():
                found = graph(token_ids, positions)
            logits[:] = [logits[0].copy_(found) if logits else found.clone()]
            return logits[0]

        return replay


class RefusingRecorder:
    """Cannot record what it is given."""

    def __init__(self) -> None:
        self.asked = 0

    def record(self, compute: Compute, token_ids: Tensor, positions: Tensor) -> Callable[[], Logits]:
        """Raises RuntimeError, as CUDA does at the first thing that cannot be captured."""
        self.asked += 1
        raise RuntimeError("operation not permitted when stream is capturing")
