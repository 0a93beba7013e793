"""Step: the steering of one pass of vLLM's model runner."""

from collections.abc import Iterator, Sequence

import torch

from steering.engine.transformers.batch import Batch, Segment
from steering.engine.transformers.steering.bank import StaticRows
from steering.engine.transformers.steering.history import SteeringHistory
from steering.engine.transformers.steering.readout import MonitorTables, ReadoutCollector
from steering.engine.transformers.steering.steering_batch import SteeringBatch, SteeringRunner
from steering.engine.vllm.worker.rows import WorkerRow
from steering.shapes import Bool, Float, Int, Residual, Tensor


class Step:
    """Collects the rows of a pass, then acts behind each layer. The arithmetic is that of the transformers engine.

    rows: the requests in it. layers: where anything acts or is read. predictions: (row, number of the request in vLLM's
    batch, index of the token) of each request whose next token is chosen from this pass. finite: by request in vLLM's
    batch, set where the last residuals are known.
    """

    def __init__(self, runner: SteeringRunner, tables: MonitorTables, positions: Int[Tensor, "token"]) -> None:
        self.rows: list[WorkerRow] = []
        self.predictions: list[tuple[WorkerRow, int, int]] = []
        self.layers: frozenset[int] = frozenset()
        self.finite: Bool[Tensor, request] | None = None
        self._runner, self._tables, self._positions = runner, tables, positions
        self._segments: list[Segment] = []
        self._computed_before: list[int] = []
        self._batch: Batch
        self._steering: SteeringBatch
        self._rows: StaticRows | None = None
        self._added: frozenset[int] = frozenset()
        self._held: list[tuple[SteeringHistory, Tensor]] = []
        self.readers: ReadoutCollector

    def add(self, row: WorkerRow, number: int, first: int, start: int, end: int) -> None:
        """Adds a request's flat tokens [start, end), whose positions begin at `first`."""
        before = row.computed
        segments = list(row.segments(first, start, end))
        self._computed_before.append(before)
        self.rows.append(row)
        self._segments += segments
        last = segments[-1]
        if last.sequence is row.sequence and last.predicts:
            self.predictions.append((row, number, last.last_position - (row.sequence.prompt_length - 1)))

    def undo(self) -> None:
        """Has the rows forget this step, which is not run."""
        for row, computed in zip(self.rows, self._computed_before, strict=True):
            row.computed = computed

    def prepare(self) -> None:
        """Prepares everything on the host that the layers need."""
        none = torch.zeros(0, dtype=torch.int64, device=self._positions.device)
        self._batch = Batch(tuple(self._segments), token_ids=self._positions, positions=self._positions, slots=none)
        self._steering = self._runner.prepare(self._batch)
        self._steering.begin()
        self.readers = ReadoutCollector(self._batch, self._tables)
        self.layers = self._steering.layers | self.readers.layers
        self._held = list(self._strengths())
        added = self._steering.static_layers - self._steering.call_layers - self.readers.layers
        self._added = added if self._steering.gathers(added) else frozenset()

    def _strengths(self) -> Iterator[tuple[SteeringHistory, Tensor]]:
        """Yields what the controllers of each request act with in this step, where it is kept."""
        segments = [one for one in self._segments if one.sequence.history is not None and one.predicts]
        held = [one.sequence for one in segments if any(of.holds for of in one.sequence.plan.interventions)]
        if held:
            rows = torch.tensor([one.row for one in held], device=self._positions.device)
            strengths = self._runner.bank.strengths[rows]
            for sequence, row in zip(held, strengths, strict=True):
                assert sequence.history is not None
                yield sequence.history, row

    def act(self, layer: int, hidden: Residual, residual: Residual | None) -> None:
        """Applies `apply` to the stream hidden (+ residual), in float32, and adds the difference to `hidden`. Where only static
        adds act they are that difference."""
        if layer in self._added:
            if self._rows is None:
                self._rows = self._steering.static_rows(self._added, hidden.dtype)
            self._rows.add(layer, hidden, residual)
            return
        stream = hidden.float() if residual is None else hidden.float() + residual.float()
        after = self.apply(layer, stream)
        if after is not stream:
            hidden += (after - stream).to(hidden.dtype)

    def apply(self, layer: int, stream: Residual) -> Residual:
        """stream (token, d_model) float32 as it leaves the layer -> as steering leaves it. Readouts see the result."""
        after = self._steering.apply(layer, stream, self._batch) if layer in self._steering.layers else stream
        if layer in self.readers.layers:
            self.readers.read(layer, after)
        return after

    def note_last(self, hidden: Float[Tensor, "request d_model"]) -> None:
        """hidden: what the head reads, one row a request. A sum is finite only if all of its numbers are."""
        self.finite = torch.isfinite(hidden.float().sum(dim=-1))

    def logit_rows(self) -> Sequence[Segment]:
        """The segments of captures that want logits."""
        return [one for one in self._segments if one.sequence.capture is not None and one.sequence.capture.spec.logits]

    def finish(self) -> None:
        """After the pass: stores decisions and sums."""
        if self._rows is not None:
            self._rows.measure(self._steering.static_sums)
        self._runner.finish(self._steering)
        for history, strengths in self._held:
            history.add_strengths(strengths[None])
        for segment in self._segments:
            segment.sequence.computed = segment.first + segment.length
