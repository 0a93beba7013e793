"""Recorders that need no CUDA device: one that replays as a graph does, and one that fails."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from steering.engine.transformers.execution.captured_decode import Compute
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


class Lying(NamedTuple):
    """Where a tensor lies, without keeping it."""

    storage: StorageWeakRef
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> "Lying":
        storage = StorageWeakRef(tensor.untyped_storage())
        return cls(storage, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def tensor(self) -> Tensor:
        """Raises AssertionError when nobody has kept its memory."""
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        assert storage is not None, "the graph reads or writes memory that nobody has kept"
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.shape, self.stride)


class TracedRecorder:
    """Records the operations on tensors, as a CUDA graph does: nothing is computed by recording; at a replay no line of Python
    of the pass is run again; tensors are read and written where they lay, which keeps none of them; and a number's value
    cannot be asked for.

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
        names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
        lying = {name: Lying.of(getattr(graph, name)) for name in names}
        for name in lying:
            delattr(graph, name)
        logits: list[Logits] = []

        def replay() -> Logits:
            self.replayed += 1
            for name, where in lying.items():
                setattr(graph, name, where.tensor())
            with torch.no_grad():
                found = graph(token_ids, positions)
            for name in lying:
                delattr(graph, name)
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
