"""CapturedDecode: decode passes recorded as CUDA graphs and replayed, as launching kernels one by one is what they wait for."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol, TypeAlias
from weakref import WeakSet

import structlog
import torch
from cachetools import LRUCache

from steering.engine.transformers.batch import Batch
from steering.engine.transformers.memory.slot_cache import SlotCache
from steering.engine.transformers.steering.bank import SteeringBank
from steering.engine.transformers.steering.stacked import SteeringBatch
from steering.shapes import Int, Logits, Tensor

log = structlog.get_logger()
Compute: TypeAlias = Callable[[Int[Tensor, "row"], Int[Tensor, "row"]], Logits]
"""(token ids, positions) -> logits (row, vocab)."""
WORTH = 8
"""Passes of one shape before it is recorded: recording costs about as much as a pass that is not."""
MOST_KEPT = 32
"""Graphs of additive passes that are kept."""


class Recorder(Protocol):
    """Records what a device is asked to do."""

    def record(
        self, compute: Compute, token_ids: Int[Tensor, "row"], positions: Int[Tensor, "row"]
    ) -> Callable[[], Logits]:
        """What it returns does what `compute` asked of the device, with what all tensors hold then, and gives the same tensor
        every time; Python is not run again. To record does none of it. Raises RuntimeError for what cannot be recorded."""


class CudaGraphs:
    """torch.cuda.CUDAGraph on one device. Graphs that live at one time share a pool of memory, since one replays at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # one for all captures: what libraries keep for a stream, such as the workspace of cuBLAS, is made once
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool = torch.cuda.graph_pool_handle()

    def record(
        self, compute: Compute, token_ids: Int[Tensor, "row"], positions: Int[Tensor, "row"]
    ) -> Callable[[], Logits]:
        """See Recorder."""
        with torch.cuda.device(self._device):
            return self._captured(compute, token_ids, positions)

    def _captured(
        self, compute: Compute, token_ids: Int[Tensor, "row"], positions: Int[Tensor, "row"]
    ) -> Callable[[], Logits]:
        if not self._graphs:  # a pool whose last graph has gone takes no other
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # other threads may use the device meanwhile (a model that is read, say): what they do is none of this capture's
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                logits = compute(token_ids, positions)
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream behind as the current one
        self._graphs.add(graph)

        def replay() -> Logits:
            graph.replay()
            return logits

        return replay


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """token_ids, positions: where the graph reads them."""

    token_ids: Int[Tensor, "row"]
    positions: Int[Tensor, "row"]
    replay: Callable[[], Logits]


class _Graphs:
    """At most so many graphs by their shapes, and how often shapes without one were met. What is not kept any more, shapes
    included, is let go: a shape may be a whole stack of rows."""

    def __init__(self, most: int) -> None:
        self.captured: LRUCache[Hashable, _Captured] = LRUCache(most)
        self._met: LRUCache[Hashable, int] = LRUCache(most)

    def often(self, shape: Hashable) -> bool:
        """Whether it was met often enough to be recorded, this time included."""
        self._met[shape] = self._met.get(shape, 0) + 1
        return self._met[shape] > WORTH


class CapturedDecode:
    """One graph a shape: rows, how far attention looks back, and what steers.

    Rows that only add serve everybody at the same layers, since what is added lies in the bank. Other operations are those of
    one stack of rows, which lasts until a row joins or leaves; their graph is kept as long. Keys, values and the bank are
    read where they lie, so all graphs are dropped when these move.
    """

    def __init__(self, recorder: Recorder, cache: SlotCache, bank: SteeringBank) -> None:
        self._recorder, self._cache, self._bank = recorder, cache, bank
        self._refused = False
        self._forget()

    @property
    def kept(self) -> int:
        """Graphs there are now."""
        return len(self._adding.captured) + len(self._stacked.captured)

    def decode(self, batch: Batch, steering: SteeringBatch, compute: Compute) -> Logits | None:
        """Logits (row, vocab), valid until the next call; None where the caller is to compute the pass itself.

        compute: the pass, of nothing but tensors that stay where they are.
        """
        if self._refused or not self._cache.begun or not steering.steady:
            return None
        if self._home != self._where():
            self._forget()
        stacked = bool(steering.visits)
        shape = (batch.tokens, batch.length, steering if stacked else steering.openings)
        graphs = self._stacked if stacked else self._adding
        captured = graphs.captured.get(shape)
        if captured is None and graphs.often(shape):
            captured = self._capture(batch, compute)
            if captured is not None:
                graphs.captured[shape] = captured
        if captured is None:
            return None
        captured.token_ids.copy_(batch.token_ids)
        captured.positions.copy_(batch.positions)
        return captured.replay()

    def _where(self) -> tuple[int, int]:
        return self._cache.moves, self._bank.moves

    def _forget(self) -> None:
        self._home = self._where()
        self._adding, self._stacked = _Graphs(MOST_KEPT), _Graphs(1)

    def _capture(self, batch: Batch, compute: Compute) -> _Captured | None:
        token_ids, positions = batch.token_ids.clone(), batch.positions.clone()
        try:
            with torch.no_grad():
                replay = self._recorder.record(compute, token_ids, positions)
        except RuntimeError as error:
            self._refused = True
            log.warning("decode_not_captured", reason=str(error)[:300])
            return None
        log.info("decode_captured", rows=batch.tokens, length=batch.length)
        return _Captured(token_ids, positions, replay)
