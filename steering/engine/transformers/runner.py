"""ModelRunner: prepares passes, has an executor compute them, and returns next-token logits, readouts and captures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from steering.engine.cpu.executor import CompiledExecutor
from steering.engine.cpu.graphs import uses_attention_kernel
from steering.engine.cpu.thread_count import ThreadCount
from steering.engine.options import EngineLimits
from steering.engine.transformers.attending import AttentionReader
from steering.engine.transformers.block_pool import BLOCK, blocks_for
from steering.engine.transformers.decode_graphs import MOST_BYTES, CaptureGraph, CudaGraphs, GraphExecutor
from steering.engine.transformers.executor import CompileRequest, ModelParts, PassExecutor, PreparedPass
from steering.engine.transformers.paged_cache import LayerShape, PagedCache, PairedLayout, RowLayout, probe_shapes
from steering.engine.transformers.request import Batch, Request, batch_of
from steering.engine.transformers.training import GradientPass
from steering.engine.transformers.unembedding import Unembedding
from steering.injection.fused import HasKernel
from steering.injection.injector import Injector
from steering.injection.readouts import MonitorTables, ReadoutCollector
from steering.injection.rows import Segment, SteeredRow
from steering.injection.slots import Slots
from steering.model.device import free_memory, free_unused_memory
from steering.model.hook_points import in_order
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.plan.scope import late_layers
from steering.shapes import Logits, Tensor
from steering.threads import openmp_thread_setter
from steering.uploads import uploaded

log = structlog.get_logger()
CPU_SHARE, CPU_MOST = 0.25, 4 << 30
"""Of the memory that is free. It is taken page by page, as blocks are used for the first time."""
CUDA_SHARE = 0.9
"""Of the memory that is free on a device after a worst pass: allocators and graphs of libraries take some too."""


@dataclass(slots=True, eq=False)
class PassResult:
    """logits (row, vocab) for `requests`, in order. readers: what each forward pass read, which is fetched from the device after
    sampling."""

    requests: tuple[Request, ...]
    logits: Logits
    readers: tuple[ReadoutCollector, ...]

    def readouts(self) -> dict[SteeredRow, dict[str, float]]:
        """Returns the scores of each request by name."""
        return {key: scores for reader in self.readers for key, scores in reader.readouts().items()}

    def monitor_scores(self) -> dict[SteeredRow, list[float]]:
        """Returns the scores of all monitors by request."""
        return {key: scores for reader in self.readers for key, scores in reader.monitors.by_row().items()}


class ModelRunner:
    """Owns the model, its hooks, the cache and the steering state. One thread calls it.

    compile_request: how passes are compiled on a CPU, for a model that attends through transformers' interface; None: they are eager.
    capture_graph: how decode passes are captured; None: as CUDA graphs on a CUDA device where `cuda_graphs` of the limits says so.
    edit_kernel: whether the kernel of edits runs on a device (`has_kernel`), asked once with the width and data type of residuals; edits
        of a layer are then one kernel. None: they are operations of torch.
    blocks: in the cache.
    same_pass: whether a request may read blocks that another computes in the same pass.
    """

    def __init__(
        self,
        model: Any,
        layout: Layout,
        device: torch.device,
        limits: EngineLimits,
        compile_request: CompileRequest | None = None,
        capture_graph: CaptureGraph | None = None,
        *,
        edit_kernel: HasKernel | None = None,
    ) -> None:
        self._layout, self._device, devices = layout, device, layout.devices
        self.same_pass = layout.attention != "own"
        shapes = probe_shapes(model, layout, device)
        block_bytes = BLOCK * sum(shape.position_bytes for shape in shapes)
        self.blocks = max(_cache_blocks(model, device, shapes, limits), 1)
        context = _context(model)
        if limits.cache_bytes is None and context:  # no more than all requests need with a full context
            requests = limits.max_running + limits.max_background
            self.blocks = min(self.blocks, requests * blocks_for(context))
        compiled = (
            compile_request if {device.type, *(one.type for one in devices)} == {"cpu"} and self.same_pass else None
        )
        paired = compiled is not None and uses_attention_kernel(shapes, kernels=compiled.kernels)
        arrangement = PairedLayout() if paired else RowLayout()
        self.cache = PagedCache(shapes, self.blocks, arrangement, own_attention=not self.same_pass)
        self._hooks = ResidualHooks(layout)
        self.unembedding = Unembedding(model, layout)
        self.gradients = GradientPass(self.unembedding, self._hooks, device)
        self.injector = Injector(
            Slots(layout.layer_count, layout.d_model, device, devices, head_count=layout.head_count)
        )
        self.injector.slots.fused = edit_kernel is not None and edit_kernel(device, layout.d_model, shapes[0].dtype)
        self._monitors = MonitorTables(device, devices)
        parts = ModelParts(model, layout, self._hooks, self.cache, self.injector.slots)
        self._spread = {device, *devices} != {device}
        if capture_graph is None and device.type == "cuda" and limits.cuda_graphs and not self._spread:
            capture_graph = CudaGraphs(device)
        self.executor = _executor(parts, compiled, capture_graph)
        attention = self.executor.attention
        self._attention_reader = None if attention is None else AttentionReader(model, attention, self._hooks, device)
        self._float32 = all(shape.dtype == torch.float32 for shape in shapes)
        set_threads = openmp_thread_setter() if limits.adaptive_threads and device.type == "cpu" else None
        most = 1 if set_threads is None else torch.get_num_threads()
        self.threads = ThreadCount(most, set_threads or (lambda _count: None))
        log.info(
            "cache_allocated", blocks=self.blocks, block_positions=BLOCK, megabytes=self.blocks * block_bytes >> 20
        )

    @property
    def exact(self) -> bool:
        """Whether decoding and reading a prompt give the same keys and values, so that those of an answer may serve a prompt."""
        return self._float32 or self.executor.batch_invariant

    def close(self) -> None:
        """Leaves the model without hooks and with its own attention."""
        self.executor.close()
        self._hooks.remove()

    def free_memory(self) -> None:
        """Gives the device back what torch's allocator keeps of it, after a pass that did not fit."""
        free_unused_memory(self._device)

    def release(self, request: Request) -> None:
        """Completes a request's dose ledger and takes its steering state back. Does not raise: a report may be incomplete."""
        try:
            self.injector.release(request)
        except Exception as error:  # memory may be short just now
            log.warning("steering_report_incomplete", reason=type(error).__name__)
            self.injector.abandon(request)

    def run(self, work: Sequence[tuple[Request, int]]) -> PassResult:
        """Computes the next `count` positions of each request; logits for those whose next token is chosen from them."""
        for request, _ in work:
            if self._attention_reader is not None and request.capture is not None and request.capture.chooses:
                self.threads.settle()
                self._attention_reader.choose(request.ids, request.capture)
        hooked = [] if self.executor.carries_hook_points else [pair for pair in work if pair[0].hooked]
        if hooked and len(hooked) < len(work):  # by themselves, so that the others keep their executor and its bits
            return _joined([self.run([pair for pair in work if not pair[0].hooked]), self.run(hooked)])
        if self.executor.batch_invariant:  # then the number of threads changes no bit either
            rows = 0 if any(request.prefilling for request, _ in work) else len(work)
            self.threads.begin(rows)
            result = self._run(batch_of(work, self._device))
            self.threads.end(rows)
            return result
        if self.same_pass:
            return self._run(batch_of(work, self._device))
        # models with their own attention take rows of one shape: requests that compute as many positions from the same one on
        groups: dict[tuple[int, int], list[tuple[Request, int]]] = {}
        for request, count in work:
            groups.setdefault((request.computed, count), []).append((request, count))
        return _joined([self._run(batch_of(uniform, self._device)) for uniform in groups.values()])

    def _run(self, batch: Batch) -> PassResult:
        injection = self.injector.prepare(batch.segments, len(batch.token_ids))
        injection.begin(batch.positions)
        readers = ReadoutCollector(batch.segments, self._monitors)
        ends = [segment for segment in batch.segments if segment.predicts]
        whole = [segment for segment in batch.segments if segment.wants_logits]
        captures_only = all(segment.row.capture is not None for segment in batch.segments)
        stop_after = _last_needed(readers, batch.segments) if captures_only and not whole else None
        kept = [s.end - 1 for s in ends] + [token for s in whole for token in s.logit_tokens]
        # on the host where the head may be on another device than the embedding: such an index may be used on every device
        keep = torch.tensor(kept or [0]) if self._spread else uploaded(kept or [0], self._device)
        logits = self.executor.run(PreparedPass(batch, injection, readers, keep, stop_after))
        injection.finish()
        if logits is None:
            logits = torch.empty(0, self._layout.vocab_size, device=self._device)
        _keep_logits(whole, logits[len(ends) :])
        for segment in batch.segments:
            segment.row.computed += segment.length
        return PassResult(tuple(s.row for s in ends), logits[: len(ends)], (readers,))


def _joined(results: Sequence[PassResult]) -> PassResult:
    return PassResult(
        tuple(request for result in results for request in result.requests),
        torch.cat([result.logits for result in results]),
        tuple(reader for result in results for reader in result.readers),
    )


def _last_needed(readers: ReadoutCollector, segments: Sequence[Segment[Request]]) -> int:
    """Returns the last layer that captures read, or that decides what acts before it at tokens of their later passes."""
    unfinished = [segment.row.plan for segment in segments if segment.last_position < len(segment.row.ids) - 1]
    return max(readers.layers.union(*map(late_layers, unfinished)), key=in_order, default=0)


def _executor(parts: ModelParts, compiled: CompileRequest | None, capture_graph: CaptureGraph | None) -> PassExecutor:
    if compiled is not None:
        return CompiledExecutor(parts, compiled)
    return PassExecutor(parts) if capture_graph is None else GraphExecutor(parts, capture_graph)


def _keep_logits(segments: Sequence[Segment[Request]], logits: Logits) -> None:
    """Copies the logits that captures return to the host: they are large, and a text may take many passes."""
    start = 0
    for segment in segments:
        end = start + len(segment.logit_tokens)
        assert segment.row.capture is not None
        piece: Tensor = logits[start:end].to(torch.float32).cpu()
        segment.row.capture.logits.append(piece)
        start = end


def _cache_blocks(model: Any, device: torch.device, shapes: Sequence[LayerShape], limits: EngineLimits) -> int:
    """Returns how many blocks of keys and values there are: as the operator says, or as fit a share of what is free once the weights
    are loaded, on every device that has layers.

    On CUDA devices the memory of a worst pass is measured. device: of the embedding.
    """
    sizes: dict[torch.device, int] = {}
    for shape in shapes:
        sizes[shape.device] = sizes.get(shape.device, 0) + BLOCK * shape.position_bytes
    if limits.cache_bytes is not None:
        return limits.cache_bytes // sum(sizes.values())
    if device.type != "cuda":
        return int(min(free_memory(device) * CPU_SHARE, CPU_MOST)) // sum(sizes.values())
    before = {place: torch.cuda.memory_allocated(place) for place in sizes}
    for place in sizes:
        torch.cuda.reset_peak_memory_stats(place)
    run_worst_pass(model, device, limits)
    peaks = {place: torch.cuda.max_memory_allocated(place) - before[place] for place in sizes}
    left = {place: free_memory(place) - peak for place, peak in peaks.items()}
    return cuda_blocks(left, sizes, limits)


def cuda_blocks(left: Mapping[torch.device, int], sizes: Mapping[torch.device, int], limits: EngineLimits) -> int:
    """Returns how many blocks fit on CUDA devices. left: bytes beside weights and a worst pass. sizes: of a block's part there."""
    graphs = (
        2 * MOST_BYTES if limits.cuda_graphs and len(sizes) == 1 else 0
    )  # their pool, which eager passes cannot use
    return min(int((left[place] - graphs) * CUDA_SHARE) // size for place, size in sizes.items())


def _context(model: Any) -> int | None:
    """Returns the positions that a model states as its bound; None where it states none."""
    stated: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return stated


def run_worst_pass(model: Any, device: torch.device, limits: EngineLimits) -> None:
    """Computes as many tokens as a pass may have of one request: learned positions end with the model's context."""
    positions = min(limits.idle_prefill_tokens, _context(model) or limits.idle_prefill_tokens)
    tokens = torch.zeros(1, positions, dtype=torch.int64, device=device)
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False, logits_to_keep=1)
