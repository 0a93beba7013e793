"""CompiledExecutor: runs passes through graphs compiled ahead of time, once they are ready, and eagerly before."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import structlog
import torch

from steering.engine.transformers.attention.masked import Scores
from steering.engine.transformers.execution.base import CompileRequest, Install, ModelParts, PreparedPass
from steering.engine.transformers.execution.compiled.callbacks import CallbackScope
from steering.engine.transformers.execution.compiled.compilation import Compilation
from steering.engine.transformers.execution.compiled.graphs import opcodes
from steering.engine.transformers.execution.compiled.packed_linears import PackedLinears
from steering.engine.transformers.execution.eager import EagerExecutor
from steering.engine.transformers.execution.kernels import operations
from steering.engine.transformers.execution.kernels.library import CompiledGraph
from steering.engine.transformers.execution.kernels.processor import (
    supports_kernels,
    supports_packed_linear,
    supports_slot_attention,
)
from steering.shapes import Logits, Tensor
from steering.threads import call_in_thread

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class _Graphs:
    """Everything that a compiled pass needs. weights: packed, inputs of both graphs; empty where they are constants."""

    decode: CompiledGraph
    prefill: CompiledGraph
    weights: list[Tensor]


class CompiledExecutor:
    """Implements PassExecutor on CPUs. All graphs and kernels are installed together between two passes, so that a pass is
    either eager or compiled and `name` says which."""

    def __init__(self, parts: ModelParts, eager: EagerExecutor, request: CompileRequest) -> None:
        self._parts, self._eager = parts, eager
        weight = next(parts.model.parameters())
        self._kernels = request.kernels and supports_kernels(weight.dtype, weight.device)
        packs = self._kernels and supports_packed_linear(weight.dtype, weight.device)
        self._linears = PackedLinears(parts.model) if packs else None
        self._compilation = Compilation(request, self._prepare)
        self._install: Install | None = None
        self._graphs: _Graphs | None = None
        self._span = torch.arange(0)

    @property
    def name(self) -> str:
        """See PassExecutor.name."""
        if self._graphs is None:
            return self._eager.name
        return "compiled+kernels" if self._kernels else "compiled"

    @property
    def compiling(self) -> bool:
        """Whether graphs may still become ready."""
        return self._compilation.running

    def start(self, install: Install) -> None:
        """See PassExecutor.start."""
        self._install = install
        self._compilation.start()

    def _prepare(self, graphs: Mapping[str, CompiledGraph]) -> None:
        """Packs the weights on the compilation's thread, then hands everything to the engine's thread."""
        weights = [] if self._linears is None else call_in_thread(self._linears.pack)
        ready = _Graphs(graphs["decode"], graphs["prefill"], weights)
        assert self._install is not None
        self._install(lambda: self._use(ready))

    def _use(self, graphs: _Graphs) -> None:
        self._graphs = graphs
        if self._kernels and self._eager.attention is not None:
            self._eager.attention.segment_kernel = _segment_attention
        if self._linears is not None:
            self._linears.attach(graphs.weights)
        log.info("executor_changed", executor=self.name)

    def run(self, prepared: PreparedPass) -> Logits | None:
        """See PassExecutor.run."""
        if self._graphs is None or not self._worthwhile(prepared.stop_after):
            return self._eager.run(prepared)
        prepared = replace(prepared, stop_after=None)  # a graph always runs to its end
        return self._decode(prepared) if prepared.batch.decode else self._prefill(prepared)

    def _worthwhile(self, stop_after: int | None) -> bool:
        """Whether a graph is faster than an eager pass that stops early: it computes all layers, at half the cost of each."""
        return stop_after is None or 2 * (stop_after + 1) > self._parts.layout.layer_count

    def _prefill(self, prepared: PreparedPass) -> Logits:
        batch, attention = prepared.batch, self._eager.attention
        assert attention is not None
        arguments = [batch.token_ids, batch.positions, prepared.keep, batch.table(), batch.loan_table()]
        self._parts.cache.batch = batch
        try:
            with CallbackScope(prepared.on_layer, attention.write_and_attend):
                return self._call("prefill", arguments, prepared)
        finally:
            self._parts.cache.batch = None

    def _decode(self, prepared: PreparedPass) -> Logits:
        batch = prepared.batch
        if len(self._span) < batch.length:
            self._span = torch.arange(2 * batch.length)
        with CallbackScope(prepared.on_layer):
            return self._call("decode", [batch.token_ids, batch.positions, self._span[: batch.length]], prepared)

    def _call(self, kind: str, arguments: list[Tensor], prepared: PreparedPass) -> Logits:
        """arguments: inputs of the graph before the bank."""
        assert self._graphs is not None
        layers, steering = self._parts.layout.layer_count, prepared.steering
        callbacks = steering.call_layers | prepared.readers.layers
        codes = opcodes(layers, callbacks, steering.static_layers - callbacks)
        bank = [self._parts.bank.static_adds, steering.row_indices, steering.static_sums, codes]
        cache = self._parts.cache
        states = [layer.keys for layer in cache.layers] + [layer.values for layer in cache.layers]
        graph = self._graphs.decode if kind == "decode" else self._graphs.prefill
        with torch.no_grad():
            (logits,) = graph([*arguments, *bank, *states, *self._graphs.weights])
        return logits

    def argmax(self, logits: Logits) -> list[tuple[int, bool]] | None:
        """See PassExecutor.argmax."""
        if self._graphs is None or not self._kernels or logits.dtype != torch.bfloat16:
            return None
        return [(token, bool(finite)) for token, finite in operations.argmax(logits).tolist()]

    def close(self) -> None:
        """See PassExecutor.close."""
        self._compilation.close()
        if self._linears is not None:
            self._linears.close()
        self._eager.close()


def _segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    states: tuple[Tensor, Tensor],
    tables: tuple[Tensor, Tensor],
    scores: Scores,
) -> Tensor | None:
    """Runs eager prefill attention by our kernel; None where it does not support these heads."""
    if not supports_slot_attention(query, value):
        return None
    return operations.prefill_attention(query, key, value, *states, *tables, *scores).transpose(1, 2)
