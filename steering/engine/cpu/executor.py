"""CompiledExecutor: runs passes through graphs compiled ahead of time, once they are ready, and eagerly before."""

from dataclasses import replace

import structlog
import torch

from steering.engine.cpu.compilation import Compilation
from steering.engine.cpu.graphs import CallbackScope, PackedLinears, tasks
from steering.engine.cpu.kernel_choice import KernelChoice, kernel_choice
from steering.engine.cpu.kernels import operations
from steering.engine.cpu.kernels.library import CompiledGraph
from steering.engine.transformers.attention import Scores
from steering.engine.transformers.executor import CompileRequest, Install, ModelParts, PassExecutor, PreparedPass
from steering.engine.transformers.paged_cache import PairedLayout
from steering.engine.transformers.request import Batch
from steering.model.device import takes_kernels
from steering.model.hook_points import only_residual
from steering.shapes import Logits, Tensor
from steering.threads import call_in_thread

log = structlog.get_logger()
GRAPH_COST, PACKED_GRAPH_COST = 0.5, 0.75
"""Time of a layer in a graph relative to an eager pass; PACKED: where both use the packed linear layers."""


class CompiledExecutor(PassExecutor):
    """Runs passes on a CPU, eagerly until the graph is compiled. The kernels are installed between two passes once they are built, which
    takes a minute at the first start, and the graph later; `name` says which of them a pass has."""

    def __init__(self, parts: ModelParts, request: CompileRequest) -> None:
        super().__init__(parts)
        weight = next(parts.model.parameters())
        self._kernels = request.kernels and takes_kernels(weight.dtype, weight.device)
        self._request_weights = request.weights
        self._attention_kernel = isinstance(parts.cache.layout, PairedLayout)
        self._linears = PackedLinears.of(
            parts.model, kernels=request.kernels, weights=request.weights, folder=request.folder
        )
        self.compilation = Compilation(request, self._prepare_kernels, self._prepare_graph)
        self._install: Install | None = None
        self._graph: CompiledGraph | None = None
        self._weights: list[Tensor] = []  # packed, inputs of the graph; empty where they are constants

    def start(self, install: Install) -> None:
        """See PassExecutor.start."""
        self._install = install
        self.compilation.start()

    def _prepare_kernels(self) -> None:
        """Packs the weights on the compilation's thread, then hands the kernels to the engine's thread."""
        assert self._install is not None
        if self._kernels:
            linears = self._linears
            weights = [] if linears is None else call_in_thread(linears.pack)
            choice = kernel_choice(self.compilation.library, weights, [] if linears is None else linears.widths)
            self._install(lambda: self._use_kernels(weights, choice))

    def _use_kernels(self, weights: list[Tensor], choice: KernelChoice) -> None:
        self._weights, self.kernels = weights, str(choice)
        self.sampling_kernel = operations.sample
        if self._attention_kernel and self.attention is not None:
            self.attention.kernel = _attention_kernel
            self._parts.cache.writes = False
        if self._linears is not None:
            self._linears.attach(weights)
            self.weight_bytes = self._linears.bytes_by_format()
            log.info("weights_packed", weights=self._request_weights, bytes=self.weight_bytes)
        self._change("eager+kernels")

    def _prepare_graph(self, graph: CompiledGraph) -> None:
        assert self._install is not None
        self._install(lambda: self._use_graph(graph))

    def _use_graph(self, graph: CompiledGraph) -> None:
        self._graph, self.carries_hook_points = graph, False
        linears = self._linears
        self.batch_invariant = self._attention_kernel and linears is not None and linears.covers(self._parts.model)
        self._change("compiled+kernels" if self._kernels else "compiled")

    def _change(self, name: str) -> None:
        self.name = name
        log.info("executor_changed", executor=name)

    def run(self, prepared: PreparedPass) -> Logits | None:
        """See PassExecutor.run. A pass that stops early is eager where that is faster, since a graph computes all layers; so is one with
        hook points inside blocks, whose operations a graph fuses."""
        share = GRAPH_COST if self._linears is None else PACKED_GRAPH_COST
        stop = prepared.stop_after
        if (
            self._graph is None
            or not only_residual(prepared.layers)
            or (stop is not None and stop + 1 <= share * self._parts.layout.layer_count)
        ):
            return super().run(prepared)
        return self._compiled(self._graph, replace(prepared, stop_after=None))

    def _compiled(self, run: CompiledGraph, prepared: PreparedPass) -> Logits:
        batch, injection, parts = prepared.batch, prepared.injection, self._parts
        cache, attention = parts.cache, self.attention
        assert attention is not None
        read = injection.controllers.layers | prepared.readers.layers
        tables, first = injection.tables()
        inputs = [
            *(batch.token_ids, batch.positions, prepared.keep, batch.segment_table, batch.block_table),
            *tables,
            tasks(parts.layout.layer_count, injection.conditions.layers, injection.edited, read, first),
            *(*cache.keys, *cache.values, *self._weights),
        ]
        cache.batch = batch
        try:
            with torch.no_grad(), CallbackScope(prepared.decide, prepared.read, attention.write_and_attend):
                (logits,) = run(inputs)
        finally:
            cache.batch = None
        return logits

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
