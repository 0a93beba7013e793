"""GraphExecutor: runs decode passes on a CUDA device by replaying graphs, since to launch their kernels one by one takes longer than to
run them.

It has not run on a GPU yet. Its tests run the same code on a CPU, with a capture that replays the recorded operations.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakSet, ref

import structlog
import torch

from steering.engine.transformers.attention import AttentionPatch, Queries, Scores, masked, visible
from steering.engine.transformers.block_pool import BLOCK
from steering.engine.transformers.executor import ModelParts, PassExecutor, PreparedPass
from steering.engine.transformers.paged_cache import PagedLayer
from steering.injection.apply import LayerEdits
from steering.injection.fused import edit
from steering.injection.injector import Injection
from steering.injection.slots import LayerForm, power_of_two
from steering.model.hooks import ResidualHooks
from steering.shapes import Float, Int, Logits, Residual, Tensor

log = structlog.get_logger()
WORTH = 8
"""Passes of one shape before it is captured: a capture takes longer than they do."""
MOST_GRAPHS, MOST_SHAPES = 32, 256
"""Graphs that are kept, and shapes whose passes are counted: those used last."""
MOST_BYTES = 512 << 20
"""Of keys and values, or of vectors, that one layer of a pass may gather. Larger passes stay eager, where fewer rows are padded to the
longest past."""
MOST_DOUBLED = 8  # rows up to which the sizes of graphs are powers of two; larger ones are its multiples
FEW_BLOCKS = 4  # of a row at least, so that short answers do not each need a graph
EXACT, ROUNDED = 0.02, 0.25
"""Bounds in nats of what a graph may differ by from the eager pass: of every log probability in float32; of the median in other dtypes."""
Compute: TypeAlias = Callable[[], Logits]
CaptureGraph: TypeAlias = Callable[[Compute], Compute]
"""Records what a function asks of a device. The result does that again with what the same memory holds then, and returns the same
tensor every time; no Python of the function runs again. Raises RuntimeError for what cannot be recorded."""


class CudaGraphs:
    """Captures on one CUDA device. Its graphs share a pool of memory, since one replays at a time and its logits are used before the
    next."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        """cuda: the driver, as `torch.cuda` offers it."""
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device)  # one for all captures: what libraries keep for a stream is made once
        self._graphs: WeakSet[Any] = WeakSet()

    def __call__(self, compute: Compute) -> Compute:
        """See CaptureGraph."""
        cuda = self._cuda
        with cuda.device(self._device):
            before = cuda.current_stream()
            self._stream.wait_stream(before)
            with cuda.stream(self._stream):
                compute()  # libraries allocate their workspaces at the first call, which a capture does not allow
            before.wait_stream(self._stream)
            if not self._graphs:  # a pool whose graphs have all gone takes no other
                self._pool = cuda.graph_pool_handle()
            graph = cuda.CUDAGraph()
            try:
                # other threads may use the device meanwhile; what they do is no part of this capture
                with cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    logits = compute()
            finally:
                cuda.set_stream(before)  # a capture that fails leaves its own stream as the current one
        self._graphs.add(graph)

        def replay() -> Logits:
            graph.replay()
            return logits

        return replay


@dataclass(frozen=True, slots=True)
class PassShape:
    """What the decode passes of one graph have in common.

    rows: tokens, one a request; more than a pass has are padding.
    blocks: of each row's past.
    edits: the layers where edits act, in order, and what those of all rows need there.
    guarded: whether a row has a dose bound.
    read: layers whose residual is read afterwards.
    """

    rows: int
    blocks: int
    edits: tuple[tuple[int, LayerForm], ...]
    guarded: bool
    read: tuple[int, ...]


class DecodeGraph:
    """The pass of one shape, as a function of memory that stays where it is: its own, that of the cache, and the tables of `Slots`.

    A padding row reads and writes the block that belongs to nobody, which stays zeros, and is steered by nothing.
    """

    def __init__(self, parts: ModelParts, shape: PassShape) -> None:
        self._parts, self.shape = parts, shape
        device, rows, layers = parts.slots.device, shape.rows, len(shape.edits)
        widest = max((form.count for _, form in shape.edits), default=0)
        # token ids, positions, places in the cache, slots
        self._tokens = torch.zeros(4, rows, dtype=torch.int64, device=device)
        self._blocks = torch.zeros(rows, shape.blocks, dtype=torch.int64, device=device)
        self._weights = torch.zeros(rows, parts.slots.timings.shape[1], device=device)
        self._left = torch.zeros(rows, device=device)
        self._edits = torch.zeros(layers, rows, widest, device=device)
        self._changes, self._scaled = torch.zeros(2, layers, rows, device=device)
        self._read = torch.zeros(len(shape.read), rows, parts.layout.d_model, device=device)

    def fill(self, prepared: PreparedPass) -> None:
        """Copies what differs between passes to where the graph reads it."""
        batch, injection = prepared.batch, prepared.injection
        count, blocks = len(batch.token_ids), batch.block_table
        self._tokens.zero_()
        given = batch.token_ids, batch.positions, batch.slots, injection.slots_of_tokens
        for to, values in zip(self._tokens, given, strict=True):
            to[:count].copy_(values)
        self._blocks.zero_()
        self._blocks[:count, : blocks.shape[1]].copy_(blocks)
        if self.shape.edits:
            self._weights[:count, : injection.weights.shape[1]].copy_(injection.weights)
            self._left[:count].copy_(injection.left)

    def compute(self) -> Logits:
        """Runs the pass. Asks nothing of the device that the host would wait for, and copies nothing from the host."""
        token_ids, positions, places, slots = self._tokens.unbind(0)
        used, filled = (places >= BLOCK)[:, None], self.shape.blocks * BLOCK
        cache = self._parts.cache
        masks: dict[int | None, Tensor] = {}
        left = self._left.clone() if self.shape.guarded else None
        edits = {layer: (number, form) for number, (layer, form) in enumerate(self.shape.edits)}

        def attended(layer: int, query: Queries, key: Tensor, value: Tensor, scores: Scores) -> Queries:
            states: PagedLayer = cache.layers[layer]
            layout = cache.layout
            layout.write_keys(states.keys, places, torch.where(used, key[0], 0.0))
            layout.write_values(states.values, places, torch.where(used, value[0], 0.0))
            if scores.window not in masks:
                masks[scores.window] = visible(positions[:, None], filled, scores.window)
            rows = query[0].transpose(0, 1)[:, :, None]
            keys, values = states.past(self._blocks, filled)
            found = masked(rows, keys, values, masks[scores.window], scores)
            return found[:, :, 0].transpose(0, 1)[None]

        def on_layer(layer: int, residual: Residual) -> Residual | None:
            reads = layer in self.shape.read
            before = after = residual if self._parts.slots.fuses(layer) and not reads else residual.float()
            if layer in edits:
                after = self._edited(layer, *edits[layer], before, slots, left)
            if reads:
                self._read[self.shape.read.index(layer)].copy_(after)
            return None if after is before else after

        hooks: ResidualHooks = self._parts.hooks
        steered = hooks.step(on_layer, sorted({*edits, *self.shape.read}))
        with torch.no_grad(), closing(AttentionPatch(self._parts.model, attended)), steered:
            output = self._parts.model(input_ids=token_ids[None], position_ids=positions[None], use_cache=False)
        logits: Logits = output.logits[0]
        return logits

    def _edited(
        self,
        layer: int,
        number: int,
        form: LayerForm,
        residual: Residual,
        slots: Int[Tensor, "row"],
        left: Tensor | None,
    ) -> Residual:
        of_plans, notes = self._parts.slots, (self._edits, self._changes, self._scaled)
        place = of_plans.place_of(layer)
        if of_plans.fuses(layer):
            bounds = self._left if left is None else left  # which has no bounds then
            return edit(residual, *of_plans.tables, slots, self._weights, bounds, *notes, place, number)
        rows = of_plans.rows[:, place, : form.count].index_select(0, slots)
        edits = LayerEdits.of(of_plans.tables[:3], rows, [form], of_plans.head_count)
        found = edits.apply(residual, edits.weights(self._weights), left)
        self._edits[number, :, : form.count].copy_(found.doses)
        self._changes[number].copy_(found.change)
        if found.share is not None:
            self._scaled[number].copy_(found.share < 1.0)
        return found.after

    def finish(self, prepared: PreparedPass) -> None:
        """Hands on what a replay measured, and has it read what left the layers: controllers and readouts."""
        if self.shape.edits:
            tables, first = prepared.injection.noted()
            for table, found in zip(tables, (self._edits, self._changes, self._scaled), strict=True):
                noted = table[first : first + len(found)]
                noted.copy_(found[tuple(slice(size) for size in noted.shape)])
        for layer, residual in zip(self.shape.read, self._read, strict=True):
            prepared.read(layer, residual[: len(prepared.batch.token_ids)])

    @staticmethod
    def kept(logits: Logits, prepared: PreparedPass) -> Float[Tensor, "kept vocab"]:
        """Returns the logits that a pass wants of those of all rows."""
        count = len(prepared.batch.token_ids)
        return logits[:count] if len(prepared.keep) == count else logits.index_select(0, prepared.keep)


class GraphExecutor(PassExecutor):
    """Captures decode passes once their shape was met often enough, and runs the others eagerly: those with prompts, with conditions
    that are tested at each token, and those that would gather too much.

    The first replay of every graph is compared with the eager pass. Where it differs, or a pass cannot be captured (models that
    ask their device for numbers, as some mixtures of experts do), all passes are eager from then on.

    worth: passes of one shape before it is captured.
    """

    def __init__(self, parts: ModelParts, capture: CaptureGraph) -> None:
        super().__init__(parts)
        self._capture, self._refused, self.worth = capture, self.attention is None, WORTH
        self._layer_bytes = parts.cache.block_bytes // len(parts.cache.layers)
        self._steering: tuple[ref[Injection], tuple[tuple[int, LayerForm], ...]] | None = None
        self._forget()

    def _forget(self) -> None:
        """Drops all graphs: they read tables of `Slots` that have moved."""
        self._tables = self._parts.slots.layout
        self._graphs: OrderedDict[PassShape, tuple[DecodeGraph, Compute]] = OrderedDict()
        self._met: OrderedDict[PassShape, int] = OrderedDict()

    def run(self, prepared: PreparedPass) -> Logits | None:
        """See PassExecutor.run. The logits are valid until the next pass."""
        if self._tables != self._parts.slots.layout:
            self._forget()
        shape = self._shape(prepared)
        if shape is None:
            return super().run(prepared)
        if shape not in self._graphs:
            met = self._met.pop(shape, 0) + 1
            _keep(self._met, shape, met, MOST_SHAPES)
            return self._captured(shape, prepared) if met > self.worth else super().run(prepared)
        self._graphs.move_to_end(shape)
        graph, replay = self._graphs[shape]
        graph.fill(prepared)
        logits = replay()
        graph.finish(prepared)
        return graph.kept(logits, prepared)

    def _shape(self, prepared: PreparedPass) -> PassShape | None:
        """Returns the shape of a pass; None where it stays eager."""
        injection, segments = prepared.injection, prepared.batch.segments
        if self._refused or not injection.decodes or injection.conditions.layers:
            return None
        count = len(segments)
        rows = power_of_two(count) if count <= MOST_DOUBLED else -(-count // MOST_DOUBLED) * MOST_DOUBLED
        longest = max(segment.last_position for segment in segments)
        blocks = max(power_of_two(longest // BLOCK + 1), FEW_BLOCKS)
        edits = self._forms(injection)
        vectors = 2 * rows * max((form.count for _, form in edits), default=0) * self._parts.layout.d_model
        if max(rows * blocks * self._layer_bytes, vectors * torch.float32.itemsize) > MOST_BYTES:
            return None
        read = tuple(sorted(injection.controllers.layers | prepared.readers.layers))
        return PassShape(rows, blocks, edits, bool(edits) and injection.guarded, read)

    def _forms(self, injection: Injection) -> tuple[tuple[int, LayerForm], ...]:
        """Returns what the edits of all rows need, layer by layer. The same for the passes that one Injection steers."""
        if self._steering is None or self._steering[0]() is not injection:
            slots = {segment.row.slot for segment in injection.segments}
            forms = ((layer, [self._parts.slots.form(slot, layer) for slot in slots]) for layer in injection.edited)
            self._steering = ref(injection), tuple((layer, _merged(at_layer)) for layer, at_layer in forms)
        return self._steering[1]

    def _captured(self, shape: PassShape, prepared: PreparedPass) -> Logits | None:
        """Captures a pass, runs it eagerly, and keeps the graph if that gives the same. In this order, so that what a wrong graph
        wrote to the cache is written over."""
        made = self._attempted(shape, prepared)
        expected = super().run(prepared)
        if made is None:
            return expected
        graph, replay, found = made
        assert expected is not None
        difference = _difference(found, expected)
        if difference is None:  # nothing to compare: not kept, and tried again after as many passes
            self._met.pop(shape)
            return expected
        if difference > (EXACT if expected.dtype == torch.float32 else ROUNDED):
            self._refuse(f"a graph differs from the eager pass by {difference:.2g} nats")
            return expected
        _keep(self._graphs, shape, (graph, replay), MOST_GRAPHS)
        self._met.pop(shape)
        self.name = "eager+graphs"
        log.info("decode_graph_captured", rows=shape.rows, blocks=shape.blocks, layers=len(shape.edits))
        return expected

    def _attempted(self, shape: PassShape, prepared: PreparedPass) -> tuple[DecodeGraph, Compute, Logits] | None:
        """Returns a graph, what replays it, and its logits; None where it cannot be captured. The error, which keeps the tensors of the
        capture, is gone when the pass is run eagerly."""
        try:
            graph = DecodeGraph(self._parts, shape)
            graph.fill(prepared)
            replay = self._capture(graph.compute)
            return graph, replay, graph.kept(replay(), prepared)
        except torch.OutOfMemoryError:  # a long prompt beside it, perhaps: counted anew
            self._forget()
        except Exception as error:
            self._refuse(str(error)[:300] or type(error).__name__)
        return None

    def _refuse(self, reason: str) -> None:
        self._refused, self.name = True, "eager"
        self._forget()
        log.warning("decode_graphs_refused", reason=reason)


def _keep(kept: OrderedDict[PassShape, Any], shape: PassShape, value: object, most: int) -> None:
    kept[shape] = value
    if len(kept) > most:
        kept.popitem(last=False)


def _merged(forms: list[LayerForm | None]) -> LayerForm:
    """Returns what the edits of several requests need at a layer, their number rounded up so that few forms differ."""
    found = [form for form in forms if form is not None]
    return LayerForm(
        count=power_of_two(max(form.count for form in found)),
        reads=any(form.reads for form in found),
        relative=any(form.relative for form in found),
        relu=any(form.relu for form in found),
        mandatory=any(form.mandatory for form in found),
        rotations=tuple(sorted({number for form in found for number in form.rotations})),
        heads=any(form.heads for form in found),
    )


def _difference(found: Logits, expected: Logits) -> float | None:
    """Returns by how many nats the log probabilities of rows differ, as EXACT and ROUNDED bound it; None where no row is finite."""
    rows = expected.isfinite().all(1)
    if not bool(rows.any()):
        return None
    ours, eager = (logits[rows].float().log_softmax(-1) for logits in (found, expected))
    difference = (ours - eager).abs().nan_to_num(nan=torch.inf)
    return float(difference.max() if expected.dtype == torch.float32 else difference.median(1).values.max())
