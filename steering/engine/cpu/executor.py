"""CompiledExecutor: runs passes through graphs compiled ahead of time, once they are ready, and eagerly before."""

from dataclasses import replace

import structlog
import torch

from steering.engine.cpu.callbacks import CallbackScope
from steering.engine.cpu.compilation import Compilation
from steering.engine.cpu.graphs import SteeringInputs, tasks
from steering.engine.cpu.kernels import operations
from steering.engine.cpu.kernels.library import CompiledGraph
from steering.engine.cpu.kernels.processor import supports_kernels
from steering.engine.cpu.packed_linears import PackedLinears
from steering.engine.transformers.attention import Scores
from steering.engine.transformers.batch import Batch
from steering.engine.transformers.eager import EagerExecutor
from steering.engine.transformers.executor import CompileRequest, Install, ModelParts, PreparedPass
from steering.engine.transformers.memory.paged_cache import PairedLayout
from steering.shapes import Logits, Tensor
from steering.threads import call_in_thread

log = structlog.get_logger()
GRAPH_COST, PACKED_GRAPH_COST = 0.5, 0.75
"""Time of a layer in a graph relative to an eager pass; PACKED: where both use the packed linear layers. With those, 24 texts of
70 tokens read at layer 18 of 30 take 0.8 s eagerly and 1.0 s by the graph; at layer 22 both take 1.1 s (two cores of an AMD EPYC)."""


class CompiledExecutor(EagerExecutor):
    """Implements PassExecutor on CPUs, by eager passes until it is compiled. The graph and the kernels are installed together
    between two passes, so that a pass is either eager or compiled and `name` says which."""

    def __init__(self, parts: ModelParts, request: CompileRequest) -> None:
        super().__init__(parts)
        weight = next(parts.model.parameters())
        self._kernels = request.kernels and supports_kernels(weight.dtype, weight.device)
        self._attention_kernel = isinstance(parts.cache.layout, PairedLayout)
        self._linears = PackedLinears.of(parts.model, kernels=request.kernels)
        self.compilation = Compilation(request, self._prepare)
        self._install: Install | None = None
        self._graph: CompiledGraph | None = None
        self._weights: list[Tensor] = []
        """Packed, inputs of the graph; empty where they are constants."""

    def start(self, install: Install) -> None:
        """See PassExecutor.start."""
        self._install = install
        self.compilation.start()

    def _prepare(self, graph: CompiledGraph) -> None:
        """Packs the weights on the compilation's thread, then hands everything to the engine's thread."""
        weights = [] if self._linears is None else call_in_thread(self._linears.pack)
        assert self._install is not None
        self._install(lambda: self._use(graph, weights))

    def _use(self, graph: CompiledGraph, weights: list[Tensor]) -> None:
        self._graph, self._weights = graph, weights
        self.name = "compiled+kernels" if self._kernels else "compiled"
        self.batch_invariant = self._attention_kernel and self._linears is not None
        self.sampling_kernel = operations.sample if self._kernels else None
        if self._attention_kernel and self.attention is not None:
            self.attention.kernel = _attention_kernel
            self._parts.cache.writes = False
        if self._linears is not None:
            self._linears.attach(weights)
        log.info("executor_changed", executor=self.name)

    def run(self, prepared: PreparedPass) -> Logits | None:
        """See PassExecutor.run."""
        if self._graph is None or not self._worthwhile(prepared.stop_after):
            return super().run(prepared)
        return self._compiled(self._graph, replace(prepared, stop_after=None))  # a graph always runs to its end

    def _worthwhile(self, stop_after: int | None) -> bool:
        """Whether a graph is faster than an eager pass that stops early: it computes all layers, each at the share
        GRAPH_COST of the eager cost."""
        share = GRAPH_COST if self._linears is None else PACKED_GRAPH_COST
        return stop_after is None or stop_after + 1 > share * self._parts.layout.layer_count

    def _compiled(self, run: CompiledGraph, prepared: PreparedPass) -> Logits:
        batch, attention = prepared.batch, self.attention
        assert attention is not None
        cache = self._parts.cache
        tokens = [batch.token_ids, batch.positions, prepared.keep, batch.segment_table, batch.block_table]
        inputs = [*tokens, *self._steering(prepared), *cache.keys, *cache.values, *self._weights]
        cache.batch = batch
        try:
            with torch.no_grad(), CallbackScope(prepared.decide, prepared.read, attention.write_and_attend):
                (logits,) = run(inputs)
        finally:
            cache.batch = None
        return logits

    def _steering(self, prepared: PreparedPass) -> SteeringInputs:
        """Returns what `steer` gets from `vectors` to `tasks`."""
        injection, slots = prepared.injection, self._parts.slots
        read = injection.controllers.layers | prepared.readers.layers
        layers, decide = self._parts.layout.layer_count, injection.conditions.layers
        noted, note = injection.noted()
        return (
            *(slots.vectors, slots.numbers, slots.codes, slots.rows),
            *(injection.slots_of_tokens, injection.weights, injection.left, *noted),
            tasks(layers, decide, injection.edited, read, note),
        )

    def close(self) -> None:
        """See PassExecutor.close."""
        self.compilation.close()
        if self._linears is not None:
            self._linears.close()
        super().close()


def _attention_kernel(
    query: Tensor, key: Tensor, value: Tensor, states: tuple[Tensor, Tensor], batch: Batch, scores: Scores
) -> Tensor:
    """Runs the attention of an eager pass by our kernel."""
    tables = batch.segment_table, batch.block_table
    return operations.paged_attention(query, key, value, *states, *tables, *scores).transpose(1, 2)
