"""WorkerSteering: the steering of all requests in one process of vLLM, whichever model runner of vLLM calls it.

What is steered follows from the position of a token, so pieces of a prompt, cached prefixes and requests that were preempted
come out the same. Positions that are computed again are steered again and measured once.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan, nan
from traceback import format_exception

import torch
from cachetools import LRUCache

from steering.engine.vllm.messages import (
    FailureMessage,
    MeasuredDoses,
    Message,
    MonitorReading,
    ReportMessage,
    RequestSteering,
    TokenMessage,
)
from steering.engine.vllm.operation import begin_pass, end_pass
from steering.errors import InternalError
from steering.injection.injector import Injection, Injector
from steering.injection.readings import NO_MONITORS, Monitor, MonitorSet, Reading
from steering.injection.readouts import MonitorTables, ReadoutCollector
from steering.injection.rows import BLOCK, CaptureState, Segment, SteeredRow, SteeringHistory
from steering.injection.slots import MAX_THRESHOLDS, UNSTEERED_SLOT, NoRoom, Room, Slots
from steering.injection.static import COLUMNS, EDITS, StaticEdits, is_static
from steering.model.hook_points import HEADS, in_order, kind_of, layer_of
from steering.model.phases import PhaseTracker
from steering.plan.scope import computes_whole, follows_single_tokens
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.shapes import Bool, Float, Int, Residual, Tensor

MAX_NUMBERS = 1 << 22
"""float64 numbers of block measures that are kept, 32 MB. Where a block's are gone, a report counts the positions computed."""
MAX_VECTORS = 1 << 26
"""float32 numbers of the vectors in tables that stay where they are, 256 MB."""
UNKNOWN_TOKEN = 0
"""Stands for a generated token whose id steering does not need: only scopes with phases or token ids do."""


@dataclass(slots=True, eq=False, kw_only=True)
class WorkerRow(SteeredRow):
    """One request. A resumed request computes some positions again that it had computed and measured.

    cached: positions that were found in the prefix cache.
    stored: prompt blocks whose measures are kept.
    needs_ids: whether a scope asks for the ids of its tokens.
    reads: whether anything is read at every generated token, here or in another pipeline stage.
    injector: which steers it.
    """

    key: str
    injector: Injector
    needs_ids: bool = False
    reads: bool = False
    failed: bool = False
    cached: int = 0
    stored: int = 0

    @property
    def decoded(self) -> int:
        """See SteeredRow.decoded. `computed` counts the pass that is being prepared."""
        return self.computed - 1

    def needs_python(self, in_graphs: Injector) -> bool:
        """Whether anything of it is left to the operation behind the layers. in_graphs: steers in graphs."""
        edited = self.slot != UNSTEERED_SLOT and self.injector is not in_graphs
        return edited or bool(self.readings or self.monitors.ordered) or self.capture is not None

    def know(self, first: int, ids: Sequence[int]) -> None:
        """Notes the ids of neighbouring tokens that a pass computes. After a preemption vLLM may have chosen another last one."""
        known = self.ids[first : first + len(ids)]
        if self.phases is not None and known != list(ids[: len(known)]):
            self.phases.reset()
        self.ids[first : first + len(ids)] = ids

    def report(self, layers: frozenset[int]) -> ReportMessage:
        """Returns what its steering did at these layers, those of one pipeline stage, once it has left the worker."""
        plan, own, capture = self.plan, self.doses, self.capture
        scores = zip(plan.thresholds, own.scores or [nan] * len(plan.thresholds), strict=True)
        activations = {} if capture is None else capture.pieces
        return ReportMessage(
            self.key,
            MeasuredDoses(own.layers, own.doses.float(), own.totals.float(), tuple(own.fired)) if own.layers else None,
            tuple(None if one.layer not in layers or isnan(score) else score for one, score in scores),
            own.held,
            {
                layer: _joined(pieces, sums=capture is not None and capture.reduce)
                for layer, pieces in activations.items()
            },
            _joined(capture.logits, sums=False) if capture is not None and capture.logits else None,
            own.incomplete,
        )

    def segments(self, first: int, start: int, end: int) -> list[Segment["WorkerRow"]]:
        """Returns the segments of flat tokens [start, end), whose positions begin at `first`; positions that were
        measured before are in a segment of their own. Raises InternalError where the result could not be exact."""
        stop = first + end - start
        several = stop - max(first, self.computed, self.prompt_length - 1) > 1
        if several and follows_single_tokens(self.plan):
            raise InternalError(
                "steering that follows the tokens one at a time cannot be computed for several of them together"
            )
        self.ids.extend([UNKNOWN_TOKEN] * (stop - len(self.ids)))  # those that scopes need are known by now
        again = max(min(self.computed, stop) - first, 0)
        self.computed = max(self.computed, stop)
        new = start + again
        before = [Segment(self, first, start, new, again=True)] if again else []
        return [*before, Segment(self, first + again, new, end)] if new < end else before


def _joined(pieces: list[Tensor], *, sums: bool) -> Tensor:
    return (torch.stack(pieces).sum(0) if sums else torch.cat(pieces)).cpu()


class BlockMeasures:
    """The doses of prompt blocks, so that a report does not depend on who computed a prompt that is shared.

    The most recently used ones, by (prompt fingerprint, token ids up to the block's end).
    """

    def __init__(self) -> None:
        self._blocks: LRUCache[bytes, Float[Tensor, number]] = LRUCache(MAX_NUMBERS, getsizeof=Tensor.numel)

    def store(self, row: WorkerRow) -> None:
        """Keeps the measures of the blocks that a request has computed so far."""
        end = min(row.computed, row.prompt_length - 1) // BLOCK
        if end > row.stored:
            for block, key in enumerate(_block_keys(row, end)):
                if block >= max(row.stored, row.cached // BLOCK):
                    self._blocks[key] = row.doses.block_measures(block)
            row.stored = end

    def restore(self, row: WorkerRow) -> None:
        """Adds the measures of the blocks that a request found in the cache. Called at its end: their owner may compute
        them in the same step in which they are shared."""
        for block, key in enumerate(_block_keys(row, row.cached // BLOCK)):
            if (measures := self._blocks.get(key)) is not None:
                row.doses.restore_block(block, measures)


def _block_keys(row: WorkerRow, count: int) -> Iterator[bytes]:
    """Yields the keys of the first blocks of a prompt: a hash chain, as the prefix cache has; no key where it is not shared."""
    if row.capture is not None or not row.plan.prompt_fingerprint or computes_whole(row.plan):
        return
    digest = hashlib.sha256(row.plan.prompt_fingerprint.encode())
    ids = torch.tensor(row.ids[: count * BLOCK], dtype=torch.int64).numpy()
    for block in range(count):
        digest.update(ids[block * BLOCK : (block + 1) * BLOCK].tobytes())
        yield digest.digest()


@dataclass(frozen=True, slots=True)
class StaticSize:
    """For how much graphs have memory. requests: that run together. tokens: of a pass."""

    requests: int
    tokens: int


class StaticInjector:
    """Steers the requests whose edits are operations of the graphs: an Injector whose tables stay where they are, and these operations.

    Requests for which the graphs have none, or the tables no room, are steered by the operation behind each layer.
    """

    def __init__(
        self, layers: frozenset[int], layer_count: int, d_model: int, device: torch.device, size: StaticSize
    ) -> None:
        rows = max(min(size.requests * 2 * layer_count, MAX_VECTORS // d_model), 2 * layer_count + 1)
        room = Room(size.requests + 1, rows, EDITS, COLUMNS, fixed=True)
        self.injector = Injector(Slots(layer_count, d_model, device, room=room))
        self.edits = StaticEdits(self.injector.slots, sorted(layers), size.tokens)

    def admit(self, row: WorkerRow) -> bool:
        """Gives a request its slot. Returns whether there was one."""
        if not is_static(row.plan):
            return False
        try:
            self.injector.admit(row)
        except NoRoom:
            return False
        row.injector = self.injector
        return True


class Step:
    """The steering of one pass of vLLM's model runner: collects the rows of the pass, then acts behind each layer, and at its hook points.

    rows: the requests in it.
    layers: where anything acts or is read, or rather points (`steering/model/hook_points.py`).
    predictions: (row, number of the request in vLLM's batch, index of the token) where a next token is chosen.
    finite: by request in vLLM's batch, set where the last residuals are known.
    """

    def __init__(
        self,
        injector: Injector,
        tables: MonitorTables,
        positions: Int[Tensor, "token"],
        static: StaticInjector | None = None,
    ) -> None:
        self.rows: list[WorkerRow] = []
        self.predictions: list[tuple[WorkerRow, int, int]] = []
        self.layers: frozenset[int] = frozenset()
        self.finite: Bool[Tensor, request] | None = None
        self._injector, self._tables, self._positions, self._static = injector, tables, positions, static
        self._segments: list[Segment[WorkerRow]] = []
        self._computed_before: list[int] = []
        self._injection: Injection
        self._static_injection: Injection | None = None
        self._held: list[tuple[SteeringHistory, Tensor]] = []
        self.readers: ReadoutCollector

    def add(self, row: WorkerRow, number: int, first: int, start: int, end: int) -> None:
        """Adds a request's flat tokens [start, end), whose positions begin at `first`."""
        before = row.computed
        segments = row.segments(first, start, end)
        self._computed_before.append(before)
        self.rows.append(row)
        self._segments += segments
        if segments[-1].predicts:
            self.predictions.append((row, number, first + end - start - row.prompt_length))

    def undo(self) -> None:
        """Has the rows forget this step, which is not run."""
        for row, computed in zip(self.rows, self._computed_before, strict=True):
            row.computed = computed

    def prepare(self) -> None:
        """Prepares everything on the host that the layers need."""
        count, static = len(self._positions), self._static
        segments = [one for one in self._segments if static is None or one.row.injector is not static.injector]
        if static is not None and len(segments) < len(self._segments):
            chosen = [one for one in self._segments if one.row.injector is static.injector]
            self._static_injection = static.injector.prepare(chosen, count)
            self._static_injection.begin(self._positions)
            static.edits.begin(self._static_injection)
        self._injection = self._injector.prepare(segments, count)
        self._injection.begin(self._positions)
        self.readers = ReadoutCollector(self._segments, self._tables)
        self.layers = self._injection.layers | self.readers.layers
        held = [
            (one.row.history, one.row.slot)
            for one in self._segments
            if one.row.history is not None and one.predicts and any(of.holds for of in one.row.plan.interventions)
        ]
        if held:  # what the controllers act with in this step
            slots = torch.tensor([slot for _, slot in held], device=self._positions.device)
            strengths = self._injector.slots.strengths[slots]
            self._held = [(history, used) for (history, _), used in zip(held, strengths, strict=True)]

    @property
    def work(self) -> tuple[Injection, frozenset[int]]:
        """Returns what steers the pass, and the points that are read."""
        return self._injection, self.readers.layers

    def act(self, layer: int, hidden: Residual, residual: Residual | None) -> None:
        """Applies `apply` to the stream hidden (+ residual), in float32, and adds the difference to `hidden`. What does not depend on the
        stream is added at once."""
        if layer in self._injection.additive and layer not in self.readers.layers:
            hidden += self._injection.addition(layer, hidden if residual is None else hidden + residual)
            return
        stream = hidden.float() if residual is None else hidden.to(torch.float32, copy=True).add_(residual)
        after = self.apply(layer, stream)
        if after is not stream:
            hidden += after - stream

    def apply(self, layer: int, stream: Residual) -> Residual:
        """Returns the float32 stream as steering leaves it. Readouts see the result."""
        after = self._injection.apply(layer, stream) if layer in self._injection.layers else stream
        if layer in self.readers.layers:
            self.readers.read(layer, after)
        return after

    def note_last(self, hidden: Float[Tensor, "request d_model"]) -> None:
        """hidden: what the head reads, one row a request. A sum is finite only if all of its numbers are."""
        self.finite = torch.isfinite(hidden.float().sum(dim=-1))

    def logit_rows(self) -> Sequence[Segment[WorkerRow]]:
        """Returns the segments of captures that want logits."""
        return [one for one in self._segments if one.wants_logits]

    def finish(self) -> None:
        """After the pass: stores decisions and sums."""
        if self._static is not None and self._static_injection is not None:
            self._static.edits.finish(self._static_injection)
            self._static_injection.finish()
        self._injection.finish()
        for history, strengths in self._held:
            history.add_strengths(strengths[None])


@dataclass(frozen=True, slots=True, eq=False)
class StepView:
    """What a step of vLLM computes, as either model runner knows it.

    request_ids: in the order of their tokens.
    starts: flat token at which each begins, and the end.
    first: position of each request's first token.
    positions: of every token of the pass, padded ones included.
    token_ids: of every token of the pass; None where the model is given embeddings.
    in_graph: whether the pass is replayed from a CUDA graph whatever acts in it.
    """

    request_ids: Sequence[str]
    starts: Sequence[int]
    first: Sequence[int]
    positions: Int[Tensor, "token"]
    token_ids: Int[Tensor, "token"] | None = None
    in_graph: bool = False


class WorkerSteering:
    """Rows of the requests by vLLM's id, plans and readings by the key under which they were sent.

    layers: the decoder layers of this pipeline stage, by their index in the whole model.
    calls: how often the hook of each point ran; the engine refuses to serve where that of a layer never did.
    uses_kernel: whether act.cpp steers where it can, and Python is called for the rest.
    resumed: how often a request computed positions again.
    static: where edits are operations of the graphs. in_graphs: how many requests were steered by these alone.
    outbox: messages that are to be sent.
    """

    def __init__(
        self,
        layers: frozenset[int],
        layer_count: int,
        d_model: int,
        device: torch.device,
        static: StaticSize | None = None,
        head_count: int = 0,
    ) -> None:
        """head_count: of the attention heads that can be read and ablated."""
        self.layers, self.d_model, self._head_count = layers, d_model, head_count
        self.static = None if static is None else StaticInjector(layers, layer_count, d_model, device, static)
        self.calls, self.uses_kernel = Counter[int](), False
        self.resumed = self.in_graphs = 0
        self.outbox: list[Message] = []
        self.step: Step | None = None
        self.met_nonfinite = False
        """Whether a pass had residuals that are not finite, so that blocks of the cache may hold such numbers."""
        self._device = device
        self._injector = Injector(Slots(layer_count, d_model, device, head_count=head_count))
        self._measures = BlockMeasures()
        self._rows: dict[str, WorkerRow] = {}
        self._plans: dict[str, SteeringPlan] = {"": UNSTEERED}
        self._readings: dict[str, tuple[Reading, ...]] = {"": ()}
        self._monitors: dict[str, MonitorSet] = {"": NO_MONITORS}
        self._tables = MonitorTables(device)
        self._texts: tuple[str, ...] = ()

    def put_plan(self, key: str, plan: SteeringPlan) -> None:
        """Keeps a plan. Raises what applying it raises: it is tried on one token of each phase, apart from all requests."""
        here = replace(
            plan, layers={point: one for point, one in plan.layers.items() if layer_of(point) in self.layers}
        )
        if len(here.thresholds) > MAX_THRESHOLDS:
            raise ValueError(f"at most {MAX_THRESHOLDS} thresholds, got {len(here.thresholds)}")
        row = self._row([0, 0], RequestSteering(key="", prompt_length=2, roles=((None, 2),)), here)
        injector = Injector(Slots(max(self.layers) + 1, self.d_model, self._device, head_count=self._head_count))
        injector.admit(row)
        for first, length in ((0, 2), (2, 1)):
            step = Step(injector, self._tables, torch.arange(first, first + length, device=self._device))
            step.add(row, 0, first, 0, length)
            step.prepare()
            for point in sorted(self.layers.union(here.layers), key=in_order):
                width = self._head_count if kind_of(point) == HEADS else self.d_model
                step.apply(point, torch.ones(length, width, device=self._device))
            step.finish()
        injector.release(row)
        self._plans[key] = here

    def put_readings(self, key: str, readings: tuple[Reading, ...]) -> None:
        """Keeps live readouts."""
        self._readings[key] = tuple(reading for reading in readings if layer_of(reading.layer) in self.layers)

    def put_monitors(self, key: str, monitors: tuple[MonitorReading, ...]) -> None:
        """Keeps what monitors read. Their bounds and actions are the server's."""
        self._monitors[key] = MonitorSet(
            [Monitor(one.reading.name, "", "", one.reading, above=True, bound=0.0, at=one.at) for one in monitors]
        )

    def put_token_texts(self, texts: tuple[str, ...]) -> None:
        """Keeps the text of every token."""
        self._texts = texts

    def _text_of(self, token_id: int) -> str:
        return self._texts[token_id] if 0 <= token_id < len(self._texts) else ""

    def forget(self, keys: Sequence[str]) -> None:
        """Drops plans, readings and monitors; requests that run keep theirs."""
        for key in keys:
            self._plans.pop(key, None)
            self._readings.pop(key, None)
            self._monitors.pop(key, None)

    def _row(self, prompt: list[int], steering: RequestSteering, plan: SteeringPlan) -> WorkerRow:
        if plan.needs_roles:
            plan = replace(plan, prompt_roles=tuple(role for role, count in steering.roles for _ in range(count)))
        row = WorkerRow(
            key=steering.key, injector=self._injector, ids=list(prompt), prompt_length=steering.prompt_length, plan=plan
        )
        if plan.needs_phases and plan.phases is not None:
            row.phases = PhaseTracker(plan.phases, self._text_of)
        row.needs_ids = row.phases is not None or any(one.spec.scope.token_ids for one in plan.interventions)
        window = steering.capture
        if window is not None:
            here = tuple(point for point in window.layers if layer_of(point) in self.layers)
            positions = window.start, window.end
            row.capture = CaptureState(0, here, positions, window.first, window.reduce, wants_logits=window.logits)
        elif follows_single_tokens(plan):
            row.history = SteeringHistory(steering.prompt_length)
        return row

    def admit(self, request_id: str, prompt: list[int], steering: RequestSteering, cached: int = 0) -> None:
        """Gives a new request its row; `cached` positions of it are in the prefix cache. A failure ends the request, not
        the worker. A request that has one continues: model runner V2 is told of resumed requests as of new ones."""
        if request_id in self._rows:
            return
        try:
            row = self._row(prompt, steering, self._plans[steering.plan])
            row.readings, row.monitors = self._readings[steering.readings], self._monitors[steering.monitors]
            row.cached, row.reads = cached, bool(steering.readings or steering.monitors)
            self._admit(row)
            self._rows[request_id] = row
        except Exception as error:
            self._report_failure(steering.key, error)

    def _admit(self, row: WorkerRow) -> None:
        if self.static is not None and self.static.admit(row):
            self.in_graphs += 1
        else:
            row.injector = self._injector
            self._injector.admit(row)

    def release(self, request_ids: Sequence[str]) -> None:
        """Reports on requests that have left vLLM's scheduler, and frees their rows."""
        for row in [self._rows.pop(request_id) for request_id in request_ids if request_id in self._rows]:
            try:
                row.injector.release(row)
                self._measures.restore(row)
                self.outbox.append(row.report(self.layers))
            except Exception as error:  # one request's report must not end the worker
                row.injector.abandon(row)
                self._report_failure(row.key, error)

    def leaves_graphs(self, request_ids: Iterable[str]) -> bool:
        """Whether a pass over these requests needs Python that the graphs with our edits do not run. A request that is read at some of its
        passes leaves them at all."""
        if self.static is None:
            return False
        rows, in_graphs = map(self._rows.get, request_ids), self.static.injector
        return any(row is not None and row.needs_python(in_graphs) for row in rows)

    def begin(self, view: StepView) -> None:
        """Prepares the steering of a pass. A request whose steering cannot be prepared ends alone."""
        if self.static is not None:
            self.static.edits.clear(len(view.positions))
        self.step = self._prepared(view)
        if self.uses_kernel:
            step, count = self.step, self._injector.slots.layer_count
            if step is None:
                begin_pass(None, frozenset(), count)
            elif not self._guarded(step.rows, partial(begin_pass, *step.work, count)):
                self.step = None

    def _prepared(self, view: StepView) -> Step | None:
        step = self._step(view)
        if not self._guarded([], partial(self._collect, step, self._running(view), view)):
            step.undo()
            for number, row in self._running(view):  # each by itself, to find those that fail
                alone = self._step(view)
                self._guarded([row], partial(self._collect, alone, [(number, row)], view))
                alone.undo()
            step, running = self._step(view), self._running(view)
            if not self._guarded([row for _, row in running], partial(self._collect, step, running, view)):
                return None
        return step if step.rows else None

    def _step(self, view: StepView) -> Step:
        return Step(self._injector, self._tables, view.positions, self.static)

    def _collect(self, step: Step, running: Sequence[tuple[int, WorkerRow]], view: StepView) -> None:
        for number, row in running:
            self._add(step, row, number, view)
        if step.rows:
            step.prepare()
        if view.in_graph and self.static is not None and step.layers:
            raise InternalError(
                "vLLM replays a pass from a CUDA graph, where steering that runs in Python has no effect"
            )

    def _running(self, view: StepView) -> list[tuple[int, WorkerRow]]:
        """Returns the requests of a pass that have not failed, with their numbers in it."""
        found = [(number, self._rows.get(request_id)) for number, request_id in enumerate(view.request_ids)]
        return [(number, row) for number, row in found if row is not None and not row.failed]

    def _add(self, step: Step, row: WorkerRow, number: int, view: StepView) -> None:
        start, end, first = view.starts[number], view.starts[number + 1], view.first[number]
        self.resumed += first < row.computed
        again = 0 == first < row.computed  # it was preempted
        if again and (row.capture is not None or (computes_whole(row.plan) and row.history is None)):
            # what was decided and measured is forgotten
            row.injector.release(row)
            self._admit(row)
            row.doses.reset()
            row.computed = 0
            if row.capture is not None:
                row.capture.pieces.clear()
                row.capture.logits.clear()
        if start < end:
            if row.needs_ids:
                if view.token_ids is None:
                    raise InternalError("the model is not given token ids, which scope.phase and scope.token_ids need")
                # waits for the tokens that were chosen last, only where they are asked for
                row.know(first, view.token_ids[start:end].tolist())
            step.add(row, number, first, start, end)

    def act(self, point: int, hidden: Float[Tensor, "token width"], residual: Tensor | None) -> None:
        """Steers and reads the stream hidden (+ residual) at a point; changes `hidden` in place."""
        self.calls[point] += 1
        step = self.step
        if step is None or point not in step.layers:
            return
        if not self._guarded(step.rows, lambda: step.act(point, hidden, residual)):
            self.step = None

    def end(self) -> None:
        """After a pass: keeps decisions, and sends what was read at the tokens that were predicted, and which of them mean nothing. Most
        requests read nothing: a message costs them more than their steering."""
        step, self.step = self.step, None
        if self.uses_kernel:
            end_pass()
        if step is not None:
            self._guarded(step.rows, lambda: self._deliver(step))

    def _deliver(self, step: Step) -> None:
        step.finish()
        for row in step.rows:
            self._measures.store(row)
        readouts, scores = step.readers.readouts(), step.readers.monitors.by_row()
        finite = None if step.finite is None else step.finite.tolist()
        self.met_nonfinite |= finite is not None and not all(finite)
        for row, number, index in step.predictions:
            fine = finite is None or finite[number]
            if fine and not row.reads:
                continue
            read = row.monitors.read_at(first=index == 0)
            known = {n: score for n, score in enumerate(scores.get(row, ())) if read[n].reading.layer in self.layers}
            self.outbox.append(TokenMessage(row.key, index, fine, readouts.get(row, {}), known))

    def _guarded(self, rows: Sequence[WorkerRow], work: Callable[[], None]) -> bool:
        """Runs work. An error ends these requests; nothing may leave the worker, where it would end all of them."""
        try:
            work()
        except Exception as error:
            for row in rows:
                row.failed = True
                self._report_failure(row.key, error)
            return False
        return True

    def _report_failure(self, key: str, error: Exception) -> None:
        self.outbox.append(FailureMessage(key, "".join(format_exception(error))))
